//! Programs made up at random: few keys, few leases, few streams, so that commands meet each other.
//!
//! The same seed gives the same program. A program avoids what is a matter of timing on etcd itself: it has at most
//! twelve keys (Go sorts up to twelve elements stably, more of them not), leases that outlive it and whose terms differ,
//! physical compactions (a hash looks at rows a background compaction has not reached yet), and a stream of its own for
//! every watch that starts in the future. Leases whose ids the server picks get no keys, as the id is part of the hash.

mod random;

use bytes::Bytes;
use proto::authpb::{Permission, UserAddOptions};
use proto::etcdserverpb::{
    AlarmRequest, AlarmType, AuthUserAddRequest, CompactionRequest, LeaseGrantRequest,
    LeaseTimeToLiveRequest, RangeRequest, WatchCreateRequest, alarm_request,
};

use self::random::Random;
use crate::command::{AuthCommand, Command, StreamCommand};
use crate::symbol;

/// How often each kind of command is chosen, in relation to the others; 0 is never.
#[derive(Clone, Debug)]
pub struct Weights {
    pub range: u32,
    pub range_stream: u32,
    pub put: u32,
    pub delete: u32,
    pub txn: u32,
    pub compact: u32,
    pub lease: u32,
    pub watch: u32,
    pub sync: u32,
    pub hash: u32,
    pub maintenance: u32,
    pub alarm: u32,
    pub auth: u32,
    pub restart: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            range: 300,
            range_stream: 0,
            put: 200,
            delete: 60,
            txn: 250,
            compact: 6,
            lease: 60,
            watch: 14,
            sync: 8,
            hash: 10,
            maintenance: 6,
            alarm: 0,
            auth: 0,
            restart: 0,
        }
    }
}

impl Weights {
    /// The weight called `name`, for the command line.
    pub fn named(&mut self, name: &str) -> Option<&mut u32> {
        Some(match name {
            "range" => &mut self.range,
            "range_stream" => &mut self.range_stream,
            "put" => &mut self.put,
            "delete" => &mut self.delete,
            "txn" => &mut self.txn,
            "compact" => &mut self.compact,
            "lease" => &mut self.lease,
            "watch" => &mut self.watch,
            "sync" => &mut self.sync,
            "hash" => &mut self.hash,
            "maintenance" => &mut self.maintenance,
            "alarm" => &mut self.alarm,
            "auth" => &mut self.auth,
            "restart" => &mut self.restart,
            _ => return None,
        })
    }
}

/// Streams that live long and carry several watches.
const STREAMS: [&str; 3] = ["r", "s", "t"];
const LEASES: i64 = 4;
const USERS: [&str; 3] = ["root", "alice", "bob"];
const ROLES: [&str; 3] = ["root", "reader", "writer"];
/// How far back a compaction or a watch reaches, at most.
const HISTORY: i64 = 40;
/// How many commands an alarm stays on.
const ALARM_LENGTH: usize = 6;

pub struct Generator {
    random: Random,
    weights: Weights,
    /// Streams made for watches of the future so far; each has one watch, and its own name.
    future_streams: u32,
    /// Leases whose id the server picked so far; their terms differ, so that their order does not depend on a moment.
    picked_leases: i64,
}

impl Generator {
    pub fn new(seed: u64, weights: Weights) -> Self {
        Self { random: Random::new(seed), weights, future_streams: 0, picked_leases: 0 }
    }

    /// A program of about `length` commands that ends with everything shown.
    pub fn program(&mut self, length: usize) -> Vec<Command> {
        (self.future_streams, self.picked_leases) = (0, 0);
        let mut program = Vec::with_capacity(length + 16);
        if self.weights.auth > 0 {
            self.enable_auth(&mut program);
        }
        while program.len() < length {
            self.push(&mut program);
        }
        program.push(Command::Stream(StreamCommand::Sync));
        program.push(Command::Range(self.random.everything()));
        program
    }

    fn push(&mut self, program: &mut Vec<Command>) {
        let weights = &self.weights;
        let table = [
            weights.range,
            weights.range_stream,
            weights.put,
            weights.delete,
            weights.txn,
            weights.compact,
            weights.lease,
            weights.watch,
            weights.sync,
            weights.hash,
            weights.maintenance,
            weights.alarm,
            weights.auth,
            weights.restart,
        ];
        let command = match self.random.weighted(&table) {
            0 => Command::Range(self.random.range(0)),
            1 => Command::RangeStream(self.range_stream()),
            2 => Command::Put(self.random.put()),
            3 => Command::Delete(self.random.delete()),
            4 => Command::Txn(self.random.txn()),
            5 => {
                let revision = match self.random.below(8) {
                    0 => symbol::head(1),
                    1 => self.random.between(-1, 0),
                    _ => symbol::head(-self.random.between(0, HISTORY)),
                };
                Command::Compact(CompactionRequest { revision, physical: true })
            }
            6 => self.lease(),
            7 => Command::Stream(self.watch()),
            8 => Command::Stream(StreamCommand::Sync),
            9 => Command::HashKv(symbol::head(-self.random.between(0, HISTORY))),
            10 => self.maintenance(),
            11 => return self.alarm(program),
            12 => Command::Auth(self.auth()),
            _ => [Command::Restart, Command::Kill][self.random.index(2)].clone(),
        };
        program.push(command);
    }

    /// etcd refuses to stream in another order, but not a sort target without an order: then it goes on after the last
    /// key it has sent, whichever that was, and counts what is left from there.
    fn range_stream(&mut self) -> RangeRequest {
        let mut request = self.random.range(0);
        if request.sort_order == 0 {
            request.sort_target = 0;
        }
        request
    }

    fn lease(&mut self) -> Command {
        let id = self.random.between(1, LEASES);
        match self.random.below(10) {
            0..3 => Command::LeaseGrant(LeaseGrantRequest { ttl: 1000 * id, id }),
            3 => match self.random.below(4) {
                0 => {
                    self.picked_leases += 1;
                    let ttl = 1000 * LEASES + 1000 * self.picked_leases;
                    Command::LeaseGrant(LeaseGrantRequest { ttl, id: 0 })
                }
                1 => Command::LeaseGrant(LeaseGrantRequest { ttl: 9_000_000_001, id }),
                2 => Command::LeaseRevoke(symbol::parse("#1").expect("a lease symbol")),
                _ => Command::LeaseKeepAlive(symbol::parse("#1").expect("a lease symbol")),
            },
            4 => Command::LeaseRevoke(id),
            5 => Command::LeaseKeepAlive(id),
            6..9 => Command::LeaseTimeToLive(LeaseTimeToLiveRequest { id, keys: self.random.chance(3, 4) }),
            _ => Command::LeaseList,
        }
    }

    fn watch(&mut self) -> StreamCommand {
        let stream = STREAMS[self.random.index(STREAMS.len())].to_string();
        match self.random.below(10) {
            0..2 => return StreamCommand::Close { stream },
            2 => return StreamCommand::Cancel { stream, id: self.random.between(0, 2) },
            _ => {}
        }
        let (key, range_end) = self.random.keys();
        let mut request = WatchCreateRequest {
            key,
            range_end,
            prev_kv: self.random.chance(1, 2),
            fragment: self.random.chance(1, 4),
            progress_notify: self.random.chance(1, 4),
            ..Default::default()
        };
        for filter in 0..3 {
            if self.random.chance(1, 8) {
                request.filters.push(filter);
            }
        }
        if self.random.chance(1, 6) {
            request.watch_id = [1, 5, -5][self.random.index(3)];
        }
        request.start_revision = match self.random.below(12) {
            0..5 => 0,
            5..10 => symbol::head(-self.random.between(0, HISTORY)),
            10 => self.random.between(-1, 1),
            _ => {
                self.future_streams += 1;
                request.start_revision = symbol::head(self.random.between(2, 10));
                return StreamCommand::Watch { stream: format!("f{}", self.future_streams), request };
            }
        };
        StreamCommand::Watch { stream, request }
    }

    fn maintenance(&mut self) -> Command {
        match self.random.below(4) {
            0 => Command::Status,
            1 => Command::MemberList { linearizable: self.random.chance(1, 2) },
            2 => Command::Defragment,
            _ => Command::Alarm(AlarmRequest {
                action: 0,
                member_id: 0,
                alarm: self.random.between(0, 2) as i32,
            }),
        }
    }

    /// An alarm, what happens under it, and its end.
    fn alarm(&mut self, program: &mut Vec<Command>) {
        let alarm = [AlarmType::Nospace, AlarmType::Corrupt][self.random.index(2)];
        let request = |action: alarm_request::AlarmAction| {
            Command::Alarm(AlarmRequest {
                action: action.into(),
                member_id: symbol::SELF,
                alarm: alarm.into(),
            })
        };
        program.push(request(alarm_request::AlarmAction::Activate));
        let saved = self.weights.alarm;
        self.weights.alarm = 0;
        for _ in 0..ALARM_LENGTH {
            self.push(program);
        }
        self.weights.alarm = saved;
        program.push(request(alarm_request::AlarmAction::Deactivate));
    }

    fn enable_auth(&mut self, program: &mut Vec<Command>) {
        let add = |name: &str| {
            let (name, password) = (name.to_string(), name.to_string());
            AuthCommand::UserAdd(AuthUserAddRequest { name, password, ..Default::default() })
        };
        let grant = |user: &str, role: &str| AuthCommand::UserGrant { user: user.into(), role: role.into() };
        let commands = USERS
            .iter()
            .map(|user| add(user))
            .chain(ROLES.iter().map(|role| AuthCommand::RoleAdd(role.to_string())))
            .chain([
                grant("root", "root"),
                grant("alice", "reader"),
                grant("bob", "writer"),
                AuthCommand::Enable,
            ])
            .chain([login("root", "root")]);
        program.extend(commands.map(Command::Auth));
    }

    fn auth(&mut self) -> AuthCommand {
        let user = USERS[self.random.index(3)].to_string();
        let role = ROLES[self.random.index(3)].to_string();
        match self.random.below(30) {
            0..12 => login(&user, &user),
            12 => login(&user, "wrong"),
            13 => AuthCommand::Logout,
            14 => AuthCommand::Status,
            15 => AuthCommand::UserGet(user),
            16 => AuthCommand::UserList,
            17 => AuthCommand::RoleGet(role),
            18 => AuthCommand::RoleList,
            19 => AuthCommand::UserGrant { user, role },
            20 => AuthCommand::UserRevoke { user, role },
            21..25 => AuthCommand::RoleGrant { role, permission: Some(self.permission()) },
            25 => {
                let Permission { key, range_end, .. } = self.permission();
                AuthCommand::RoleRevoke { role, key, range_end }
            }
            26 => AuthCommand::UserPassword { name: user.clone(), password: user },
            27 if self.random.chance(1, 3) => AuthCommand::Disable,
            27 => AuthCommand::Enable,
            28 if self.random.chance(1, 4) => AuthCommand::UserDelete(user),
            28 => {
                let options = self.random.chance(1, 4).then_some(UserAddOptions { no_password: true });
                let password = if options.is_some() { String::new() } else { user.clone() };
                let hashed_password = String::new();
                AuthCommand::UserAdd(AuthUserAddRequest { name: user, password, options, hashed_password })
            }
            _ if self.random.chance(1, 4) => AuthCommand::RoleDelete(role),
            _ => AuthCommand::RoleAdd(role),
        }
    }

    fn permission(&mut self) -> Permission {
        let (key, range_end): (Bytes, Bytes) = self.random.keys();
        Permission { perm_type: self.random.between(0, 2) as i32, key, range_end }
    }
}

fn login(name: &str, password: &str) -> AuthCommand {
    AuthCommand::Login { name: name.into(), password: password.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse, print};

    #[test]
    fn every_command_survives_printing_and_parsing() {
        let every = Weights { range_stream: 50, alarm: 5, auth: 50, restart: 5, ..Weights::default() };
        for command in Generator::new(1, every).program(20_000) {
            let text = print::command(&command);
            assert_eq!(parse::commands(&text).unwrap(), [command], "{text}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_program() {
        let program = |seed| Generator::new(seed, Weights::default()).program(500);
        assert_eq!(program(7), program(7));
        assert_ne!(program(7), program(8));
    }
}
