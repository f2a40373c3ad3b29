//! What a running k0s tells about itself over its status socket: the documents and their JSON.
//!
//! Invariant: keys and shapes are upstream's (`GET /status`, `GET /components?maxCount=N`), because k0sctl and scripts read
//! them; what we add is added beside. `server` answers, `client` asks; both use these types.

pub mod client;
pub mod server;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use worker::supervise::ComponentStatus;

use crate::vars::K0sVars;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    pub version: String,
    pub pid: u32,
    #[serde(rename = "PPid")]
    pub parent_pid: u32,
    pub role: String,
    /// These three are always empty, as upstream's are.
    pub sys_init: String,
    pub stub_file: String,
    pub output: String,
    /// Whether this node runs pods.
    pub workloads: bool,
    pub single_node: bool,
    pub args: Vec<String>,
    #[serde(rename = "WorkerToAPIConnectionStatus")]
    pub worker_to_api: ConnectionStatus,
    pub cluster_config: serde_json::Value,
    #[serde(rename = "K0sVars")]
    pub k0s_vars: K0sVars,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConnectionStatus {
    pub message: String,
    pub success: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Components {
    pub health_probes: BTreeMap<String, Vec<HealthProbe>>,
    pub events: BTreeMap<String, Vec<Event>>,
    /// Ours: everything the supervisor knows, in the order of the start.
    #[serde(default)]
    pub components: Vec<ComponentStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthProbe {
    pub component: String,
    /// RFC 3339.
    pub at: String,
    /// `null`: healthy.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339.
    pub at: String,
    pub message: String,
    pub payload: serde_json::Value,
}

impl Components {
    /// At most `entries_max` probes of each component, the last ones, and as many events: there is one at most.
    pub fn new(components: Vec<ComponentStatus>, now: OffsetDateTime, entries_max: usize) -> Components {
        let mut answer = Components::default();
        for status in components.iter().filter(|_| entries_max > 0) {
            let probes: Vec<HealthProbe> = status
                .checks
                .iter()
                .skip(status.checks.len().saturating_sub(entries_max))
                .map(|check| HealthProbe {
                    component: status.name.clone(),
                    at: rfc3339(at(check.at_unix_seconds).unwrap_or(now)),
                    error: check.error.clone(),
                })
                .collect();
            if !probes.is_empty() {
                answer.health_probes.insert(status.name.clone(), probes);
            }
            if let Some(event) = restart_event(status, now) {
                answer.events.insert(status.name.clone(), vec![event]);
            }
        }
        answer.components = components;
        answer
    }
}

/// A component that was restarted has a past worth telling.
fn restart_event(status: &ComponentStatus, now: OffsetDateTime) -> Option<Event> {
    let exit = status.last_exit?;
    let at = status.started_at_unix_seconds.and_then(at).unwrap_or(now);
    let payload = serde_json::json!({"restarts": status.restarts, "lastExit": exit});
    Some(Event { at: rfc3339(at), message: format!("{exit}; restarts: {}", status.restarts), payload })
}

fn at(unix_seconds: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(unix_seconds).ok()?).ok()
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("years of this era can be written")
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker::supervise::{Check, Exit, State};

    #[test]
    fn components_report_what_their_probes_said_and_the_last_restart() {
        let check = |at_unix_seconds: u64, error: Option<&str>| Check {
            at_unix_seconds,
            error: error.map(str::to_owned),
        };
        let restarted = ComponentStatus {
            name: "kube-apiserver".into(),
            state: State::Ready,
            pid: Some(7),
            restarts: 2,
            started_at_unix_seconds: Some(1_800_000_000),
            last_exit: Some(Exit::Signal(9)),
            reason: None,
            checks: vec![
                check(1_800_000_010, None),
                check(1_800_000_020, Some("no answer")),
                check(1_800_000_030, None),
            ],
            last_log_lines: vec!["bye".into()],
        };
        let unasked = ComponentStatus {
            name: "kube-scheduler".into(),
            last_exit: None,
            checks: Vec::new(),
            ..restarted.clone()
        };
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_060).unwrap();
        let json = |entries_max| {
            let components = Components::new(vec![restarted.clone(), unasked.clone()], now, entries_max);
            serde_json::to_value(components).unwrap()
        };
        assert_eq!(
            json(2)["healthProbes"],
            serde_json::json!({"kube-apiserver": [
                {"component": "kube-apiserver", "at": "2027-01-15T08:00:20Z", "error": "no answer"},
                {"component": "kube-apiserver", "at": "2027-01-15T08:00:30Z", "error": null},
            ]})
        );
        assert_eq!(json(0)["healthProbes"], serde_json::json!({}));
        let event = &json(1)["events"]["kube-apiserver"][0];
        assert_eq!(event["at"], "2027-01-15T08:00:00Z");
        assert_eq!(event["message"], "was killed by signal 9; restarts: 2");
        assert!(json(1)["events"]["kube-scheduler"].is_null());
    }
}
