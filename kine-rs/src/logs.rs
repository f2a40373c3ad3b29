//! Log lines: plain for people, JSON objects with the names that readers of kine's and etcd's logs expect.
//!
//! `init` is called once, by `main`. Nothing here decides what is worth a line.

pub mod rotation;

use rotation::{RotatingFile, Rotation};
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// An object a line.
    Json(Names),
    /// etcd's `console`: columns separated by tabs, the fields as an object.
    Console,
}

/// What the fixed fields are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    level: &'static str,
    time: &'static str,
    message: &'static str,
}

pub const ETCD: Names = Names { level: "level", time: "ts", message: "msg" };
pub const KINE: Names = Names { level: "severity", time: "timestamp", message: "message" };

/// Where lines go: `stdout`, `stderr` (also `default`), or files that are appended to.
#[derive(Clone, Debug)]
pub struct Outputs {
    pub paths: Vec<String>,
    /// Of the files.
    pub rotation: Option<Rotation>,
}

impl Outputs {
    pub fn stderr() -> Outputs {
        Outputs { paths: vec!["stderr".to_owned()], rotation: None }
    }

    /// Those that are files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let streams = ["", "default", "stderr", "stdout", "systemd/journal"];
        self.paths.iter().map(String::as_str).filter(move |path| !streams.contains(path))
    }

    fn open(&self, path: &str) -> Result<Box<dyn Write + Send>, String> {
        let failed = |error| format!("log output {path}: {error}");
        Ok(match (path, self.rotation) {
            ("" | "default" | "stderr" | "systemd/journal", _) => Box::new(std::io::stderr()),
            ("stdout", _) => Box::new(std::io::stdout()),
            (path, Some(rotation)) => {
                Box::new(RotatingFile::open(Path::new(path), rotation).map_err(failed)?)
            }
            (path, None) => Box::new(File::options().create(true).append(true).open(path).map_err(failed)?),
        })
    }
}

/// Starts logging.
///
/// # Errors
/// When a file can't be opened, with its name.
pub fn init(style: Style, level: Level, outputs: &Outputs) -> Result<(), String> {
    let outputs = outputs.paths.iter().map(|path| outputs.open(path)).collect::<Result<Vec<_>, _>>()?;
    let logs = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(Mutex::new(Tee(outputs)));
    match style {
        Style::Plain => logs.init(),
        style => logs.event_format(Lines(style)).init(),
    }
    Ok(())
}

/// Every line goes to all of them. One that can't take it any more (a pipe nobody reads) is no reason to stop serving.
struct Tee(Vec<Box<dyn Write + Send>>);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for output in &mut self.0 {
            output.write_all(bytes).ok();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        for output in &mut self.0 {
            output.flush().ok();
        }
        Ok(())
    }
}

struct Lines(Style);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Line {
            level: level(metadata.level()),
            time: time(OffsetDateTime::now_utc()),
            caller: caller(metadata.file().unwrap_or(""), metadata.line().unwrap_or(0)),
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut line);
        let text = match self.0 {
            Style::Json(names) => line.json(names),
            Style::Plain | Style::Console => line.console(),
        };
        writeln!(out, "{text}")
    }
}

/// A time as it stands in a line.
pub fn time(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC).format(TIME).expect("every time has these parts")
}

fn level(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// `server/http.rs:12` of a longer path.
fn caller(file: &str, line: u32) -> String {
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    format!("{}:{line}", &file[start..])
}

struct Line {
    level: &'static str,
    time: String,
    caller: String,
    message: String,
    fields: Vec<(String, serde_json::Value)>,
}

impl Line {
    fn json(&self, names: Names) -> String {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let mut out = format!(
            "{{{}:{},{}:{},\"caller\":{},{}:{}",
            text(names.level),
            text(self.level),
            text(names.time),
            text(&self.time),
            text(&self.caller),
            text(names.message),
            text(&self.message),
        );
        for (name, value) in &self.fields {
            out += &format!(",{}:{value}", text(name));
        }
        out + "}"
    }

    fn console(&self) -> String {
        let fields: serde_json::Map<_, _> = self.fields.iter().cloned().collect();
        let head = format!("{}\t{}\t{}\t{}", self.time, self.level, self.caller, self.message);
        if fields.is_empty() { head } else { format!("{head}\t{}", serde_json::Value::Object(fields)) }
    }

    fn add(&mut self, field: &Field, value: serde_json::Value) {
        match (field.name(), value) {
            ("message", serde_json::Value::String(text)) => self.message = text,
            (name, value) => self.fields.push((name.replace('_', "-"), value)),
        }
    }
}

impl Visit for Line {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // A list of texts reads the same in JSON.
        let list = text.starts_with('[').then(|| serde_json::from_str(&text).ok()).flatten();
        self.add(field, list.unwrap_or_else(|| text.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(style: Style) -> String {
        let memory = Memory::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(Mutex::new(Tee(vec![Box::new(memory.clone())])))
            .event_format(Lines(style))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(member_id = 7, list = ?["a"], error = %"no \"way\"", "can't go on");
        });
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_is_an_object_with_etcds_names() {
        let line: serde_json::Value = serde_json::from_str(&logged(Style::Json(ETCD))).unwrap();
        assert_eq!((&line["level"], &line["msg"]), (&"warn".into(), &"can't go on".into()));
        assert_eq!((&line["member-id"], &line["error"]), (&7.into(), &"no \"way\"".into()));
        assert_eq!(line["list"], serde_json::json!(["a"]));
        assert!(line["caller"].as_str().unwrap().starts_with("src/logs.rs:"), "{line}");
        let time = line["ts"].as_str().unwrap();
        assert!(time.len() == "2006-01-02T15:04:05.999999Z".len() && time.ends_with('Z'), "{time}");
    }

    #[test]
    fn a_console_line_has_columns() {
        let line = logged(Style::Console);
        let columns: Vec<&str> = line.trim_end().split('\t').collect();
        assert_eq!((columns.len(), columns[1], columns[3]), (5, "warn", "can't go on"), "{line}");
        assert_eq!(columns[4], r#"{"error":"no \"way\"","list":["a"],"member-id":7}"#);
    }
}
