//! Transcripts: files of commands with the exact answers of a real etcd.
//!
//! A file is a fresh server's life. Lines starting with `>` are commands, `#` comments, `@server` options; what follows a
//! command up to the next blank line is its answer. `outcome COMMAND` shows only whether it failed, for answers that
//! depend on how big a database is. Where ours differs from etcd on purpose the answer is followed by
//! `@ours because <reason>` and ours. `UPDATE_TRANSCRIPTS=1` writes etcd's answers into the file.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::Command;
use crate::parse;
use crate::server::{Flavor, Options, Server};
use crate::session::Session;

const OURS: &str = "@ours because ";

pub struct Transcript {
    path: PathBuf,
    options: Options,
    blocks: Vec<Block>,
}

enum Block {
    /// Comments, options and blank lines, kept as they are.
    Text(String),
    Step(Step),
}

struct Step {
    line: usize,
    /// The lines of the command, without their `> `.
    command: Vec<String>,
    commands: Vec<Command>,
    outcome_only: bool,
    etcd: String,
    ours: Option<Difference>,
}

struct Difference {
    reason: String,
    output: String,
}

/// Runs a file against a fresh server and compares every answer, or writes them when asked to and the server is etcd.
/// For a server that keeps everything in memory the file ends at the first restart.
///
/// # Errors
/// When the file is broken, the server fails, or an answer differs; the message shows expected and found.
pub async fn check(path: &Path, flavor: Flavor) -> Result<()> {
    let mut transcript = Transcript::read(path)?;
    let update =
        flavor == Flavor::Etcd && std::env::var_os("UPDATE_TRANSCRIPTS").is_some_and(|value| value == "1");
    let mut server = Server::start(flavor, transcript.options.clone()).await?;
    let mut session = Session::connect(&server.endpoint()).await?;
    let mut differences = String::new();
    for block in &mut transcript.blocks {
        let Block::Step(step) = block else { continue };
        if step.restarts() && !flavor.survives_restart() {
            break;
        }
        let found = step.run(&mut server, &mut session).await?;
        if update {
            step.etcd = found;
        } else if found != *step.expected(flavor) {
            let place = format!("{}:{}: {}", path.display(), step.line, step.command.join("\n  "));
            writeln!(
                differences,
                "{place}\n--- expected\n{}\n--- {flavor:?} answered\n{found}\n",
                step.expected(flavor)
            )?;
        }
    }
    if update {
        return fs::write(path, transcript.print()).with_context(|| path.display().to_string());
    }
    if differences.is_empty() { Ok(()) } else { bail!("{differences}") }
}

impl Step {
    fn restarts(&self) -> bool {
        self.commands.iter().any(|command| matches!(command, Command::Restart | Command::Kill))
    }

    fn expected(&self, flavor: Flavor) -> &String {
        match &self.ours {
            Some(difference) if flavor != Flavor::Etcd => &difference.output,
            _ => &self.etcd,
        }
    }

    /// The answer to the last command, or to the first that fails.
    async fn run(&self, server: &mut Server, session: &mut Session) -> Result<String> {
        let mut answer = String::new();
        for command in &self.commands {
            answer = match command {
                Command::Restart | Command::Kill => {
                    if *command == Command::Restart {
                        server.restart().await?;
                    } else {
                        server.kill()?;
                        server.resume().await?;
                    }
                    session.reconnect(&server.endpoint()).await?;
                    "restarted".into()
                }
                command => session.run(command).await,
            };
            if answer.starts_with("error ") {
                return Ok(answer);
            }
        }
        Ok(if self.outcome_only { "ok".into() } else { answer })
    }
}

impl Transcript {
    /// # Errors
    /// When the file cannot be read or is not a transcript; the message has file and line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut transcript = Self { path: path.to_owned(), options: Options::default(), blocks: Vec::new() };
        let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line)).peekable();
        while let Some((line, text)) = lines.next() {
            let Some(first) = text.strip_prefix("> ") else {
                transcript.text(line, text)?;
                continue;
            };
            let mut command = vec![first.to_string()];
            while let Some((_, more)) = lines.next_if(|(_, text)| text.starts_with("> ")) {
                command.push(more[2..].to_string());
            }
            let mut answer = Vec::new();
            while let Some((_, more)) = lines.next_if(|(_, text)| !text.is_empty()) {
                answer.push(more);
            }
            let step = transcript.step(line, command, &answer)?;
            transcript.blocks.push(Block::Step(step));
        }
        Ok(transcript)
    }

    /// The commands of the whole file, in order.
    pub fn commands(&self) -> Vec<Command> {
        let steps = self.blocks.iter().filter_map(|block| match block {
            Block::Step(step) => Some(&step.commands),
            Block::Text(_) => None,
        });
        steps.flatten().cloned().collect()
    }

    fn text(&mut self, line: usize, text: &str) -> Result<()> {
        if let Some(option) = text.strip_prefix("@server ") {
            self.option(option).with_context(|| self.place(line))?;
        } else if !text.is_empty() && !text.starts_with('#') {
            bail!("{}: neither a command nor a comment: {text:?}", self.place(line));
        }
        self.blocks.push(Block::Text(text.to_string()));
        Ok(())
    }

    fn option(&mut self, option: &str) -> Result<()> {
        let (name, value) = option.split_once('=').context("an option is name=value")?;
        match name {
            "progress_interval_ms" => {
                self.options.progress_interval = Some(Duration::from_millis(value.parse()?))
            }
            "quota_bytes" => self.options.quota_bytes = Some(value.parse()?),
            other => bail!("unknown server option {other}"),
        }
        Ok(())
    }

    fn step(&self, line: usize, command: Vec<String>, answer: &[&str]) -> Result<Step> {
        let text = command.join(" ");
        let (outcome_only, text) =
            text.strip_prefix("outcome ").map_or((false, text.as_str()), |rest| (true, rest));
        let commands = parse::commands(text).with_context(|| self.place(line))?;
        let marker = answer.iter().position(|line| line.starts_with(OURS));
        let ours = marker.map(|at| Difference {
            reason: answer[at][OURS.len()..].to_string(),
            output: answer[at + 1..].join("\n"),
        });
        let etcd = answer[..marker.unwrap_or(answer.len())].join("\n");
        Ok(Step { line, command, commands, outcome_only, etcd, ours })
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    fn print(&self) -> String {
        let mut text = String::new();
        let mut line = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        for block in &self.blocks {
            match block {
                Block::Text(text) => line(text),
                Block::Step(step) => {
                    step.command.iter().for_each(|command| line(&format!("> {command}")));
                    if !step.etcd.is_empty() {
                        line(&step.etcd);
                    }
                    if let Some(ours) = &step.ours {
                        line(&format!("{OURS}{}", ours.reason));
                        line(&ours.output);
                    }
                }
            }
        }
        text
    }
}
