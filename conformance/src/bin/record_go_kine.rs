//! Makes the databases of `conformance/go-kine`: runs its history on a real Go kine, writes down what that tells about
//! everything, kills it, and keeps the database as it is then, with its WAL.
//!
//! `K0S_TEST_BIN_DIR=<directory with a kine> cargo run -p conformance --bin record_go_kine -- <version>`; the README
//! beside the databases says how each kine was built.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use conformance::command::Command;
use conformance::parse;
use conformance::server::{Flavor, Options, Server};
use conformance::session::Session;
use conformance::told;
use rusqlite::Connection;

/// What kine does not compact unless told otherwise, which its releases before 0.13 can't be.
const RETAINED: u32 = 1000;
/// They compact to what was current five minutes ago, every five minutes.
const COMPACTED_WITHIN: Duration = Duration::from_secs(20 * 60);
const FILLED_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

#[derive(Parser)]
#[command(about = "A database of a real Go kine, and what it told before it was killed")]
struct Arguments {
    /// The name of the files: the version of the kine in K0S_TEST_BIN_DIR
    version: String,
    /// How many revisions it is told not to compact [default: 1000, as it is]
    #[arg(long, value_name = "REVISIONS")]
    retain: Option<u32>,
    /// Where history.txt is and the files go
    #[arg(long, default_value = "conformance/go-kine", value_name = "DIR")]
    directory: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Arguments { version, retain, directory } = Arguments::parse();
    let history = fs::read_to_string(directory.join("history.txt")).context("history.txt")?;
    let history = history.replace("times retained", &format!("times {}", retain.unwrap_or(RETAINED)));
    let options = Options { go_kine_retains: retain, ..Options::default() };
    let mut server = Server::start(Flavor::GoKine, options).await?;
    let mut session = Session::connect(&server.endpoint()).await?;
    let mut tried = String::new();
    for line in history.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let answer = step(line, &tried, &mut server, &mut session).await.with_context(|| line.to_owned())?;
        tried = answer.unwrap_or(tried);
    }
    let told = told::told(&server.endpoint()).await?;
    server.kill()?;
    compress(told.as_bytes(), &directory.join(format!("{version}.txt.gz")))?;
    for suffix in ["", "-wal"] {
        let file = fs::read(server.dir().join(format!("state.db{suffix}")))?;
        compress(&file, &directory.join(format!("{version}.db{suffix}.gz")))?;
    }
    Ok(())
}

/// Does what a line says; gives the answer to something that was only tried.
async fn step(line: &str, tried: &str, server: &mut Server, session: &mut Session) -> Result<Option<String>> {
    let (verb, rest) = line.split_once(' ').context("a word is missing")?;
    match verb {
        "@compacted" => wait_until_compacted(server, rest.parse()?).await?,
        "@gap" => leave_out(server, session, rest.parse()?).await?,
        "then" if !tried.contains(" succeeded") => {}
        "try" | "then" => return ask(rest, session).await.map(Some),
        "times" => {
            let (count, what) = rest.split_once(' ').context("nothing to repeat")?;
            for number in 0..count.parse::<u32>()? {
                write(&what.replace('%', &number.to_string()), session).await?;
            }
        }
        _ => write(line, session).await?,
    }
    Ok(None)
}

async fn ask(line: &str, session: &mut Session) -> Result<String> {
    let mut answer = String::new();
    for command in parse::commands(line)? {
        answer = session.run(&command).await;
        println!("{line}: {answer}");
    }
    Ok(answer)
}

/// A write in kube-apiserver's form, which must succeed.
async fn write(line: &str, session: &mut Session) -> Result<()> {
    for command in kubernetes(line)? {
        let answer = session.run(&command).await;
        ensure!(answer.contains(" succeeded"), "{line}: {answer}");
    }
    Ok(())
}

fn kubernetes(line: &str) -> Result<Vec<Command>> {
    let (verb, rest) = line.split_once(' ').context("a word is missing")?;
    let key = key_of(rest)?;
    parse::commands(&match verb {
        "create" => format!("txn {{ if mod({key}) = 0 ; then put {rest} }}"),
        "update" => format!("txn {{ if mod({key}) = known ; then put {rest} ; else get {key} }}"),
        "delete" => format!("txn {{ if mod({key}) = known ; then del {key} ; else get {key} }}"),
        _ => bail!("neither create, update nor delete"),
    })
}

/// The first word, which may be in quotes.
fn key_of(words: &str) -> Result<&str> {
    let Some(quoted) = words.strip_prefix('"') else {
        return Ok(words.split(' ').next().unwrap_or(words));
    };
    let mut escaped = false;
    for (at, letter) in quoted.char_indices() {
        if letter == '"' && !escaped {
            return Ok(&words[..at + 2]);
        }
        escaped = letter == '\\' && !escaped;
    }
    bail!("an unfinished quote")
}

async fn wait_until_compacted(server: &Server, revision: i64) -> Result<()> {
    let started = Instant::now();
    while !told::is_compacted(&server.endpoint(), revision).await? {
        ensure!(started.elapsed() < COMPACTED_WITHIN, "not compacted within {COMPACTED_WITHIN:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Ids are missing after failed transactions of other databases; in SQLite's they have to be taken away.
async fn leave_out(server: &mut Server, session: &mut Session, count: u32) -> Result<()> {
    server.restart().await?;
    session.reconnect(&server.endpoint()).await?;
    // A kine that has a watch to serve looks at every revision, and sees which are missing.
    for line in ["watch w prefix /registry/ rev=head", "events w 1"] {
        ask(line, session).await?;
    }
    let database = Connection::open(server.database())?;
    database.busy_timeout(FILLED_WITHIN)?;
    database.execute("UPDATE sqlite_sequence SET seq = seq + ?1 WHERE name = 'kine'", [count])?;
    write("create /registry/pods/default/after-the-gap one", session).await?;
    let started = Instant::now();
    while filled(&database)? < count {
        ensure!(started.elapsed() < FILLED_WITHIN, "not filled within {FILLED_WITHIN:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn filled(database: &Connection) -> Result<u32> {
    Ok(database.query_row("SELECT count(*) FROM kine WHERE name LIKE 'gap-%'", [], |row| row.get(0))?)
}

fn compress(bytes: &[u8], to: &Path) -> Result<()> {
    let mut gzip = Process::new("gzip")
        .args(["-9", "-n"])
        .stdin(Stdio::piped())
        .stdout(fs::File::create(to)?)
        .spawn()
        .context("start gzip")?;
    gzip.stdin.take().context("piped")?.write_all(bytes)?;
    ensure!(gzip.wait()?.success(), "gzip failed");
    Ok(())
}
