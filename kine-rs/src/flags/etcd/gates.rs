//! Feature gates: the names etcd knows, and the words it has for those it does not.
//!
//! No gate changes anything here: what they switch belongs to raft, to bbolt, or is always so.

use crate::flags::parse_bool;

pub struct Gate {
    pub name: &'static str,
    pub stage: Stage,
    pub default: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Alpha,
    Beta,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        }
    }
}

/// Switches all gates of a stage that are not named themselves.
const OF_STAGE: [(&str, Stage); 2] = [("AllAlpha", Stage::Alpha), ("AllBeta", Stage::Beta)];

const fn alpha(name: &'static str) -> Gate {
    Gate { name, stage: Stage::Alpha, default: false }
}

const fn beta(name: &'static str) -> Gate {
    Gate { name, stage: Stage::Beta, default: true }
}

/// Those of etcd 3.7.
pub const GATES: [Gate; 9] = [
    alpha("CompactHashCheck"),
    beta("FastLeaseKeepAlive"),
    alpha("InitialCorruptCheck"),
    alpha("LeaseCheckpoint"),
    alpha("LeaseCheckpointPersist"),
    alpha("PriorityRequest"),
    alpha("SetMemberLocalAddr"),
    alpha("StopGRPCServiceOnDefrag"),
    beta("TxnModeWriteWithSharedBuffer"),
];

/// Whether each of `GATES` is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches([bool; GATES.len()]);

impl Default for Switches {
    fn default() -> Self {
        Switches(GATES.map(|gate| gate.default))
    }
}

impl Switches {
    /// `Name=true,Name=false`.
    ///
    /// # Errors
    /// Etcd's text for what is no gate or no switch.
    pub fn parse(text: &str) -> Result<Switches, String> {
        let (mut switches, mut of_stage) = ([None; GATES.len()], [None; OF_STAGE.len()]);
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (name, value) =
                item.split_once('=').map_or((item, None), |(name, value)| (name, Some(value)));
            let name = name.trim();
            let value = value.ok_or_else(|| format!("missing bool value for {name}"))?.trim();
            let value = parse_bool(value).map_err(|_| {
                format!("invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")
            })?;
            if let Some(gate) = GATES.iter().position(|gate| gate.name == name) {
                switches[gate] = Some(value);
            } else if let Some(stage) = OF_STAGE.iter().position(|(all, _)| *all == name) {
                of_stage[stage] = Some(value);
            } else {
                return Err(format!("unrecognized feature gate: {name}"));
            }
        }
        let stage = |gate: &Gate| OF_STAGE.iter().position(|(_, stage)| *stage == gate.stage);
        let mut result = Switches::default();
        for (at, gate) in GATES.iter().enumerate() {
            let of_stage = stage(gate).and_then(|stage| of_stage[stage]);
            result.0[at] = switches[at].or(of_stage).unwrap_or(gate.default);
        }
        Ok(result)
    }

    pub fn all(&self) -> impl Iterator<Item = (&'static Gate, bool)> {
        GATES.iter().zip(self.0)
    }

    pub fn is_on(&self, name: &str) -> bool {
        self.all().any(|(gate, on)| gate.name == name && on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_switched_by_name_and_by_stage() {
        let on = |text| {
            let switches = Switches::parse(text).unwrap();
            switches.all().filter(|(_, on)| *on).map(|(gate, _)| gate.name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(on(""), "FastLeaseKeepAlive TxnModeWriteWithSharedBuffer");
        assert_eq!(on("AllBeta=false, LeaseCheckpoint = true"), "LeaseCheckpoint");
        assert_eq!(on("PriorityRequest=true,AllAlpha=false,AllBeta=0"), "PriorityRequest");
    }

    #[test]
    fn what_is_no_gate_is_told_in_etcds_words() {
        let error = |text| Switches::parse(text).unwrap_err();
        assert_eq!(error("Nope=true"), "unrecognized feature gate: Nope");
        assert_eq!(error("LeaseCheckpoint"), "missing bool value for LeaseCheckpoint");
        let text =
            "invalid value of LeaseCheckpoint=x, err: strconv.ParseBool: parsing \"x\": invalid syntax";
        assert_eq!(error("LeaseCheckpoint=x"), text);
    }
}
