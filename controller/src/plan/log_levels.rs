//! `-l/--logging`: how much each component says.
//!
//! Invariant: every component has a level; one that is not named has its default. Parsed by `cli`, read by `plan`.

use std::str::FromStr;

/// Component and default level, as k0s has them. Those that this build does not run yet are known all the same, so that a
/// command line of k0s works.
const DEFAULTS: [(&str, &str); 7] = [
    ("containerd", "info"),
    ("etcd", "info"),
    ("konnectivity-server", "1"),
    ("kube-apiserver", "1"),
    ("kube-controller-manager", "1"),
    ("kube-scheduler", "1"),
    ("kubelet", "1"),
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevels(Vec<(&'static str, String)>);

impl Default for LogLevels {
    fn default() -> Self {
        LogLevels(DEFAULTS.iter().map(|(name, level)| (*name, (*level).to_owned())).collect())
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogLevelError {
    #[error("{0:?} is not component=level")]
    NotAPair(String),
    #[error("unknown component {0:?}: must be one of {names}", names = DEFAULTS.map(|(name, _)| name).join(", "))]
    UnknownComponent(String),
    #[error("{component}: level {level:?} must be a number from 0 to 10")]
    NotANumber { component: &'static str, level: String },
    #[error("{component}: level {level:?} must be a word such as debug, info, warn, error")]
    NotAWord { component: &'static str, level: String },
}

impl LogLevels {
    /// The defaults but for what was `chosen`; of two choices for a component the last counts.
    pub fn with(chosen: Vec<ComponentLevel>) -> LogLevels {
        let mut levels = LogLevels::default();
        for ComponentLevel { component, level } in chosen {
            levels.0.retain(|(name, _)| *name != component);
            levels.0.push((component, level));
        }
        levels
    }

    /// # Panics
    /// If `component` is none of the known ones; it is a constant of the plan.
    pub fn of(&self, component: &str) -> &str {
        let found = self.0.iter().find(|(name, _)| *name == component);
        &found.expect("the plan asks for components that are in the table").1
    }
}

/// One `component=level`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentLevel {
    component: &'static str,
    level: String,
}

impl FromStr for ComponentLevel {
    type Err = LogLevelError;

    fn from_str(pair: &str) -> Result<Self, LogLevelError> {
        let (name, level) = pair.split_once('=').ok_or_else(|| LogLevelError::NotAPair(pair.to_owned()))?;
        let found = DEFAULTS.into_iter().find(|(known, _)| *known == name);
        let (component, default) = found.ok_or_else(|| LogLevelError::UnknownComponent(name.to_owned()))?;
        let level = level.to_owned();
        match (u8::from_str(default).is_ok(), u8::from_str(&level)) {
            (true, Ok(0..=10)) => {}
            (true, _) => return Err(LogLevelError::NotANumber { component, level }),
            (false, _) if !level.is_empty() && level.bytes().all(|b| b.is_ascii_lowercase()) => {}
            (false, _) => return Err(LogLevelError::NotAWord { component, level }),
        }
        Ok(ComponentLevel { component, level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_components_change_and_the_others_keep_their_default() {
        let chosen = ["kube-apiserver=4", "etcd=debug", "kube-apiserver=5"].map(|pair| pair.parse().unwrap());
        let levels = LogLevels::with(chosen.into());
        assert_eq!(
            (levels.of("kube-apiserver"), levels.of("etcd"), levels.of("kubelet")),
            ("5", "debug", "1")
        );
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (text, expected) in [
            ("kube-apiserver", "\"kube-apiserver\" is not component=level"),
            (
                "apiserver=1",
                "unknown component \"apiserver\": must be one of containerd, etcd, konnectivity-server, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet",
            ),
            ("kubelet=info", "kubelet: level \"info\" must be a number from 0 to 10"),
            ("etcd=", "etcd: level \"\" must be a word such as debug, info, warn, error"),
        ] {
            assert_eq!(text.parse::<ComponentLevel>().unwrap_err().to_string(), expected);
        }
    }
}
