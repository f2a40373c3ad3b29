//! The text of `/metrics`: what was counted, and what the state and the process are now.
//!
//! What is now goes into a registry of this scrape alone: nothing keeps a gauge in step with the state.

use super::process::Process;
use super::{Metrics, register};
use crate::api::Api;
use crate::api::maintenance::minor_release;
use crate::config::{Feature, NOT_GO};
use crate::mvcc::range::KeyRange;
use prometheus::{Counter, Encoder, Gauge, GaugeVec, Opts, Registry, TextEncoder};
use proto::etcdserverpb::AlarmType;

impl Metrics {
    /// Everything in Prometheus' text format.
    pub async fn scrape(&self, api: &Api) -> String {
        let now = Now(Registry::new());
        now.state(api).await;
        now.process();
        let mut families = self.registry.gather();
        families.extend(now.0.gather());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&families, &mut text);
        encoded.expect("families with samples can be encoded into memory");
        String::from_utf8(text).expect("the encoder writes text")
    }
}

struct Now(Registry);

impl Now {
    async fn state(&self, api: &Api) {
        let store = &api.store;
        let view = store.view();
        let member = format!("{:x}", store.identity().member_id);
        let cluster_version = minor_release(&api.about.version);
        let cluster_version = cluster_version.rsplit_once('.').map_or("", |(minor, _)| minor);
        let keys = view.count(KeyRange::new(&[0], &[0]).span(), i64::MAX);
        self.gauge("etcd_server_has_leader", "Whether there is a leader", 1.0);
        self.gauge("etcd_server_is_leader", "Whether this member leads", 1.0);
        self.gauge("etcd_server_is_learner", "Whether this member is a learner", 0.0);
        // As in a status: the place in the order of changes stands for raft's index.
        self.gauge("etcd_server_proposals_committed_total", "Changes ordered", view.next_location as f64);
        self.gauge("etcd_server_proposals_applied_total", "Changes applied", view.next_location as f64);
        self.gauge("etcd_server_proposals_pending", "Commands that wait", store.proposals_pending() as f64);
        self.of_one_member(&member);
        let quota = api.limits.quota_bytes;
        self.gauge("etcd_server_quota_backend_bytes", "Size at which writes stop; 0: never", quota as f64);
        self.fact("etcd_server_id", "Id of this member", ("server_id", &member));
        self.fact("etcd_server_version", "Release", ("server_version", &api.about.version));
        self.fact("etcd_server_go_version", "Release of Go", ("server_go_version", NOT_GO));
        self.fact("etcd_cluster_version", "Release of the cluster", ("cluster_version", cluster_version));
        let features = self.gauges("etcd_server_feature_enabled", "Features that are on", &["name", "stage"]);
        for Feature { name, stage, on } in &api.about.features {
            features.with_label_values(&[name, stage]).set(f64::from(*on));
        }
        self.gauge("etcd_debugging_mvcc_keys_total", "Keys that exist", keys as f64);
        self.gauge("etcd_debugging_mvcc_current_revision", "Newest revision", view.revision as f64);
        self.gauge("etcd_debugging_mvcc_compact_revision", "Compacted up to", view.compact_revision as f64);
        self.gauge("etcd_debugging_auth_revision", "Revision of the accounts", view.auth.revision as f64);
        let watches = store.hub().counts().await;
        self.gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams", watches.streams as f64);
        self.gauge("etcd_debugging_mvcc_watcher_total", "Watchers", watches.watchers as f64);
        self.gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind", watches.slow as f64);
        let pending = watches.pending_events as f64;
        self.gauge("etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent", pending);
        let alarms =
            self.gauges("etcd_debugging_server_alarms", "Alarms raised", &["alarm_type", "server_id"]);
        for (member, alarm) in view.alarms.iter() {
            let name = AlarmType::try_from(*alarm).map_or("NONE", |alarm| alarm.as_str_name());
            alarms.with_label_values(&[name, &format!("{member:x}")]).set(1.0);
        }
        if let Ok(size) = store.size().await {
            self.gauge("etcd_mvcc_db_total_size_in_bytes", "Size on disk", size.allocated as f64);
            self.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Size in use", size.in_use as f64);
        }
    }

    /// What dashboards and alerts of etcd's ask after, and what a store of one member can say: it elected itself once, has
    /// nobody to miss, reads without asking anybody, and has no second version of its store.
    fn of_one_member(&self, member: &str) {
        self.counter("etcd_server_leader_changes_seen_total", "Changes of the leader", 1.0);
        for (name, help) in [
            ("etcd_server_heartbeat_send_failures_total", "Heartbeats that failed"),
            ("etcd_server_learner_promote_successes", "Learners that became voters"),
            ("etcd_server_slow_read_indexes_total", "Reads that waited long for the order's place"),
            ("etcd_server_read_indexes_failed_total", "Reads that did not get the order's place"),
            ("etcd_debugging_store_expires_total", "Keys of the v2 store that expired"),
            ("etcd_debugging_store_watch_requests_total", "Watches of the v2 store"),
        ] {
            self.counter(name, help, 0.0);
        }
        self.gauge(
            "etcd_server_snapshot_apply_in_progress_total",
            "Snapshots of a leader being taken in",
            0.0,
        );
        self.gauge("etcd_debugging_store_watchers", "Watchers of the v2 store", 0.0);
        let peers = self.gauges("etcd_network_known_peers", "Members known", &["Local", "Remote"]);
        peers.with_label_values(&[member, member]).set(1.0);
    }

    fn process(&self) {
        let Some(process) = Process::read() else { return };
        self.counter("process_cpu_seconds_total", "CPU time used", process.cpu_seconds);
        if let Some((received, sent)) = process.network_bytes {
            self.counter("process_network_receive_bytes_total", "Bytes received, with IP's", received as f64);
            self.counter("process_network_transmit_bytes_total", "Bytes sent, with IP's", sent as f64);
        }
        self.gauge("process_start_time_seconds", "Start, since 1970", process.start_time_seconds);
        self.gauge("process_virtual_memory_bytes", "Virtual memory", process.virtual_bytes as f64);
        self.gauge("process_resident_memory_bytes", "Resident memory", process.resident_bytes as f64);
        let optional = [
            ("process_open_fds", "Open file descriptors", process.open_fds),
            ("os_fd_used", "Open file descriptors", process.open_fds),
            ("process_max_fds", "Most file descriptors allowed", process.max_fds),
            ("os_fd_limit", "Most file descriptors allowed", process.max_fds),
            ("process_virtual_memory_max_bytes", "Most virtual memory allowed", process.virtual_bytes_max),
        ];
        for (name, help, value) in optional {
            if let Some(value) = value {
                self.gauge(name, help, value as f64);
            }
        }
    }

    fn counter(&self, name: &str, help: &str, value: f64) {
        register(&self.0, Counter::new(name, help).expect("the name is valid")).inc_by(value);
    }

    fn gauge(&self, name: &str, help: &str, value: f64) {
        register(&self.0, Gauge::new(name, help).expect("the name is valid")).set(value);
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        register(&self.0, GaugeVec::new(Opts::new(name, help), labels).expect("the names are valid"))
    }

    /// What a label tells: the value is always 1.
    fn fact(&self, name: &str, help: &str, (label, value): (&str, &str)) {
        self.gauges(name, help, &[label]).with_label_values(&[value]).set(1.0);
    }
}
