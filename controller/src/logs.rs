//! What k0s and its components say on the console.
//!
//! One line each: time, level, who, text, then fields. Invariant: colours only on a terminal and not with NO_COLOR. A
//! long-running command writes to stdout from level info on, any other to stderr from level warning on, as k0s does.
//! Installed once by `cli`; everybody logs through `tracing`. Whoever logs in a long-running command waits for no console:
//! see [`queue`].

mod queue;

use std::fmt::{self, Write};
use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Crates whose debug output drowns ours.
const QUIET_CRATES: [&str; 6] = ["h2", "hyper", "hyper_util", "rustls", "tonic", "tower"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Of a command that stays: the log is its output.
    LongRunning,
    /// Of a command whose output is something else.
    Short,
}

static LONG_RUNNING: OnceLock<queue::Queue> = OnceLock::new();

/// # Panics
/// When called twice in a process.
pub fn install(console: Console, level: Level) {
    let filter = Targets::new()
        .with_default(level)
        .with_targets(QUIET_CRATES.map(|name| (name, LevelFilter::from_level(level.min(Level::INFO)))));
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let registry = tracing_subscriber::registry().with(filter);
    // A console that went away must not take k0s with it: there is nobody left to tell.
    let layer = tracing_subscriber::fmt::layer().log_internal_errors(false);
    match console {
        Console::LongRunning => {
            let coloured = io::stdout().is_terminal() && !no_color;
            let queue = LONG_RUNNING.get_or_init(|| queue::Queue::start(io::stdout()));
            registry.with(layer.event_format(Line { coloured }).with_writer(queue.clone())).init();
        }
        Console::Short => {
            let coloured = io::stderr().is_terminal() && !no_color;
            registry.with(layer.event_format(Line { coloured }).with_writer(io::stderr)).init();
        }
    }
}

/// Waits a moment for what was logged to be written: before the process ends.
pub fn flush() {
    if let Some(queue) = LONG_RUNNING.get() {
        queue.flush();
    }
}

struct Line {
    coloured: bool,
}

const RESET: &str = "\x1b[0m";
/// Tags get a colour by name, so that a component keeps its own over restarts. Red and yellow are left to the levels.
const TAG_COLOURS: [&str; 6] = ["\x1b[36m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[96m", "\x1b[95m"];

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        let tag = fields.component.as_deref().unwrap_or("k0s");
        let (level_colour, tag_colour, reset) = match self.coloured {
            true => (colour_of(level), TAG_COLOURS[tag_number(tag) % TAG_COLOURS.len()], RESET),
            false => ("", "", ""),
        };
        let time = local_time(SystemTime::now());
        writeln!(
            writer,
            "{time} {level_colour}{level:<5}{reset} {tag_colour}{tag}:{reset} {}{}",
            fields.message, fields.others
        )
    }
}

fn colour_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "",
        _ => "\x1b[2m",
    }
}

fn tag_number(tag: &str) -> usize {
    tag.bytes().map(usize::from).sum()
}

/// The fields of one event, the two that have a place of their own apart.
#[derive(Default)]
struct Fields {
    message: String,
    component: Option<String>,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            "component" => self.component = Some(value.to_owned()),
            // Which pipe a line of a component came from tells an administrator nothing.
            "stream" => {}
            name => write_field(&mut self.others, name, format_args!("{value:?}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message.push_str(&format!("{value:?}")),
            "component" => self.component = Some(format!("{value:?}")),
            "stream" => {}
            // `log` records carry these beside what they say.
            name if name.starts_with("log.") => {}
            name => write_field(&mut self.others, name, format_args!("{value:?}")),
        }
    }
}

fn write_field(text: &mut String, name: &str, value: fmt::Arguments<'_>) {
    write!(text, " {name}={value}").expect("writing to a string cannot fail");
}

struct LocalTime(libc::tm);

fn local_time(now: SystemTime) -> LocalTime {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) as libc::time_t;
    // SAFETY: a tm is plain numbers and a pointer, for which all zeros are valid.
    let mut broken_down: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to live values of the right type; k0s never changes its own environment (TZ) after the start.
    unsafe { libc::localtime_r(&seconds, &mut broken_down) };
    LocalTime(broken_down)
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = &self.0;
        let (year, month, day) = (t.tm_year + 1900, t.tm_mon + 1, t.tm_mday);
        write!(f, "{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", t.tm_hour, t.tm_min, t.tm_sec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(coloured: bool, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Line { coloured })
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn line_says_when_how_bad_who_and_what() {
        let line = logged(false, || {
            tracing::warn!(component = "kube-apiserver", stream = "stderr", "it {}", "said")
        });
        let (time, rest) = line.split_at("2026-11-21 04:30:00".len());
        assert!(time.bytes().all(|b| b.is_ascii_digit() || b"- :".contains(&b)), "{time}");
        assert_eq!(rest, " WARN  kube-apiserver: it said\n");
    }

    #[test]
    fn other_fields_follow_and_colours_only_when_asked() {
        let line = logged(false, || tracing::info!(restarts = 3, reason = "x y", "again"));
        assert!(line.ends_with(" INFO  k0s: again restarts=3 reason=\"x y\"\n"), "{line}");
        assert!(logged(true, || tracing::error!("bad")).contains("\x1b[31mERROR\x1b[0m"));
    }
}
