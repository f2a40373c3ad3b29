//! etcd's flags: their kind, their default, what they are for, and whether they change anything here.

/// What a flag's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Bool,
    Int,
    Uint,
    Uint32,
    Duration,
    /// Separated by commas.
    Urls,
    /// URLs, or `*`.
    Origins,
    /// Names of features and whether they are on.
    Gates,
    OneOf(&'static [&'static str]),
    SomeOf(&'static [&'static str]),
    /// Nothing is looked at: the flag is long gone.
    Anything,
}

/// What a flag does here. There are no peers, no raft log and no bbolt file, so what shapes those does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Some,
    None,
    /// Another value than the default ends the process: what it asks for can't be had.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub about: &'static str,
    pub effect: Effect,
    /// etcd will drop it: what whoever gives it is told, whatever its value.
    pub deprecated: Option<&'static str>,
}

impl Flag {
    const fn new(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Self {
        Flag { name, kind, default, about, effect: Effect::Some, deprecated: None }
    }

    const fn without_effect(self) -> Self {
        Flag { effect: Effect::None, ..self }
    }

    const fn refused(self) -> Self {
        Flag { effect: Effect::Refused, ..self }
    }

    const fn deprecated(self, warning: &'static str) -> Self {
        Flag { deprecated: Some(warning), ..self }
    }

    pub fn find(name: &str) -> Option<&'static Flag> {
        Flag::all().find(|flag| flag.name == name)
    }

    /// Every flag that is taken.
    pub fn all() -> impl Iterator<Item = &'static Flag> {
        SECTIONS.iter().flat_map(|(_, flags)| *flags).chain(GONE)
    }

    /// `max-txn-ops` -> `ETCD_MAX_TXN_OPS`.
    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.name.replace('-', "_").to_uppercase())
    }
}

const ROTATION: &str =
    r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#;

const V2_STAGES: &[&str] = &["write-only", "write-only-skip-check", "write-only-drop-data", "gone"];

/// The flags of etcd 3.7, in the order and under the headings of its help.
pub const SECTIONS: &[(&str, &[Flag])] = &[
    (
        "Member",
        &[
            Flag::new("name", Kind::Text, "default", "Name of this member."),
            Flag::new(
                "data-dir",
                Kind::Text,
                "",
                "Directory of the data; the database is member/state.db in it.",
            ),
            Flag::new("wal-dir", Kind::Text, "", "Directory of the raft log alone.").without_effect(),
            Flag::new(
                "snapshot-count",
                Kind::Uint,
                "10000",
                "Changes after which the raft log is cut by a snapshot.",
            )
            .without_effect(),
            Flag::new(
                "heartbeat-interval",
                Kind::Uint,
                "100",
                "Milliseconds between heartbeats of a leader.",
            )
            .without_effect(),
            Flag::new(
                "election-timeout",
                Kind::Uint,
                "1000",
                "Milliseconds without a leader before an election.",
            )
            .without_effect(),
            Flag::new(
                "initial-election-tick-advance",
                Kind::Bool,
                "true",
                "Whether a member that starts shortens its first election.",
            )
            .without_effect(),
            Flag::new(
                "listen-peer-urls",
                Kind::Urls,
                "http://localhost:2380",
                "URLs to listen on for other members. Bound when given.",
            ),
            Flag::new(
                "listen-client-urls",
                Kind::Urls,
                "http://localhost:2379",
                "URLs to listen on for clients: gRPC, and HTTP unless --listen-client-http-urls is given.",
            ),
            Flag::new(
                "listen-client-http-urls",
                Kind::Urls,
                "",
                "URLs to listen on for HTTP alone; those of --listen-client-urls are for gRPC alone then.",
            ),
            Flag::new("max-snapshots", Kind::Uint, "5", "Snapshot files to keep; 0: all.")
                .without_effect()
                .deprecated("--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8."),
            Flag::new("max-wals", Kind::Uint, "5", "Files of the raft log to keep; 0: all.").without_effect(),
            Flag::new(
                "memory-mlock",
                Kind::Bool,
                "false",
                "Keep this process in memory: none of it is swapped out.",
            ),
            Flag::new(
                "quota-backend-bytes",
                Kind::Int,
                "0",
                "Size of the database, in bytes, at which writes are refused and an alarm is raised; 0: 2 GiB.",
            ),
            Flag::new(
                "backend-bbolt-freelist-type",
                Kind::Text,
                "map",
                "How bbolt keeps account of free pages: array or map.",
            )
            .without_effect(),
            Flag::new(
                "backend-batch-interval",
                Kind::Duration,
                "0",
                "Longest time before bbolt commits what waits.",
            )
            .without_effect(),
            Flag::new(
                "backend-batch-limit",
                Kind::Int,
                "0",
                "Most operations before bbolt commits what waits.",
            )
            .without_effect(),
            Flag::new("max-txn-ops", Kind::Uint, "128", "Most operations of one transaction."),
            Flag::new("max-request-bytes", Kind::Uint, "1572864", "Largest request of a client, in bytes."),
            Flag::new(
                "max-concurrent-streams",
                Kind::Uint32,
                "4294967295",
                "Most streams a client may have open on one connection.",
            ),
            Flag::new(
                "grpc-keepalive-min-time",
                Kind::Duration,
                "5s",
                "Shortest time between two pings of a client with a request under way; who pings more often has to go.",
            ),
            Flag::new(
                "grpc-keepalive-interval",
                Kind::Duration,
                "2h",
                "Time between pings of the server that find out whether a client is still there; 0: no pings.",
            ),
            Flag::new(
                "grpc-keepalive-timeout",
                Kind::Duration,
                "20s",
                "Time a client has to answer such a ping before its connection is closed; 0: 20s.",
            ),
            Flag::new(
                "socket-reuse-port",
                Kind::Bool,
                "false",
                "Let other processes listen on the same ports (SO_REUSEPORT).",
            ),
            Flag::new(
                "socket-reuse-address",
                Kind::Bool,
                "false",
                "Bind ports that old connections still hold (SO_REUSEADDR). Always so.",
            ),
            Flag::new("enable-grpc-gateway", Kind::Bool, "true", "Serve the JSON gateway at /v3/."),
            Flag::new("raft-read-timeout", Kind::Duration, "5s", "Longest wait for another member's bytes.")
                .without_effect(),
            Flag::new(
                "raft-write-timeout",
                Kind::Duration,
                "5s",
                "Longest wait until another member takes bytes.",
            )
            .without_effect(),
            Flag::new("feature-gates", Kind::Gates, "", "Features to switch, as Name=true,Name=false.")
                .without_effect(),
        ],
    ),
    (
        "Clustering",
        &[
            Flag::new(
                "initial-advertise-peer-urls",
                Kind::Urls,
                "http://localhost:2380",
                "URLs at which other members reach this one; with the token they make its id.",
            ),
            Flag::new(
                "initial-cluster",
                Kind::Text,
                "",
                "Members of the first start, as name=URL,name=URL; this member alone.",
            ),
            Flag::new(
                "initial-cluster-state",
                Kind::OneOf(&["new", "existing"]),
                "new",
                "Whether the first start makes a cluster (new) or joins one (existing).",
            ),
            Flag::new(
                "initial-cluster-token",
                Kind::Text,
                "etcd-cluster",
                "What sets this cluster apart from others; goes into the ids of its first start.",
            ),
            Flag::new(
                "advertise-client-urls",
                Kind::Urls,
                "http://localhost:2379",
                "URLs that clients are told to use.",
            ),
            Flag::new("discovery-token", Kind::Text, "", "Cluster to look for at --discovery-endpoints.")
                .refused(),
            Flag::new(
                "discovery-endpoints",
                Kind::Text,
                "",
                "etcd that knows the members of the first start.",
            )
            .refused(),
            Flag::new("discovery-dial-timeout", Kind::Duration, "2s", "Longest wait for a connection to it.")
                .without_effect(),
            Flag::new("discovery-request-timeout", Kind::Duration, "5s", "Longest wait for an answer of it.")
                .without_effect(),
            Flag::new("discovery-keepalive-time", Kind::Duration, "2s", "Time between pings to it.")
                .without_effect(),
            Flag::new(
                "discovery-keepalive-timeout",
                Kind::Duration,
                "6s",
                "Longest wait for the answer to a ping.",
            )
            .without_effect(),
            Flag::new("discovery-insecure-transport", Kind::Bool, "true", "Talk to it without TLS.")
                .without_effect(),
            Flag::new(
                "discovery-insecure-skip-tls-verify",
                Kind::Bool,
                "false",
                "Take any certificate of it.",
            )
            .without_effect(),
            Flag::new("discovery-cert", Kind::Text, "", "Certificate to show it.").without_effect(),
            Flag::new("discovery-key", Kind::Text, "", "Key of --discovery-cert.").without_effect(),
            Flag::new("discovery-cacert", Kind::Text, "", "CA its certificate must be signed by.")
                .without_effect(),
            Flag::new("discovery-user", Kind::Text, "", "User to log in with, as name or name:password.")
                .without_effect(),
            Flag::new("discovery-password", Kind::Text, "", "Password of --discovery-user.").without_effect(),
            Flag::new(
                "discovery-fallback",
                Kind::OneOf(&["exit", "proxy"]),
                "exit",
                "What to do when that fails; exit is the only choice left.",
            ),
            Flag::new(
                "discovery-srv",
                Kind::Text,
                "",
                "DNS domain whose SRV records name the members of the first start.",
            )
            .refused(),
            Flag::new("discovery-srv-name", Kind::Text, "", "Suffix of the service's name in those records.")
                .without_effect(),
            Flag::new(
                "strict-reconfig-check",
                Kind::Bool,
                "true",
                "Refuse changes of membership that would lose the quorum.",
            )
            .without_effect(),
            Flag::new("pre-vote", Kind::Bool, "true", "Ask before an election whether it could be won.")
                .without_effect(),
            Flag::new(
                "auto-compaction-retention",
                Kind::Text,
                "0",
                "History to keep, as hours, a time or a number of revisions; 0: all.",
            ),
            Flag::new(
                "auto-compaction-mode",
                Kind::Text,
                "periodic",
                "What --auto-compaction-retention counts: periodic for time, revision for revisions.",
            ),
            Flag::new(
                "v2-deprecation",
                Kind::SomeOf(V2_STAGES),
                "write-only",
                "How far the v2 store is gone; there is none here.",
            )
            .without_effect()
            .deprecated(
                "--v2-deprecation is deprecated and scheduled for removal in v3.8. \
                 The default value is enforced, ignoring user input.",
            ),
        ],
    ),
    (
        "Security",
        &[
            Flag::new("cert-file", Kind::Text, "", "Certificate to show clients."),
            Flag::new("key-file", Kind::Text, "", "Key of --cert-file."),
            Flag::new(
                "client-cert-auth",
                Kind::Bool,
                "false",
                "Clients must show a certificate; its common name is the user when authentication is on.",
            ),
            Flag::new("client-cert-file", Kind::Text, "", "Certificate this server would show as a client.")
                .without_effect(),
            Flag::new("client-key-file", Kind::Text, "", "Key of --client-cert-file.").without_effect(),
            Flag::new("client-crl-file", Kind::Text, "", "Certificates of clients that are revoked."),
            Flag::new(
                "client-cert-allowed-hostname",
                Kind::Text,
                "",
                "Names one of which a client's certificate must be valid for.",
            ),
            Flag::new("trusted-ca-file", Kind::Text, "", "CA that clients' certificates must be signed by."),
            Flag::new("auto-tls", Kind::Bool, "false", "Make a certificate for clients, signed by itself."),
            Flag::new("peer-cert-file", Kind::Text, "", "Certificate to show other members."),
            Flag::new("peer-key-file", Kind::Text, "", "Key of --peer-cert-file."),
            Flag::new("peer-client-cert-auth", Kind::Bool, "false", "Other members must show a certificate."),
            Flag::new(
                "peer-client-cert-file",
                Kind::Text,
                "",
                "Certificate to show when calling other members.",
            )
            .without_effect(),
            Flag::new("peer-client-key-file", Kind::Text, "", "Key of --peer-client-cert-file.")
                .without_effect(),
            Flag::new(
                "peer-trusted-ca-file",
                Kind::Text,
                "",
                "CA that members' certificates must be signed by.",
            ),
            Flag::new(
                "peer-cert-allowed-cn",
                Kind::Text,
                "",
                "Common names one of which a member's certificate must have.",
            ),
            Flag::new(
                "peer-cert-allowed-hostname",
                Kind::Text,
                "",
                "Names one of which a member's certificate must be valid for.",
            ),
            Flag::new(
                "peer-auto-tls",
                Kind::Bool,
                "false",
                "Make a certificate for members, signed by itself.",
            ),
            Flag::new(
                "self-signed-cert-validity",
                Kind::Uint,
                "1",
                "Years for which certificates made here are valid.",
            ),
            Flag::new("peer-crl-file", Kind::Text, "", "Certificates of members that are revoked."),
            Flag::new(
                "cipher-suites",
                Kind::Text,
                "",
                "Suites of TLS 1.2 to offer, by their names; empty: all that are safe.",
            ),
            Flag::new("cors", Kind::Origins, "*", "Origins whose pages may read answers; * or empty: all."),
            Flag::new(
                "host-whitelist",
                Kind::Text,
                "*",
                "Hosts that requests without TLS may be addressed to; * or empty: all.",
            ),
            Flag::new("tls-min-version", Kind::Text, "TLS1.2", "Lowest version of TLS: TLS1.2 or TLS1.3."),
            Flag::new(
                "tls-max-version",
                Kind::Text,
                "",
                "Highest version of TLS: TLS1.2 or TLS1.3; empty: TLS1.3.",
            ),
        ],
    ),
    (
        "Auth",
        &[
            Flag::new("auth-token", Kind::Text, "simple", "Kind of tokens: simple, or jwt with its options."),
            Flag::new("bcrypt-cost", Kind::Uint, "10", "Cost of hashing a password, from 4 to 31."),
            Flag::new("auth-token-ttl", Kind::Uint, "300", "Seconds an unused token lives."),
        ],
    ),
    (
        "Profiling and Monitoring",
        &[
            Flag::new(
                "enable-pprof",
                Kind::Bool,
                "false",
                "Serve Go's profiles at /debug/pprof/; there is no Go in this program.",
            )
            .without_effect(),
            Flag::new(
                "metrics",
                Kind::Text,
                "basic",
                "Detail of /metrics: basic or extensive. Both are extensive here.",
            ),
            Flag::new(
                "listen-metrics-urls",
                Kind::Urls,
                "",
                "URLs to listen on for /metrics and health alone; https uses the certificate for clients.",
            ),
        ],
    ),
    (
        "Logging",
        &[
            Flag::new("logger", Kind::Text, "zap", "Who writes the log; zap is the only choice left."),
            Flag::new(
                "log-outputs",
                Kind::Text,
                "default",
                "Where the log goes: stderr, stdout, or files, separated by commas.",
            ),
            Flag::new(
                "log-level",
                Kind::Text,
                "info",
                "Least level to log: debug, info, warn, error, panic or fatal.",
            ),
            Flag::new("log-format", Kind::Text, "json", "Form of the log: json or console."),
            Flag::new(
                "enable-log-rotation",
                Kind::Bool,
                "false",
                "Begin a new log file when the one of --log-outputs is full.",
            ),
            Flag::new(
                "log-rotation-config-json",
                Kind::Text,
                ROTATION,
                "When a log file is full and how long old ones stay: maxsize in MB, maxage in days, maxbackups in files (0: no limit), localtime in their names, compress with gzip.",
            ),
            Flag::new(
                "warning-unary-request-duration",
                Kind::Duration,
                "300ms",
                "Time of a request above which it is logged.",
            ),
        ],
    ),
    (
        "Distributed tracing",
        &[
            Flag::new("enable-distributed-tracing", Kind::Bool, "false", "Send traces to a collector.")
                .without_effect(),
            Flag::new(
                "distributed-tracing-address",
                Kind::Text,
                "localhost:4317",
                "Address of the collector.",
            )
            .without_effect(),
            Flag::new(
                "distributed-tracing-service-name",
                Kind::Text,
                "etcd",
                "Name of this service in traces.",
            )
            .without_effect(),
            Flag::new("distributed-tracing-instance-id", Kind::Text, "", "Name of this instance in traces.")
                .without_effect(),
            Flag::new(
                "distributed-tracing-sampling-rate",
                Kind::Int,
                "0",
                "Traces to send out of a million.",
            )
            .without_effect(),
        ],
    ),
    (
        "Features",
        &[
            Flag::new(
                "corrupt-check-time",
                Kind::Duration,
                "0s",
                "Time between comparisons of all members' data; 0: never.",
            )
            .without_effect(),
            Flag::new(
                "compact-hash-check-time",
                Kind::Duration,
                "1m",
                "Time between comparisons of all members' compactions.",
            )
            .without_effect(),
            Flag::new(
                "compaction-batch-limit",
                Kind::Int,
                "1000",
                "Most revisions one step of a compaction drops.",
            )
            .without_effect(),
            Flag::new(
                "peer-skip-client-san-verification",
                Kind::Bool,
                "false",
                "Do not compare a member's address with its certificate.",
            )
            .without_effect(),
            Flag::new(
                "watch-progress-notify-interval",
                Kind::Duration,
                "10m",
                "Time between progress notifications of an idle watch.",
            ),
            Flag::new(
                "warning-apply-duration",
                Kind::Duration,
                "100ms",
                "Time to apply a command above which it is logged.",
            ),
            Flag::new(
                "bootstrap-defrag-threshold-megabytes",
                Kind::Uint,
                "0",
                "Unused space, in MB, above which it is given back before serving; 0: never.",
            ),
            Flag::new("max-learners", Kind::Int, "1", "Most members that only learn.").without_effect(),
            Flag::new(
                "compaction-sleep-interval",
                Kind::Duration,
                "10ms",
                "Pause between steps of a compaction.",
            )
            .without_effect(),
            Flag::new(
                "downgrade-check-time",
                Kind::Duration,
                "5s",
                "Time between looks at whether a downgrade is complete.",
            )
            .without_effect(),
            Flag::new(
                "snapshot-catchup-entries",
                Kind::Uint,
                "5000",
                "Entries of the raft log kept for members that are behind.",
            )
            .without_effect(),
        ],
    ),
    (
        "Unsafe feature",
        &[
            Flag::new(
                "force-new-cluster",
                Kind::Bool,
                "false",
                "Make this member the only one of its cluster. It always is.",
            ),
            Flag::new(
                "unsafe-no-fsync",
                Kind::Bool,
                "false",
                "Do not wait for the disk: what was acknowledged can be lost.",
            ),
        ],
    ),
    (
        "Usage",
        &[
            Flag::new(
                "config-file",
                Kind::Text,
                "",
                "File with all settings; flags and variables are void then.",
            ),
            Flag::new("version", Kind::Bool, "false", "Show the version and end."),
        ],
    ),
];

/// Flags of releases long past, which etcd takes in silence.
const GONE: &[Flag] = &[
    Flag::new("cluster-active-size", Kind::Anything, "", "").without_effect(),
    Flag::new("cluster-remove-delay", Kind::Anything, "", "").without_effect(),
    Flag::new("cluster-sync-interval", Kind::Anything, "", "").without_effect(),
    Flag::new("config", Kind::Anything, "", "").without_effect(),
    Flag::new("force", Kind::Anything, "", "").without_effect(),
    Flag::new("max-result-buffer", Kind::Anything, "", "").without_effect(),
    Flag::new("max-retry-attempts", Kind::Anything, "", "").without_effect(),
    Flag::new("peer-heartbeat-interval", Kind::Anything, "", "").without_effect(),
    Flag::new("peer-election-timeout", Kind::Anything, "", "").without_effect(),
    Flag::new("retry-interval", Kind::Anything, "", "").without_effect(),
    Flag::new("snapshot", Kind::Anything, "", "").without_effect(),
    Flag::new("v", Kind::Anything, "", "").without_effect(),
    Flag::new("vv", Kind::Anything, "", "").without_effect(),
    Flag::new("test.coverprofile", Kind::Anything, "", "").without_effect(),
    Flag::new("test.outputdir", Kind::Anything, "", "").without_effect(),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The first column of a table's rows, or the items of the list, that name flags.
    fn named(text: &str, before: &str, after: &str) -> Vec<String> {
        let names = text.split(before).skip(1).filter_map(|rest| rest.split_once(after));
        names.map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn the_documentation_names_every_flag_where_it_belongs() {
        let page = include_str!("../../../../docs/clients.md");
        let (_, page) = page.split_once("## Flags of etcd").expect("a section");
        let (page, _) = page.split_once("\n## ").expect("another section");
        let (table, list) = page.split_once("Without effect").expect("a list after the table");
        let (list, _) = list.split_once("Their values").expect("text after the list");
        let with = |effect: &[Effect]| -> Vec<_> {
            let all = SECTIONS.iter().flat_map(|(_, flags)| *flags);
            let mut names: Vec<_> =
                all.filter(|flag| effect.contains(&flag.effect)).map(|flag| flag.name).collect();
            names.sort_unstable();
            names
        };
        let mut rows = named(table, "\n| `--", "` |");
        let mut listed = named(list, "`--", "`");
        rows.sort_unstable();
        listed.sort_unstable();
        assert_eq!(rows, with(&[Effect::Some, Effect::Refused]));
        assert_eq!(listed, with(&[Effect::None]));
    }

    #[test]
    fn defaults_are_of_their_kind() {
        for flag in Flag::all() {
            assert_eq!(super::super::value::check(flag.kind, flag.default), Ok(()), "--{}", flag.name);
        }
    }
}
