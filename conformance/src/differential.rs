//! Two servers, one program: the same commands to both, and the first answer that differs.
//!
//! Each side runs at its own pace for a stretch, then the answers are compared one by one. Every program starts on fresh
//! servers, so that a program alone reproduces what it found.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::command::Command;
use crate::print;
use crate::server::{Flavor, Options, Server};
use crate::session::Session;

/// How many commands a side may be ahead before answers are compared.
const STRETCH: usize = 100;

/// The answer of a process that ended by itself.
const GONE: &str = "the server has ended";

pub struct Difference {
    /// Index of the command whose answers differ.
    pub index: usize,
    pub left: String,
    pub right: String,
}

/// A running server and the session that talks to it.
pub struct Side {
    server: Server,
    session: Session,
}

impl Side {
    /// # Errors
    /// When the server does not start.
    pub async fn start(flavor: Flavor) -> Result<Self> {
        let server = Server::start(flavor, Options::default()).await?;
        let session = Session::connect(&server.endpoint()).await?;
        Ok(Self { server, session })
    }

    async fn run(&mut self, command: &Command) -> Result<String> {
        match command {
            Command::Restart => self.server.restart().await?,
            Command::Kill => {
                self.server.kill()?;
                self.server.resume().await?;
            }
            command => {
                let answer = self.session.run(command).await;
                return Ok(if breaks_off(&answer) && self.server.has_ended().await? {
                    GONE.into()
                } else {
                    answer
                });
            }
        }
        self.session.reconnect(&self.server.endpoint()).await?;
        Ok("restarted".into())
    }

    /// The answers up to the end of `commands` or of the server.
    async fn run_all(&mut self, commands: &[Command]) -> Result<Vec<String>> {
        let mut answers = Vec::with_capacity(commands.len());
        for command in commands {
            answers.push(self.run(command).await.with_context(|| print::command(command))?);
            if answers.last().is_some_and(|answer| answer == GONE) {
                break;
            }
        }
        Ok(answers)
    }
}

/// Whether an answer is what a client says when its connection breaks, and not what a server says.
fn breaks_off(answer: &str) -> bool {
    let by_client =
        ["failed: ", "error Unavailable: ", "error Unknown: ", "error Cancelled: ", "error Internal: "];
    by_client.iter().any(|start| answer.starts_with(start)) && !answer.contains("etcdserver: ")
}

/// Starts both sides at once.
///
/// # Errors
/// When one does not start.
pub async fn start(flavors: (Flavor, Flavor)) -> Result<(Side, Side)> {
    tokio::try_join!(Side::start(flavors.0), Side::start(flavors.1))
}

/// Runs `program` on two fresh sides; a difference is a result, not an error, and so is a server that ends by itself.
///
/// # Errors
/// When a server fails; the message names the command.
pub async fn run(program: &[Command], sides: &mut (Side, Side)) -> Result<Option<Difference>> {
    for (stretch, commands) in program.chunks(STRETCH).enumerate() {
        let (left, right) = tokio::try_join!(sides.0.run_all(commands), sides.1.run_all(commands))?;
        for (offset, (left, right)) in left.into_iter().zip(right).enumerate() {
            if left != right || left == GONE {
                return Ok(Some(Difference { index: stretch * STRETCH + offset, left, right }));
            }
        }
    }
    Ok(None)
}

/// Runs `program` on fresh servers of the two flavors.
///
/// # Errors
/// As [`run`].
pub async fn run_fresh(program: &[Command], flavors: (Flavor, Flavor)) -> Result<Option<Difference>> {
    run(program, &mut start(flavors).await?).await
}

/// The command that found a difference, with both answers.
pub fn place(program: &[Command], difference: &Difference) -> String {
    let Difference { index, left, right } = difference;
    format!("command {index}: {}\n--- left\n{left}\n--- right\n{right}", print::command(&program[*index]))
}

/// A program that found a difference as a transcript: it can be read, and run again with `--replay`.
pub fn transcript(program: &[Command], difference: &Difference, flavors: (Flavor, Flavor)) -> String {
    let mut text = String::new();
    for command in &program[..=difference.index] {
        writeln!(text, "> {}", print::command(command)).expect("a String takes everything");
    }
    let (left, right) = (&difference.left, &difference.right);
    write!(text, "{left}\n@ours because {:?} answers otherwise than {:?}\n{right}\n", flavors.1, flavors.0)
        .expect("a String takes everything");
    text.replace("\n> ", "\n\n> ")
}
