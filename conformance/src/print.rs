//! Commands to text: the exact inverse of [`crate::parse`], for programs that were made up and not written.

use proto::authpb::permission;
use proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{
    AlarmRequest, AlarmType, Compare, DeleteRangeRequest, DowngradeRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, WatchCreateRequest, alarm_request, downgrade_request,
};

use crate::command::{AuthCommand, Command, StreamCommand};
use crate::{literal, symbol};

pub fn command(command: &Command) -> String {
    match command {
        Command::Range(request) => format!("get {}", range(request)),
        Command::RangeStream(request) => format!("stream {}", range(request)),
        Command::Put(request) => put(request),
        Command::Delete(request) => delete(request),
        Command::Txn(request) => txn(request),
        Command::Compact(request) => {
            format!("compact {}{}", symbol::print(request.revision), flag(request.physical, "physical"))
        }
        Command::LeaseGrant(request) if request.id == 0 => format!("lease grant {}", request.ttl),
        Command::LeaseGrant(request) => {
            format!("lease grant {} id={}", request.ttl, symbol::print(request.id))
        }
        Command::LeaseRevoke(id) => format!("lease revoke {}", symbol::print(*id)),
        Command::LeaseKeepAlive(id) => format!("lease keepalive {}", symbol::print(*id)),
        Command::LeaseTimeToLive(request) => {
            format!("lease ttl {}{}", symbol::print(request.id), flag(request.keys, "keys"))
        }
        Command::LeaseList => "lease list".into(),
        Command::Stream(command) => stream(command),
        Command::Status => "status".into(),
        Command::Hash => "hash".into(),
        Command::HashKv(revision) => format!("hashkv {}", symbol::print(*revision)),
        Command::Alarm(request) => alarm(request),
        Command::Defragment => "defrag".into(),
        Command::MoveLeader(id) => format!("move-leader {}", member(*id)),
        Command::Downgrade(request) => downgrade(request),
        Command::MemberList { linearizable } => format!("members{}", flag(!linearizable, "serializable")),
        Command::Auth(command) => auth(command),
        Command::Restart => "restart".into(),
        Command::Kill => "kill".into(),
    }
}

fn flag(set: bool, name: &str) -> String {
    if set { format!(" {name}") } else { String::new() }
}

fn number(value: i64, name: &str) -> String {
    if value == 0 { String::new() } else { format!(" {name}={}", symbol::print(value)) }
}

fn member(id: u64) -> String {
    if id == symbol::SELF { "self".into() } else { id.to_string() }
}

pub fn keys(key: &[u8], range_end: &[u8]) -> String {
    match (key, range_end) {
        (b"\0", b"\0") => "all".into(),
        (key, b"") => literal::print(key),
        (key, b"\0") => format!("from {}", literal::print(key)),
        (key, end) => format!("{} {}", literal::print(key), literal::print(end)),
    }
}

fn range(request: &RangeRequest) -> String {
    let sort_target = ["", " sort=version", " sort=create", " sort=mod", " sort=value"];
    let sort_order = ["", " order=asc", " order=desc"];
    let named = |names: &[&str], value: i32, name: &str| {
        let known = usize::try_from(value).ok().and_then(|index| names.get(index)).map(ToString::to_string);
        known.unwrap_or_else(|| format!(" {name}={value}"))
    };
    [
        keys(&request.key, &request.range_end),
        number(request.limit, "limit"),
        number(request.revision, "rev"),
        named(&sort_target, request.sort_target, "sort"),
        named(&sort_order, request.sort_order, "order"),
        number(request.min_mod_revision, "min_mod"),
        number(request.max_mod_revision, "max_mod"),
        number(request.min_create_revision, "min_create"),
        number(request.max_create_revision, "max_create"),
        flag(request.serializable, "serializable"),
        flag(request.keys_only, "keys_only"),
        flag(request.count_only, "count_only"),
    ]
    .concat()
}

fn put(request: &PutRequest) -> String {
    [
        format!("put {} {}", literal::print(&request.key), literal::print(&request.value)),
        number(request.lease, "lease"),
        flag(request.prev_kv, "prev_kv"),
        flag(request.ignore_value, "ignore_value"),
        flag(request.ignore_lease, "ignore_lease"),
    ]
    .concat()
}

fn delete(request: &DeleteRangeRequest) -> String {
    format!("del {}{}", keys(&request.key, &request.range_end), flag(request.prev_kv, "prev_kv"))
}

fn txn(request: &TxnRequest) -> String {
    let mut clauses = Vec::new();
    if !request.compare.is_empty() {
        let compares: Vec<String> = request.compare.iter().map(compare).collect();
        clauses.push(format!("if {}", compares.join(" , ")));
    }
    for (word, branch) in [("then", &request.success), ("else", &request.failure)] {
        if !branch.is_empty() {
            let operations: Vec<String> = branch.iter().map(operation).collect();
            clauses.push(format!("{word} {}", operations.join(" ; ")));
        }
    }
    if clauses.is_empty() { "txn { }".into() } else { format!("txn {{ {} }}", clauses.join(" ; ")) }
}

fn operation(operation: &RequestOp) -> String {
    match &operation.request {
        Some(Request::RequestRange(request)) => format!("get {}", range(request)),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete(request),
        Some(Request::RequestTxn(request)) => txn(request),
        None => "nothing".into(),
    }
}

fn compare(compare: &Compare) -> String {
    let name = |target: CompareTarget| match target {
        CompareTarget::Version => "version",
        CompareTarget::Create => "create",
        CompareTarget::Mod => "mod",
        CompareTarget::Value => "value",
        CompareTarget::Lease => "lease",
    };
    let (kind, operand) = match &compare.target_union {
        None => (compare.target(), "none".into()),
        Some(TargetUnion::Version(value)) => (CompareTarget::Version, symbol::print(*value)),
        Some(TargetUnion::CreateRevision(value)) => (CompareTarget::Create, symbol::print(*value)),
        Some(TargetUnion::ModRevision(value)) => (CompareTarget::Mod, symbol::print(*value)),
        Some(TargetUnion::Lease(value)) => (CompareTarget::Lease, symbol::print(*value)),
        Some(TargetUnion::Value(value)) => (CompareTarget::Value, literal::print(value)),
    };
    let prefix = if kind == compare.target() { String::new() } else { format!("{}:", name(kind)) };
    let sign = ["=", ">", "<", "!="][compare.result as usize % 4];
    format!("{}({}) {sign} {prefix}{operand}", name(compare.target()), keys(&compare.key, &compare.range_end))
}

fn stream(command: &StreamCommand) -> String {
    match command {
        StreamCommand::Watch { stream, request } => format!("watch {stream} {}", watch(request)),
        StreamCommand::Cancel { stream, id } => format!("cancel {stream} {id}"),
        StreamCommand::Progress { stream } => format!("progress {stream}"),
        StreamCommand::Expect { stream, responses } => format!("expect {stream} {responses}"),
        StreamCommand::Events { stream, events } => format!("events {stream} {events}"),
        StreamCommand::Sync => "sync".into(),
        StreamCommand::Close { stream } => format!("close {stream}"),
    }
}

fn watch(request: &WatchCreateRequest) -> String {
    let filters = request.filters.iter().map(|filter| match filter {
        0 => " noput".into(),
        1 => " nodelete".into(),
        other => format!(" filter={other}"),
    });
    [
        keys(&request.key, &request.range_end),
        number(request.start_revision, "rev"),
        number(request.watch_id, "id"),
        filters.collect(),
        flag(request.prev_kv, "prev_kv"),
        flag(request.progress_notify, "progress_notify"),
        flag(request.fragment, "fragment"),
    ]
    .concat()
}

fn alarm(request: &AlarmRequest) -> String {
    let action = match request.action() {
        alarm_request::AlarmAction::Get => "get",
        alarm_request::AlarmAction::Activate => "activate",
        alarm_request::AlarmAction::Deactivate => "deactivate",
    };
    format!("alarm {action} {} {}", alarm_type(request.alarm()), member(request.member_id))
}

pub fn alarm_type(alarm: AlarmType) -> &'static str {
    match alarm {
        AlarmType::None => "none",
        AlarmType::Nospace => "nospace",
        AlarmType::Corrupt => "corrupt",
    }
}

fn downgrade(request: &DowngradeRequest) -> String {
    let action = match request.action() {
        downgrade_request::DowngradeAction::Validate => "validate",
        downgrade_request::DowngradeAction::Enable => "enable",
        downgrade_request::DowngradeAction::Cancel => "cancel",
    };
    let version = if request.version.is_empty() { String::new() } else { format!(" {}", request.version) };
    format!("downgrade {action}{version}")
}

fn auth(command: &AuthCommand) -> String {
    let text = |text: &str| literal::print(text.as_bytes());
    match command {
        AuthCommand::Enable => "auth enable".into(),
        AuthCommand::Disable => "auth disable".into(),
        AuthCommand::Status => "auth status".into(),
        AuthCommand::Login { name, password } => format!("login {} {}", text(name), text(password)),
        AuthCommand::Logout => "logout".into(),
        AuthCommand::UserAdd(request) => {
            let no_password = request.options.as_ref().is_some_and(|options| options.no_password);
            format!(
                "user add {} {}{}",
                text(&request.name),
                text(&request.password),
                flag(no_password, "no_password")
            )
        }
        AuthCommand::UserGet(name) => format!("user get {}", text(name)),
        AuthCommand::UserList => "user list".into(),
        AuthCommand::UserDelete(name) => format!("user delete {}", text(name)),
        AuthCommand::UserPassword { name, password } => {
            format!("user passwd {} {}", text(name), text(password))
        }
        AuthCommand::UserGrant { user, role } => format!("user grant {} {}", text(user), text(role)),
        AuthCommand::UserRevoke { user, role } => format!("user revoke {} {}", text(user), text(role)),
        AuthCommand::RoleAdd(name) => format!("role add {}", text(name)),
        AuthCommand::RoleGet(name) => format!("role get {}", text(name)),
        AuthCommand::RoleList => "role list".into(),
        AuthCommand::RoleDelete(name) => format!("role delete {}", text(name)),
        AuthCommand::RoleGrant { role, permission: None } => format!("role grant {} nothing", text(role)),
        AuthCommand::RoleGrant { role, permission: Some(granted) } => {
            let kind = permission_type(granted.perm_type());
            format!("role grant {} {kind} {}", text(role), keys(&granted.key, &granted.range_end))
        }
        AuthCommand::RoleRevoke { role, key, range_end } => {
            format!("role revoke {} {}", text(role), keys(key, range_end))
        }
    }
}

pub fn permission_type(kind: permission::Type) -> &'static str {
    match kind {
        permission::Type::Read => "read",
        permission::Type::Write => "write",
        permission::Type::Readwrite => "readwrite",
    }
}
