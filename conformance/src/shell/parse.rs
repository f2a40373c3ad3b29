//! Scripts as text: one command line a line, standard input and exceptions below it.
//!
//! Pure; the forms are in `conformance/etcdctl/README.md`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

pub struct Script {
    /// Flags of the servers.
    pub flags: Vec<String>,
    pub steps: Vec<Step>,
}

pub struct Step {
    pub line: usize,
    pub text: String,
    pub action: Action,
    /// Standard input of the command.
    pub input: String,
    /// What ours says where it differs on purpose.
    pub ours: Option<String>,
}

pub enum Action {
    Run {
        words: Vec<String>,
        succeeds: bool,
    },
    /// Again and again until it prints that many lines.
    Until {
        lines: usize,
        words: Vec<String>,
    },
    Start {
        name: String,
        words: Vec<String>,
    },
    Type {
        name: String,
        line: String,
    },
    Lines {
        name: String,
        count: usize,
    },
    Signal {
        name: String,
        signal: Signal,
    },
    Finish {
        name: String,
    },
    /// Waits until the server has that many watchers.
    Watchers(usize),
}

impl Script {
    /// # Errors
    /// When the file cannot be read or a line has no meaning.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut script = Script { flags: Vec::new(), steps: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            script.line(number + 1, line).with_context(|| format!("{}:{}", path.display(), number + 1))?;
        }
        Ok(script)
    }

    fn line(&mut self, number: usize, line: &str) -> Result<()> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "" | "#" => return Ok(()),
            "@flags" => {
                self.flags.extend(words(rest)?);
                return Ok(());
            }
            "<" => {
                let input = &mut self.last()?.input;
                input.push_str(rest);
                input.push('\n');
                return Ok(());
            }
            "@ours" => {
                if !rest.starts_with("because ") {
                    bail!("a reason is missing: @ours because REASON");
                }
                self.last()?.ours = Some(String::new());
                return Ok(());
            }
            "=" => {
                let ours = self.last()?.ours.as_mut().context("no @ours above")?;
                ours.push_str(rest);
                ours.push('\n');
                return Ok(());
            }
            _ => {}
        }
        for rest in alternatives(rest) {
            let action = action(kind, &rest)?;
            let text = format!("{kind} {rest}");
            self.steps.push(Step { line: number, text, action, input: String::new(), ours: None });
        }
        Ok(())
    }

    fn last(&mut self) -> Result<&mut Step> {
        self.steps.last_mut().context("no command above")
    }
}

fn action(kind: &str, rest: &str) -> Result<Action> {
    let named = || -> Result<(String, &str)> {
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        Ok((name.to_owned(), rest))
    };
    Ok(match kind {
        ">" => Action::Run { words: words(rest)?, succeeds: true },
        "!" => Action::Run { words: words(rest)?, succeeds: false },
        "@start" => named().and_then(|(name, rest)| Ok(Action::Start { name, words: words(rest)? }))?,
        "@type" => named().map(|(name, rest)| Action::Type { name, line: rest.to_owned() })?,
        "@lines" => named().and_then(|(name, rest)| Ok(Action::Lines { name, count: rest.parse()? }))?,
        "@signal" => named().and_then(|(name, rest)| Ok(Action::Signal { name, signal: signal(rest)? }))?,
        "@finish" => named().map(|(name, _)| Action::Finish { name })?,
        "@until" => named()
            .and_then(|(lines, rest)| Ok(Action::Until { lines: lines.parse()?, words: words(rest)? }))?,
        "@watchers" => Action::Watchers(rest.parse()?),
        other => bail!("unknown kind of line {other:?}"),
    })
}

fn signal(name: &str) -> Result<Signal> {
    match name {
        "INT" => Ok(Signal::INT),
        "TERM" => Ok(Signal::TERM),
        other => bail!("unknown signal {other:?}"),
    }
}

fn words(text: &str) -> Result<Vec<String>> {
    shlex::split(text).context("a quote is not closed")
}

/// `-w {simple,json}` as a shell expands it: one line for each.
fn alternatives(line: &str) -> Vec<String> {
    let braces = line.find("-w {").and_then(|start| {
        let open = start + "-w ".len();
        line[open..].find('}').map(|length| (open, open + length))
    });
    let Some((open, close)) = braces else { return vec![line.to_owned()] };
    let (before, after) = (&line[..open], &line[close + 1..]);
    line[open + 1..close].split(',').map(|format| format!("{before}{format}{after}")).collect()
}
