//! Requests as lines of a log: in the text form of protobuf, keys readable, values as their size.
//!
//! Values may be secrets and may be long; neither belongs into a log. Called when a request was slow, never on its way.

use crate::apply::Command;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
};
use std::fmt::Write;

/// Keys and ranges longer than this are cut: they are what a client chose to send.
const KEY_BYTES_MAX: usize = 256;

/// Fields of a message that are not at their defaults, in order.
#[derive(Default)]
struct Fields(String);

impl Fields {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        let gap = if self.0.is_empty() { "" } else { " " };
        write!(self.0, "{gap}{name}:{value}").expect("text grows");
    }

    fn number(&mut self, name: &str, value: i64) {
        if value != 0 {
            self.add(name, value);
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.add(name, value);
        }
    }

    fn key(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.add(name, quoted(value));
        }
    }
}

/// As Go's protobuf writes bytes: what is not printable in octal.
fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for byte in &bytes[..bytes.len().min(KEY_BYTES_MAX)] {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(*byte)]),
            b' '..=b'~' => text.push(char::from(*byte)),
            byte => write!(text, "\\{byte:03o}").expect("text grows"),
        }
    }
    text + if bytes.len() > KEY_BYTES_MAX { "\"..." } else { "\"" }
}

pub fn range(request: &RangeRequest) -> String {
    let mut fields = Fields::default();
    fields.key("key", &request.key);
    fields.key("range_end", &request.range_end);
    fields.number("limit", request.limit);
    fields.number("revision", request.revision);
    if let Ok(order @ (SortOrder::Ascend | SortOrder::Descend)) = SortOrder::try_from(request.sort_order) {
        fields.add("sort_order", order.as_str_name());
    }
    if let Ok(target) = SortTarget::try_from(request.sort_target)
        && target != SortTarget::Key
    {
        fields.add("sort_target", target.as_str_name());
    }
    fields.flag("serializable", request.serializable);
    fields.flag("keys_only", request.keys_only);
    fields.flag("count_only", request.count_only);
    fields.number("min_mod_revision", request.min_mod_revision);
    fields.number("max_mod_revision", request.max_mod_revision);
    fields.number("min_create_revision", request.min_create_revision);
    fields.number("max_create_revision", request.max_create_revision);
    fields.0
}

pub fn put(request: &PutRequest) -> String {
    let mut fields = Fields::default();
    fields.key("key", &request.key);
    fields.number("value_size", request.value.len() as i64);
    fields.number("lease", request.lease);
    fields.flag("prev_kv", request.prev_kv);
    fields.flag("ignore_value", request.ignore_value);
    fields.flag("ignore_lease", request.ignore_lease);
    fields.0
}

pub fn delete_range(request: &DeleteRangeRequest) -> String {
    let mut fields = Fields::default();
    fields.key("key", &request.key);
    fields.key("range_end", &request.range_end);
    fields.flag("prev_kv", request.prev_kv);
    fields.0
}

pub fn txn(request: &TxnRequest) -> String {
    let all = |items: &[RequestOp]| items.iter().map(operation).collect::<Vec<_>>().join(" ");
    let compares: Vec<_> = request.compare.iter().map(compare).collect();
    format!(
        "compare:<{}> success:<{}> failure:<{}>",
        compares.join(" "),
        all(&request.success),
        all(&request.failure)
    )
}

fn compare(compare: &Compare) -> String {
    let mut fields = Fields::default();
    if let Ok(result) = CompareResult::try_from(compare.result)
        && result != CompareResult::Equal
    {
        fields.add("result", result.as_str_name());
    }
    if let Ok(target) = CompareTarget::try_from(compare.target)
        && target != CompareTarget::Version
    {
        fields.add("target", target.as_str_name());
    }
    fields.key("key", &compare.key);
    match &compare.target_union {
        Some(TargetUnion::Version(version)) => fields.add("version", version),
        Some(TargetUnion::CreateRevision(revision)) => fields.add("create_revision", revision),
        Some(TargetUnion::ModRevision(revision)) => fields.add("mod_revision", revision),
        Some(TargetUnion::Value(value)) => fields.add("value_size", value.len()),
        Some(TargetUnion::Lease(lease)) => fields.add("lease", lease),
        None => {}
    }
    fields.key("range_end", &compare.range_end);
    fields.0
}

fn operation(RequestOp { request }: &RequestOp) -> String {
    match request {
        // As etcd: what it takes values out of has other brackets.
        Some(Request::RequestRange(request)) => format!("request_range:{{{}}}", range(request)),
        Some(Request::RequestPut(request)) => format!("request_put:<{}>", put(request)),
        Some(Request::RequestDeleteRange(request)) => {
            format!("request_delete_range:{{{}}}", delete_range(request))
        }
        Some(Request::RequestTxn(request)) => format!("request_txn:<{}>", txn(request)),
        None => String::new(),
    }
}

/// What there is to say of a command; of accounts and logins no more than that they are such.
pub fn command(command: &Command) -> String {
    match command {
        Command::Put(request) => format!("put:<{}>", put(request)),
        Command::DeleteRange(request) => format!("delete_range:<{}>", delete_range(request)),
        Command::Txn(request) => format!("txn:<{}>", txn(request)),
        Command::Compact { revision } => format!("compaction:<revision:{revision}>"),
        Command::LeaseGrant { id, ttl } => format!("lease_grant:<TTL:{ttl} ID:{id}>"),
        Command::LeaseRevoke { id } => format!("lease_revoke:<ID:{id}>"),
        Command::Alarm(_) => "alarm:<>".to_owned(),
        Command::Accounts(_) => "auth:<>".to_owned(),
        Command::Authenticate { .. } => "authenticate:<>".to_owned(),
        Command::Downgrade { .. } => "downgrade:<>".to_owned(),
        Command::PeerUrls(_) => "member_update:<>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_readable_and_values_are_sizes() {
        let put = PutRequest { key: "a\"\0".into(), value: "secret".into(), lease: 7, ..Default::default() };
        let txn = TxnRequest {
            compare: vec![Compare {
                target: CompareTarget::Value as i32,
                key: "a".into(),
                target_union: Some(TargetUnion::Value("secret".into())),
                ..Default::default()
            }],
            success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
            failure: Vec::new(),
        };
        let text = command(&Command::Txn(txn.into()));
        let wanted = r#"txn:<compare:<target:VALUE key:"a" value_size:6> success:<request_put:<key:"a\"\000" value_size:6 lease:7>> failure:<>>"#;
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_range_tells_what_is_not_at_its_default() {
        let request = RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            limit: 5,
            sort_order: 2,
            sort_target: 3,
            keys_only: true,
            ..Default::default()
        };
        let text = r#"key:"k" range_end:"l" limit:5 sort_order:DESCEND sort_target:MOD keys_only:true"#;
        assert_eq!(range(&request), text);
        let long = RangeRequest { key: vec![b'x'; 1000].into(), ..Default::default() };
        assert_eq!(range(&long).len(), "key:\"\"...".len() + KEY_BYTES_MAX);
    }
}
