//! Answers to text, whole: every field a server sends is either shown or, when the server picks it by itself, checked
//! against what it picked before and shown as a name.
//!
//! Named exceptions, complete: cluster and member ids, raft terms and indexes, database sizes and whole-file hashes,
//! lease ids the server picked, remaining lease times, the order of alarms and of a lease's keys (Go maps there), auth
//! tokens, member names and addresses.

use proto::authpb::Permission;
use proto::etcdserverpb::response_op::Response;
use proto::etcdserverpb::{
    AlarmResponse, DeleteRangeResponse, LeaseLeasesResponse, LeaseTimeToLiveResponse, MemberListResponse,
    PutResponse, RangeResponse, ResponseHeader, StatusResponse, TxnResponse, WatchResponse,
};
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use tonic::Status;

use crate::{literal, print};

/// A value longer than this that is not a run of one byte is shown by length and checksum.
const VALUE_SHOWN_MAX: usize = 256;

/// What the server picked by itself.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub cluster_id: u64,
    pub member_id: u64,
    /// Lease ids, in the order they were granted; shown as `#1`, `#2`, ...
    pub leases: Vec<i64>,
}

impl Names {
    /// `rev=N` for a complete header, `(rev=N)` for one with a revision only, `()` for an empty and `(none)` for no header.
    pub fn header(&self, header: Option<&ResponseHeader>) -> String {
        let Some(header) = header else { return "(none)".into() };
        let complete = header.cluster_id == self.cluster_id
            && header.member_id == self.member_id
            && header.cluster_id != 0
            && header.member_id != 0
            && header.raft_term != 0;
        let bare = header.cluster_id == 0 && header.member_id == 0 && header.raft_term == 0;
        match header.revision {
            revision if complete => format!("rev={revision}"),
            0 if bare => "()".into(),
            revision if bare => format!("(rev={revision})"),
            revision => format!(
                "(rev={revision} cluster={} member={} term={})",
                named(header.cluster_id, self.cluster_id),
                named(header.member_id, self.member_id),
                if header.raft_term == 0 { "0" } else { "*" }
            ),
        }
    }

    pub fn lease(&self, id: i64) -> String {
        match self.leases.iter().position(|picked| *picked == id) {
            Some(index) => format!("#{}", index + 1),
            None => id.to_string(),
        }
    }

    pub fn member(&self, id: u64) -> String {
        if id == self.member_id { "self".into() } else { id.to_string() }
    }

    pub fn key_value(&self, kv: &KeyValue) -> String {
        let mut text = format!("{}={}", bytes(&kv.key), bytes(&kv.value));
        self.push_revisions(&mut text, kv);
        text
    }

    fn push_revisions(&self, text: &mut String, kv: &KeyValue) {
        let fields = [("create", kv.create_revision), ("mod", kv.mod_revision), ("version", kv.version)];
        for (name, value) in fields {
            if value != 0 {
                text.push_str(&format!(" {name}={value}"));
            }
        }
        if kv.lease != 0 {
            text.push_str(&format!(" lease={}", self.lease(kv.lease)));
        }
    }

    pub fn range(&self, response: &RangeResponse) -> String {
        let more = if response.more { " more" } else { "" };
        let mut text = format!("{} count={}{more}", self.header(response.header.as_ref()), response.count);
        for kv in &response.kvs {
            text.push_str(&format!("\n  {}", self.key_value(kv)));
        }
        text
    }

    pub fn put(&self, response: &PutResponse) -> String {
        let prev = response.prev_kv.as_ref().map(|kv| format!("\n  prev {}", self.key_value(kv)));
        format!("{}{}", self.header(response.header.as_ref()), prev.unwrap_or_default())
    }

    pub fn delete(&self, response: &DeleteRangeResponse) -> String {
        let mut text = format!("{} deleted={}", self.header(response.header.as_ref()), response.deleted);
        for kv in &response.prev_kvs {
            text.push_str(&format!("\n  prev {}", self.key_value(kv)));
        }
        text
    }

    pub fn txn(&self, response: &TxnResponse) -> String {
        let outcome = if response.succeeded { "succeeded" } else { "failed" };
        let mut text = format!("{} {outcome}", self.header(response.header.as_ref()));
        for operation in &response.responses {
            let part = match &operation.response {
                Some(Response::ResponseRange(response)) => format!("get {}", self.range(response)),
                Some(Response::ResponsePut(response)) => format!("put {}", self.put(response)),
                Some(Response::ResponseDeleteRange(response)) => format!("del {}", self.delete(response)),
                Some(Response::ResponseTxn(response)) => format!("txn {}", self.txn(response)),
                None => "nothing".into(),
            };
            text.push_str(&format!("\n  {}", part.replace('\n', "\n  ")));
        }
        text
    }

    /// The remaining time is shown as `*` when it is within the granted one.
    pub fn lease_time(&self, response: &LeaseTimeToLiveResponse) -> String {
        let remaining = if (0..=response.granted_ttl).contains(&response.ttl) && response.granted_ttl > 0 {
            "*".into()
        } else {
            response.ttl.to_string()
        };
        let mut text = format!(
            "{} id={} ttl={remaining} granted={}",
            self.header(response.header.as_ref()),
            self.lease(response.id),
            response.granted_ttl
        );
        let mut keys: Vec<String> = response.keys.iter().map(|key| bytes(key)).collect();
        keys.sort();
        for key in keys {
            text.push_str(&format!("\n  {key}"));
        }
        text
    }

    pub fn lease_list(&self, response: &LeaseLeasesResponse) -> String {
        let leases: String =
            response.leases.iter().map(|lease| format!(" {}", self.lease(lease.id))).collect();
        format!("{} leases:{leases}", self.header(response.header.as_ref()))
    }

    pub fn alarm(&self, response: &AlarmResponse) -> String {
        let alarms = response.alarms.iter();
        let named = alarms.map(|alarm| (print::alarm_type(alarm.alarm()), self.member(alarm.member_id)));
        let mut lines: Vec<String> = named.map(|(kind, member)| format!("\n  {kind} {member}")).collect();
        lines.sort();
        self.header(response.header.as_ref()) + &lines.concat()
    }

    pub fn status(&self, response: &StatusResponse) -> String {
        let size = |value: i64| if value >= 0 { "*".into() } else { value.to_string() };
        let raft = response.raft_index > 0
            && response.raft_applied_index > 0
            && response.raft_applied_index <= response.raft_index
            && response.header.as_ref().is_some_and(|header| header.raft_term == response.raft_term);
        let downgrade = response.downgrade_info.as_ref();
        let mut text = format!(
            "{} version={} storage={} leader={} raft={} size={} in_use={} quota={} learner={} downgrade={}",
            self.header(response.header.as_ref()),
            response.version,
            response.storage_version,
            self.member(response.leader),
            if raft { "*" } else { "inconsistent" },
            size(response.db_size),
            size(response.db_size_in_use),
            response.db_size_quota,
            response.is_learner,
            downgrade.map_or("(none)".into(), |info| format!("{}:{}", info.enabled, info.target_version)),
        );
        for error in &response.errors {
            let named = error.replace(&self.member_id.to_string(), "self");
            // Go's text form of a message puts one or two blanks between fields, on purpose.
            let words: Vec<&str> = named.split_whitespace().collect();
            text.push_str(&format!("\n  error {}", words.join(" ")));
        }
        text
    }

    pub fn members(&self, response: &MemberListResponse) -> String {
        let mut text = self.header(response.header.as_ref());
        for member in &response.members {
            text.push_str(&format!(
                "\n  {} named={} peer_urls={} client_urls={} learner={}",
                self.member(member.id),
                !member.name.is_empty(),
                !member.peer_ur_ls.is_empty(),
                !member.client_ur_ls.is_empty(),
                member.is_learner
            ));
        }
        text
    }

    pub fn watch(&self, response: &WatchResponse) -> String {
        let mut text = self.watch_head(response);
        for event in &response.events {
            text.push_str(&format!("\n  {}", self.event(event)));
        }
        text
    }

    /// A watch response without its events.
    pub fn watch_head(&self, response: &WatchResponse) -> String {
        let mut text = format!("id={} {}", response.watch_id, self.header(response.header.as_ref()));
        let flags =
            [(response.created, "created"), (response.canceled, "canceled"), (response.fragment, "fragment")];
        for (set, name) in flags {
            if set {
                text.push_str(&format!(" {name}"));
            }
        }
        if response.compact_revision != 0 {
            text.push_str(&format!(" compact_revision={}", response.compact_revision));
        }
        if !response.cancel_reason.is_empty() {
            text.push_str(&format!(" reason={:?}", response.cancel_reason));
        }
        if is_progress(response) {
            text.push_str(" progress");
        }
        text
    }

    pub fn event(&self, event: &Event) -> String {
        let kv = event.kv.clone().unwrap_or_default();
        let mut text = match event.r#type() {
            EventType::Put => format!("put {}", self.key_value(&kv)),
            EventType::Delete if kv.value.is_empty() => {
                let mut text = format!("delete {}", bytes(&kv.key));
                self.push_revisions(&mut text, &kv);
                text
            }
            EventType::Delete => format!("delete {}", self.key_value(&kv)),
        };
        if let Some(prev) = &event.prev_kv {
            text.push_str(&format!(" prev({})", self.key_value(prev)));
        }
        text
    }
}

/// A response that only says how far its watch, or with id -1 its stream, has come.
pub fn is_progress(response: &WatchResponse) -> bool {
    response.events.is_empty() && !response.created && !response.canceled && response.compact_revision == 0
}

pub fn permission(permission: &Permission) -> String {
    let kind = print::permission_type(permission.perm_type());
    format!("{kind} {}", print::keys(&permission.key, &permission.range_end))
}

pub fn error(status: &Status) -> String {
    format!("error {:?}: {}", status.code(), status.message())
}

pub fn bytes(bytes: &[u8]) -> String {
    let run = bytes.first().is_some_and(|first| bytes.iter().all(|byte| byte == first));
    if bytes.len() <= VALUE_SHOWN_MAX || run {
        return literal::print(bytes);
    }
    format!("<{} bytes, crc32c {:08x}>", bytes.len(), crc32c::crc32c(bytes))
}

fn named(id: u64, own: u64) -> String {
    match id {
        0 => "0".into(),
        id if id == own => "own".into(),
        id => format!("{id} (not own)"),
    }
}
