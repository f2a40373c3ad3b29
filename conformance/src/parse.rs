//! Text to commands: the language of the transcripts.
//!
//! One command a line, words separated by blanks, options as `name=value` or bare flags, transactions as
//! `txn { if mod(a) = 3 ; then put a 2 ; get a ; else del a }`. `times 100 put k% v` stands for a hundred commands with
//! `%` counting up from `000`. The grammar of each command stands in `conformance/transcripts/README.md`.

mod keyspace;
mod words;

use anyhow::{Result, bail};
use proto::authpb::{Permission, permission};
use proto::etcdserverpb::{
    AlarmRequest, AlarmType, AuthUserAddRequest, CompactionRequest, DowngradeRequest, LeaseGrantRequest,
    LeaseTimeToLiveRequest, WatchCreateRequest, alarm_request, downgrade_request, watch_create_request,
};

use self::words::Words;
use crate::command::{AuthCommand, Command, StreamCommand};
use crate::symbol;

/// The commands of one line: one, or many for `times`.
///
/// # Errors
/// When the text is not in the language; the message names the word.
pub fn commands(text: &str) -> Result<Vec<Command>> {
    let mut words = Words::of(text)?;
    if words.take_if("times") {
        let count = words.number("times")? as usize;
        return words.repeated(count)?.iter_mut().map(command).collect();
    }
    Ok(vec![command(&mut words)?])
}

fn command(words: &mut Words) -> Result<Command> {
    let verb = words.next("a command")?;
    let command = match verb.as_str() {
        "get" => Command::Range(keyspace::range(words)?),
        "stream" => Command::RangeStream(keyspace::range(words)?),
        "put" => Command::Put(keyspace::put(words)?),
        "del" => Command::Delete(keyspace::delete(words)?),
        "txn" => Command::Txn(keyspace::txn(words)?),
        "compact" => Command::Compact(CompactionRequest {
            revision: words.revision("compact")?,
            physical: words.take_if("physical"),
        }),
        "lease" => lease(words)?,
        "watch" | "cancel" | "progress" | "expect" | "events" | "sync" | "close" => {
            Command::Stream(stream(&verb, words)?)
        }
        "status" => Command::Status,
        "hash" => Command::Hash,
        "hashkv" => Command::HashKv(if words.is_done() { 0 } else { words.revision("hashkv")? }),
        "alarm" => Command::Alarm(alarm(words)?),
        "defrag" => Command::Defragment,
        "move-leader" => Command::MoveLeader(words.member()?),
        "downgrade" => Command::Downgrade(downgrade(words)?),
        "members" => Command::MemberList { linearizable: !words.take_if("serializable") },
        "auth" | "user" | "role" | "login" | "logout" => Command::Auth(auth(&verb, words)?),
        "restart" => Command::Restart,
        "kill" => Command::Kill,
        other => bail!("unknown command {other:?}"),
    };
    words.expect_done()?;
    Ok(command)
}

fn lease(words: &mut Words) -> Result<Command> {
    Ok(match words.next("a lease command")?.as_str() {
        "grant" => {
            let mut request = LeaseGrantRequest { ttl: words.integer("the TTL")?, id: 0 };
            while let Some((name, value)) = words.option() {
                match name.as_str() {
                    "id" => request.id = symbol::parse(&value)?,
                    _ => bail!("unknown option {name} of lease grant"),
                }
            }
            Command::LeaseGrant(request)
        }
        "revoke" => Command::LeaseRevoke(words.revision("the lease id")?),
        "keepalive" => Command::LeaseKeepAlive(words.revision("the lease id")?),
        "ttl" => {
            let id = words.revision("the lease id")?;
            Command::LeaseTimeToLive(LeaseTimeToLiveRequest { id, keys: words.take_if("keys") })
        }
        "list" => Command::LeaseList,
        other => bail!("unknown lease command {other:?}"),
    })
}

fn stream(verb: &str, words: &mut Words) -> Result<StreamCommand> {
    if verb == "sync" {
        return Ok(StreamCommand::Sync);
    }
    let stream = words.next("a stream's name")?;
    Ok(match verb {
        "watch" => StreamCommand::Watch { stream, request: watch(words)? },
        "cancel" => StreamCommand::Cancel { stream, id: words.integer("the watch id")? },
        "progress" => StreamCommand::Progress { stream },
        "expect" => StreamCommand::Expect { stream, responses: words.number("how many responses")? as usize },
        "events" => StreamCommand::Events { stream, events: words.number("how many events")? as usize },
        "close" => StreamCommand::Close { stream },
        other => bail!("unknown stream command {other:?}"),
    })
}

fn watch(words: &mut Words) -> Result<WatchCreateRequest> {
    let (key, range_end) = keyspace::keys(words)?;
    let mut request = WatchCreateRequest { key, range_end, ..Default::default() };
    while !words.is_done() {
        if let Some((name, value)) = words.option() {
            match name.as_str() {
                "rev" => request.start_revision = symbol::parse(&value)?,
                "id" => request.watch_id = symbol::parse(&value)?,
                "filter" => request.filters.push(value.parse()?),
                _ => bail!("unknown option {name} of watch"),
            }
            continue;
        }
        match words.next("a flag")?.as_str() {
            "prev_kv" => request.prev_kv = true,
            "progress_notify" => request.progress_notify = true,
            "fragment" => request.fragment = true,
            "noput" => request.filters.push(watch_create_request::FilterType::Noput as i32),
            "nodelete" => request.filters.push(watch_create_request::FilterType::Nodelete as i32),
            other => bail!("unknown flag {other} of watch"),
        }
    }
    Ok(request)
}

fn alarm(words: &mut Words) -> Result<AlarmRequest> {
    let action = match words.next("an alarm action")?.as_str() {
        "get" => alarm_request::AlarmAction::Get,
        "activate" => alarm_request::AlarmAction::Activate,
        "deactivate" => alarm_request::AlarmAction::Deactivate,
        other => bail!("unknown alarm action {other:?}"),
    };
    let alarm = match words.next("an alarm type")?.as_str() {
        "none" => AlarmType::None,
        "nospace" => AlarmType::Nospace,
        "corrupt" => AlarmType::Corrupt,
        other => bail!("unknown alarm type {other:?}"),
    };
    let member_id = if words.is_done() { 0 } else { words.member()? };
    Ok(AlarmRequest { action: action.into(), member_id, alarm: alarm.into() })
}

fn downgrade(words: &mut Words) -> Result<DowngradeRequest> {
    let action = match words.next("a downgrade action")?.as_str() {
        "validate" => downgrade_request::DowngradeAction::Validate,
        "enable" => downgrade_request::DowngradeAction::Enable,
        "cancel" => downgrade_request::DowngradeAction::Cancel,
        other => bail!("unknown downgrade action {other:?}"),
    };
    let version = if words.is_done() { String::new() } else { words.text("the version")? };
    Ok(DowngradeRequest { action: action.into(), version })
}

fn auth(verb: &str, words: &mut Words) -> Result<AuthCommand> {
    Ok(match verb {
        "login" => {
            AuthCommand::Login { name: words.text("the user")?, password: words.text("the password")? }
        }
        "logout" => AuthCommand::Logout,
        "auth" => match words.next("an auth command")?.as_str() {
            "enable" => AuthCommand::Enable,
            "disable" => AuthCommand::Disable,
            "status" => AuthCommand::Status,
            other => bail!("unknown auth command {other:?}"),
        },
        "user" => user(words)?,
        _ => role(words)?,
    })
}

fn user(words: &mut Words) -> Result<AuthCommand> {
    let verb = words.next("a user command")?;
    if verb == "list" {
        return Ok(AuthCommand::UserList);
    }
    let name = words.text("the user's name")?;
    Ok(match verb.as_str() {
        "add" => {
            let password = words.text("the password")?;
            let no_password = words.take_if("no_password");
            let options = no_password.then_some(proto::authpb::UserAddOptions { no_password });
            AuthCommand::UserAdd(AuthUserAddRequest {
                name,
                password,
                options,
                hashed_password: String::new(),
            })
        }
        "get" => AuthCommand::UserGet(name),
        "delete" => AuthCommand::UserDelete(name),
        "passwd" => AuthCommand::UserPassword { name, password: words.text("the password")? },
        "grant" => AuthCommand::UserGrant { user: name, role: words.text("the role")? },
        "revoke" => AuthCommand::UserRevoke { user: name, role: words.text("the role")? },
        other => bail!("unknown user command {other:?}"),
    })
}

fn role(words: &mut Words) -> Result<AuthCommand> {
    let verb = words.next("a role command")?;
    if verb == "list" {
        return Ok(AuthCommand::RoleList);
    }
    let name = words.text("the role's name")?;
    Ok(match verb.as_str() {
        "add" => AuthCommand::RoleAdd(name),
        "get" => AuthCommand::RoleGet(name),
        "delete" => AuthCommand::RoleDelete(name),
        "grant" => {
            if words.take_if("nothing") {
                return Ok(AuthCommand::RoleGrant { role: name, permission: None });
            }
            let perm_type = match words.next("a permission")?.as_str() {
                "read" => permission::Type::Read,
                "write" => permission::Type::Write,
                "readwrite" => permission::Type::Readwrite,
                other => bail!("unknown permission {other:?}"),
            };
            let (key, range_end) = keyspace::keys(words)?;
            let permission = Permission { perm_type: perm_type.into(), key, range_end };
            AuthCommand::RoleGrant { role: name, permission: Some(permission) }
        }
        "revoke" => {
            let (key, range_end) = keyspace::keys(words)?;
            AuthCommand::RoleRevoke { role: name, key, range_end }
        }
        other => bail!("unknown role command {other:?}"),
    })
}
