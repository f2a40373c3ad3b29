//! etcd's flags about its log -> where it goes, how it looks, and when its file is full.

use super::{Flags, Values};
use crate::logs::rotation::{Rotation, RotationError};
use crate::logs::{self, Outputs, Style};
use tracing::Level;

/// Why there is no log to write to.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("--logger=capnslog is removed in v3.5")]
    Capnslog,
    #[error("unknown logger option {0:?}")]
    Logger(String),
    #[error("unrecognized level: {0:?}")]
    Level(String),
    #[error("unknown log format: {0}, supported values json, console")]
    Format(String),
    #[error("multi logoutput for \"default\" is not supported yet")]
    SeveralOutputs,
    #[error("--log-outputs requires a single file path when --log-rotate-config-json is defined")]
    NoSingleFile,
    #[error(transparent)]
    Rotation(#[from] RotationError),
}

/// How to log, from the flags alone: known before anything else is, so that all that is wrong can be logged.
#[derive(Debug)]
pub struct Logging {
    pub style: Style,
    pub level: Level,
    pub outputs: Outputs,
}

impl Logging {
    /// # Errors
    /// What etcd refuses too.
    pub fn new(values: &Values) -> Result<Logging, LogError> {
        match values.text("logger") {
            "zap" => {}
            "capnslog" => return Err(LogError::Capnslog),
            other => return Err(LogError::Logger(other.to_owned())),
        }
        let flags = Flags(values);
        let outputs = Outputs { paths: flags.list("log-outputs"), rotation: None };
        if outputs.paths.len() > 1 && outputs.paths.iter().any(|path| path == "default") {
            return Err(LogError::SeveralOutputs);
        }
        let rotation = if flags.bool("enable-log-rotation") {
            // Without any file there is nothing to rotate; beside one, the streams are let be.
            match outputs.files().count() {
                0 if outputs.paths.len() <= 1 => return Err(LogError::NoSingleFile),
                0 | 1 => {}
                _ => return Err(LogError::NoSingleFile),
            }
            Some(Rotation::parse(values.text("log-rotation-config-json"))?)
        } else {
            None
        };
        let style = match values.text("log-format") {
            "json" => Style::Json(logs::ETCD),
            "console" => Style::Console,
            other => return Err(LogError::Format(other.to_owned())),
        };
        let level = match values.text("log-level") {
            "debug" => Level::DEBUG,
            "info" => Level::INFO,
            "warn" => Level::WARN,
            "error" | "dpanic" | "panic" | "fatal" => Level::ERROR,
            other => return Err(LogError::Level(other.to_owned())),
        };
        Ok(Logging { style, level, outputs: Outputs { rotation, ..outputs } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_go_where_one_file_can_be_rotated() {
        let logging = |flags: &[&str]| {
            let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
            Logging::new(&Values::parse(&flags, std::iter::empty()).expect("the form is right"))
        };
        let rotated = logging(&["--enable-log-rotation", "--log-outputs=stderr,x.log"]).unwrap();
        assert_eq!(rotated.outputs.rotation.map(|rotation| rotation.size_max), Some(100 << 20));
        for outputs in ["default", "stderr", "x.log,y.log"] {
            let refused = logging(&["--enable-log-rotation", "--log-outputs", outputs]);
            assert!(matches!(refused, Err(LogError::NoSingleFile)), "{outputs}");
        }
        assert!(logging(&[]).unwrap().outputs.rotation.is_none());
    }
}
