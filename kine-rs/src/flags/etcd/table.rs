//! etcd's flags: their kind, their default, and whether they change anything here.

/// What a flag's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Bool,
    Int,
    Uint,
    Duration,
    /// Separated by commas.
    Urls,
}

/// What a flag does here. There are no peers, no raft log and no bbolt file, so what shapes those does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Some,
    None,
}

#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub effect: Effect,
}

impl Flag {
    const fn new(name: &'static str, kind: Kind, default: &'static str, effect: Effect) -> Self {
        Flag { name, kind, default, effect }
    }

    pub fn find(name: &str) -> Option<&'static Flag> {
        FLAGS.iter().find(|flag| flag.name == name)
    }

    /// `max-txn-ops` -> `ETCD_MAX_TXN_OPS`.
    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.name.replace('-', "_").to_uppercase())
    }
}

/// All flags of etcd 3.7.
pub const FLAGS: &[Flag] = &[
    Flag::new("name", Kind::Text, "default", Effect::Some),
    Flag::new("data-dir", Kind::Text, "", Effect::Some),
    Flag::new("wal-dir", Kind::Text, "", Effect::None),
    Flag::new("snapshot-count", Kind::Uint, "10000", Effect::None),
    Flag::new("heartbeat-interval", Kind::Uint, "100", Effect::None),
    Flag::new("election-timeout", Kind::Uint, "1000", Effect::None),
    Flag::new("initial-election-tick-advance", Kind::Bool, "true", Effect::None),
    Flag::new("listen-peer-urls", Kind::Urls, "http://localhost:2380", Effect::None),
    Flag::new("listen-client-urls", Kind::Urls, "http://localhost:2379", Effect::Some),
    Flag::new("listen-client-http-urls", Kind::Urls, "", Effect::Some),
    Flag::new("max-snapshots", Kind::Uint, "5", Effect::None),
    Flag::new("max-wals", Kind::Uint, "5", Effect::None),
    Flag::new("memory-mlock", Kind::Bool, "false", Effect::None),
    Flag::new("quota-backend-bytes", Kind::Int, "0", Effect::Some),
    Flag::new("backend-bbolt-freelist-type", Kind::Text, "map", Effect::None),
    Flag::new("backend-batch-interval", Kind::Duration, "0", Effect::None),
    Flag::new("backend-batch-limit", Kind::Int, "0", Effect::None),
    Flag::new("max-txn-ops", Kind::Uint, "128", Effect::Some),
    Flag::new("max-request-bytes", Kind::Uint, "1572864", Effect::Some),
    Flag::new("max-concurrent-streams", Kind::Uint, "4294967295", Effect::Some),
    Flag::new("grpc-keepalive-min-time", Kind::Duration, "5s", Effect::Some),
    Flag::new("grpc-keepalive-interval", Kind::Duration, "2h", Effect::Some),
    Flag::new("grpc-keepalive-timeout", Kind::Duration, "20s", Effect::Some),
    Flag::new("socket-reuse-port", Kind::Bool, "false", Effect::None),
    Flag::new("socket-reuse-address", Kind::Bool, "false", Effect::None),
    Flag::new("enable-grpc-gateway", Kind::Bool, "true", Effect::Some),
    Flag::new("raft-read-timeout", Kind::Duration, "5s", Effect::None),
    Flag::new("raft-write-timeout", Kind::Duration, "5s", Effect::None),
    Flag::new("feature-gates", Kind::Text, "", Effect::None),
    Flag::new("initial-advertise-peer-urls", Kind::Urls, "http://localhost:2380", Effect::Some),
    Flag::new("initial-cluster", Kind::Text, "", Effect::Some),
    Flag::new("initial-cluster-state", Kind::Text, "new", Effect::Some),
    Flag::new("initial-cluster-token", Kind::Text, "etcd-cluster", Effect::None),
    Flag::new("advertise-client-urls", Kind::Urls, "http://localhost:2379", Effect::Some),
    Flag::new("discovery", Kind::Text, "", Effect::Some),
    Flag::new("discovery-token", Kind::Text, "", Effect::None),
    Flag::new("discovery-endpoints", Kind::Text, "", Effect::Some),
    Flag::new("discovery-dial-timeout", Kind::Duration, "2s", Effect::None),
    Flag::new("discovery-request-timeout", Kind::Duration, "5s", Effect::None),
    Flag::new("discovery-keepalive-time", Kind::Duration, "2s", Effect::None),
    Flag::new("discovery-keepalive-timeout", Kind::Duration, "6s", Effect::None),
    Flag::new("discovery-insecure-transport", Kind::Bool, "true", Effect::None),
    Flag::new("discovery-insecure-skip-tls-verify", Kind::Bool, "false", Effect::None),
    Flag::new("discovery-cert", Kind::Text, "", Effect::None),
    Flag::new("discovery-key", Kind::Text, "", Effect::None),
    Flag::new("discovery-cacert", Kind::Text, "", Effect::None),
    Flag::new("discovery-user", Kind::Text, "", Effect::None),
    Flag::new("discovery-password", Kind::Text, "", Effect::None),
    Flag::new("discovery-fallback", Kind::Text, "exit", Effect::None),
    Flag::new("discovery-proxy", Kind::Text, "", Effect::None),
    Flag::new("discovery-srv", Kind::Text, "", Effect::Some),
    Flag::new("discovery-srv-name", Kind::Text, "", Effect::None),
    Flag::new("strict-reconfig-check", Kind::Bool, "true", Effect::None),
    Flag::new("pre-vote", Kind::Bool, "true", Effect::None),
    Flag::new("auto-compaction-retention", Kind::Text, "0", Effect::Some),
    Flag::new("auto-compaction-mode", Kind::Text, "periodic", Effect::Some),
    Flag::new("v2-deprecation", Kind::Text, "write-only", Effect::None),
    Flag::new("cert-file", Kind::Text, "", Effect::Some),
    Flag::new("key-file", Kind::Text, "", Effect::Some),
    Flag::new("client-cert-auth", Kind::Bool, "false", Effect::Some),
    Flag::new("client-cert-file", Kind::Text, "", Effect::None),
    Flag::new("client-key-file", Kind::Text, "", Effect::None),
    Flag::new("client-crl-file", Kind::Text, "", Effect::Some),
    Flag::new("client-cert-allowed-hostname", Kind::Text, "", Effect::Some),
    Flag::new("trusted-ca-file", Kind::Text, "", Effect::Some),
    Flag::new("auto-tls", Kind::Bool, "false", Effect::Some),
    Flag::new("peer-cert-file", Kind::Text, "", Effect::None),
    Flag::new("peer-key-file", Kind::Text, "", Effect::None),
    Flag::new("peer-client-cert-auth", Kind::Bool, "false", Effect::None),
    Flag::new("peer-client-cert-file", Kind::Text, "", Effect::None),
    Flag::new("peer-client-key-file", Kind::Text, "", Effect::None),
    Flag::new("peer-trusted-ca-file", Kind::Text, "", Effect::None),
    Flag::new("peer-cert-allowed-cn", Kind::Text, "", Effect::None),
    Flag::new("peer-cert-allowed-hostname", Kind::Text, "", Effect::None),
    Flag::new("peer-auto-tls", Kind::Bool, "false", Effect::None),
    Flag::new("self-signed-cert-validity", Kind::Uint, "1", Effect::Some),
    Flag::new("peer-crl-file", Kind::Text, "", Effect::None),
    Flag::new("cipher-suites", Kind::Text, "", Effect::Some),
    Flag::new("cors", Kind::Text, "*", Effect::Some),
    Flag::new("host-whitelist", Kind::Text, "*", Effect::Some),
    Flag::new("tls-min-version", Kind::Text, "TLS1.2", Effect::Some),
    Flag::new("tls-max-version", Kind::Text, "", Effect::Some),
    Flag::new("auth-token", Kind::Text, "simple", Effect::Some),
    Flag::new("bcrypt-cost", Kind::Uint, "10", Effect::Some),
    Flag::new("auth-token-ttl", Kind::Uint, "300", Effect::Some),
    Flag::new("enable-pprof", Kind::Bool, "false", Effect::None),
    Flag::new("metrics", Kind::Text, "basic", Effect::Some),
    Flag::new("listen-metrics-urls", Kind::Urls, "", Effect::Some),
    Flag::new("logger", Kind::Text, "zap", Effect::None),
    Flag::new("log-outputs", Kind::Text, "default", Effect::Some),
    Flag::new("log-level", Kind::Text, "info", Effect::Some),
    Flag::new("log-format", Kind::Text, "json", Effect::Some),
    Flag::new("enable-log-rotation", Kind::Bool, "false", Effect::None),
    Flag::new("log-rotation-config-json", Kind::Text, "", Effect::None),
    Flag::new("warning-unary-request-duration", Kind::Duration, "300ms", Effect::None),
    Flag::new("enable-distributed-tracing", Kind::Bool, "false", Effect::None),
    Flag::new("distributed-tracing-address", Kind::Text, "localhost:4317", Effect::None),
    Flag::new("distributed-tracing-service-name", Kind::Text, "etcd", Effect::None),
    Flag::new("distributed-tracing-instance-id", Kind::Text, "", Effect::None),
    Flag::new("distributed-tracing-sampling-rate", Kind::Int, "0", Effect::None),
    Flag::new("corrupt-check-time", Kind::Duration, "0s", Effect::None),
    Flag::new("compact-hash-check-time", Kind::Duration, "1m", Effect::None),
    Flag::new("compaction-batch-limit", Kind::Int, "1000", Effect::None),
    Flag::new("peer-skip-client-san-verification", Kind::Bool, "false", Effect::None),
    Flag::new("watch-progress-notify-interval", Kind::Duration, "10m", Effect::Some),
    Flag::new("warning-apply-duration", Kind::Duration, "100ms", Effect::None),
    Flag::new("bootstrap-defrag-threshold-megabytes", Kind::Uint, "0", Effect::None),
    Flag::new("max-learners", Kind::Int, "1", Effect::None),
    Flag::new("compaction-sleep-interval", Kind::Duration, "10ms", Effect::None),
    Flag::new("downgrade-check-time", Kind::Duration, "5s", Effect::None),
    Flag::new("snapshot-catchup-entries", Kind::Uint, "5000", Effect::None),
    Flag::new("force-new-cluster", Kind::Bool, "false", Effect::None),
    Flag::new("unsafe-no-fsync", Kind::Bool, "false", Effect::Some),
    Flag::new("config-file", Kind::Text, "", Effect::Some),
    Flag::new("version", Kind::Bool, "false", Effect::Some),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_documented() {
        let page = include_str!("../../../../docs/clients.md");
        for Flag { name, effect, .. } in FLAGS {
            let row = page.contains(&format!("| `--{name}` |"));
            assert!(page.contains(&format!("`--{name}`")) && row == (*effect == Effect::Some), "--{name}");
        }
    }
}
