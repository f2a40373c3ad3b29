//! `/health`, `/livez` and `/readyz`: whether this member can serve, told as etcd tells it.
//!
//! A linearizable read is one that passes the writer; a serializable one needs only the published state, which is always there.

use super::{answer, text};
use crate::api::Api;
use ::http::{Response, StatusCode};
use proto::etcdserverpb::AlarmType;
use serde_json::json;
use std::time::Duration;
use tonic::body::Body;

/// How long a check waits for the writer: etcd's request timeout.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVE: [Check; 1] = [Check::SerializableRead];
const READY: [Check; 4] =
    [Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run(self, api: &Api) -> Result<(), String> {
        match self {
            Check::DataCorruption if raised(api).any(|alarm| alarm == AlarmType::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Check::LinearizableRead => pass_the_writer(api).await,
            // The published state is in memory, and the one member is a voter.
            Check::DataCorruption | Check::SerializableRead | Check::NonLearner => Ok(()),
        }
    }
}

pub fn is_probe(path: &str) -> bool {
    checks(path).is_some()
}

/// The checks of a path such as `/readyz` or `/readyz/linearizable_read`.
fn checks(path: &str) -> Option<Vec<Check>> {
    let (probe, name) =
        path[1..].split_once('/').map_or((&path[1..], None), |(probe, name)| (probe, Some(name)));
    let all: &[Check] = match probe {
        "livez" => &LIVE,
        "readyz" => &READY,
        _ => return None,
    };
    match name {
        None | Some("") => Some(all.to_vec()),
        Some(name) => all.iter().find(|check| check.name() == name).map(|check| vec![*check]),
    }
}

pub async fn probe(api: &Api, path: &str, query: &str) -> Response<Body> {
    let checks = checks(path).expect("the path was checked");
    let excluded: Vec<&str> = values(query, "exclude").collect();
    let unknown = |name: &&&str| !checks.iter().any(|check| check.name() == **name);
    let unknown: Vec<_> = excluded.iter().filter(unknown).collect();
    if !unknown.is_empty() {
        tracing::warn!(checks = ?unknown, "some health checks cannot be excluded");
    }
    let (mut report, mut failed) = (String::new(), Vec::new());
    for check in checks.iter().filter(|check| !excluded.contains(&check.name())) {
        let (name, result) = (check.name(), check.run(api).await);
        let probe = path[1..].split('/').next().unwrap_or_default();
        api.store.metrics().health.checked(probe, name, result.is_ok());
        match result {
            Ok(()) => report += &format!("[+]{name} ok\n"),
            Err(reason) => {
                report += &format!("[-]{name} failed: {reason}\n");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        tracing::warn!(path, ?failed, "health check failed");
        return text(StatusCode::SERVICE_UNAVAILABLE, report);
    }
    let verbose = query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="));
    text(StatusCode::OK, if verbose { report + "ok\n" } else { "ok\n".to_owned() })
}

/// Unhealthy while an alarm is raised that the query does not exclude, or the writer does not answer.
pub async fn health(api: &Api, query: &str) -> Response<Body> {
    let excluded = |alarm: &AlarmType| values(query, "exclude").any(|name| name == alarm.as_str_name());
    let alarm = raised(api).find(|alarm| !excluded(alarm));
    let serializable = values(query, "serializable").any(|value| value == "true");
    let reason = match alarm {
        Some(alarm) => Some(format!("ALARM {}", alarm.as_str_name())),
        None if serializable => None,
        None => pass_the_writer(api).await.err().map(|error| format!("RANGE ERROR:{error}")),
    };
    let counters = &api.store.metrics().health;
    let (status, healthy, counter) = match reason {
        None => (StatusCode::OK, "true", &counters.success),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "false", &counters.failure),
    };
    counter.inc();
    let body = json!({"health": healthy, "reason": reason.unwrap_or_default()});
    answer(status, super::TEXT, body.to_string())
}

fn raised(api: &Api) -> impl Iterator<Item = AlarmType> {
    let alarms: Vec<_> = api.store.view().alarms.iter().map(|(_, alarm)| *alarm).collect();
    alarms.into_iter().filter_map(|alarm| AlarmType::try_from(alarm).ok())
}

async fn pass_the_writer(api: &Api) -> Result<(), String> {
    match tokio::time::timeout(CHECK_TIMEOUT, api.store.size()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer from the writer within {CHECK_TIMEOUT:?}")),
    }
}

/// The values of one name in a query.
fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter_map(move |(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_has_its_checks_and_no_other() {
        let names =
            |path| checks(path).map(|checks| checks.iter().map(|check| check.name()).collect::<Vec<_>>());
        assert_eq!(names("/livez"), Some(vec!["serializable_read"]));
        assert_eq!(names("/readyz").map(|all| all.len()), Some(4));
        assert_eq!(names("/readyz/non_learner"), Some(vec!["non_learner"]));
        assert_eq!(names("/livez/non_learner"), None);
        assert_eq!(names("/nothing"), None);
    }
}
