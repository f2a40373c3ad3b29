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
use worker::supervise::{ComponentStatus, State};

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
    /// At most `entries_max` probes and events of each component: there is one of each at most.
    pub fn new(components: Vec<ComponentStatus>, now: OffsetDateTime, entries_max: usize) -> Components {
        let mut answer = Components::default();
        for status in components.iter().filter(|_| entries_max > 0) {
            let error = match (&status.state, &status.reason) {
                (State::Ready, _) => None,
                (state, None) => Some(state.to_string()),
                (state, Some(reason)) => Some(format!("{state}: {reason}")),
            };
            let probe = HealthProbe { component: status.name.clone(), at: rfc3339(now), error };
            answer.health_probes.insert(status.name.clone(), vec![probe]);
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
    let at = status
        .started_at_unix_seconds
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok())
        .unwrap_or(now);
    let payload = serde_json::json!({"restarts": status.restarts, "lastExit": exit});
    Some(Event { at: rfc3339(at), message: format!("{exit}; restarts: {}", status.restarts), payload })
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("years of this era can be written")
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker::supervise::Exit;

    #[test]
    fn components_report_health_and_the_last_restart() {
        let ready = ComponentStatus {
            name: "kube-apiserver".into(),
            state: State::Ready,
            pid: Some(7),
            restarts: 2,
            started_at_unix_seconds: Some(1_800_000_000),
            last_exit: Some(Exit::Signal(9)),
            reason: None,
            last_log_lines: vec!["bye".into()],
        };
        let starting = ComponentStatus {
            name: "kube-scheduler".into(),
            state: State::Starting,
            last_exit: None,
            reason: Some("no answer".into()),
            ..ready.clone()
        };
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_060).unwrap();
        let json = serde_json::to_value(Components::new(vec![ready, starting], now, 1)).unwrap();
        assert_eq!(
            json["healthProbes"],
            serde_json::json!({
                "kube-apiserver": [{"component": "kube-apiserver", "at": "2027-01-15T08:01:00Z", "error": null}],
                "kube-scheduler": [{"component": "kube-scheduler", "at": "2027-01-15T08:01:00Z", "error": "starting: no answer"}],
            })
        );
        let event = &json["events"]["kube-apiserver"][0];
        assert_eq!(event["at"], "2027-01-15T08:00:00Z");
        assert_eq!(event["message"], "was killed by signal 9; restarts: 2");
        assert!(json["events"]["kube-scheduler"].is_null());
    }
}
