//! Command lines of the real `etcdctl` and `etcdutl`, as data, beside each other on a real etcd and on ours.
//!
//! A script (`conformance/etcdctl/*.txt`, read by [`parse`]) is the life of two fresh servers. Every command runs on both
//! ([`side`]); exit status, standard output and standard error must be the same once what has to differ is replaced by a
//! name ([`normal`]). Nothing is expected but what etcd does in the same minute, so a script says only whether a command is
//! to succeed: a mistyped one would fail alike on both.

mod normal;
mod parse;
mod side;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::server::{Flavor, Options};
use parse::{Action, Script, Step};
use side::{Outcome, Side};

/// Runs a script on both servers.
///
/// # Errors
/// When the script is broken, a server fails, or an outcome differs; the message shows every difference.
pub async fn check(path: &Path) -> Result<()> {
    let script = Script::read(path)?;
    let options = Options { etcd_flags: script.flags.clone(), ..Options::default() };
    let (etcd, ours) = tokio::join!(
        Side::start(Flavor::Etcd, options.clone()),
        Side::start(Flavor::KineAsEtcd, options.clone())
    );
    let (mut etcd, mut ours) = (etcd?, ours?);
    let mut differences = String::new();
    for step in &script.steps {
        let outcomes = tokio::join!(perform(step, &mut etcd), perform(step, &mut ours));
        let place = || format!("{}:{}: {}", path.display(), step.line, step.text);
        // What differed before may be why.
        let failed = |server: &str| format!("{differences}{server}: {}", place());
        let outcome = outcomes.0.with_context(|| failed("etcd"))?;
        let our_outcome = outcomes.1.with_context(|| failed("ours"))?;
        if let Some(wrong) = judge(step, outcome.as_ref(), our_outcome.as_ref()) {
            writeln!(differences, "{}\n{wrong}", place())?;
        }
    }
    if differences.is_empty() { Ok(()) } else { bail!("{differences}") }
}

async fn perform(step: &Step, side: &mut Side) -> Result<Option<Outcome>> {
    match &step.action {
        Action::Run { words, .. } => side.run(words, &step.input).await.map(Some),
        Action::Until { lines, words } => side.until(*lines, words).await.map(Some),
        Action::Start { name, words } => side.launch(name, words).map(|()| None),
        Action::Type { name, line } => side.type_line(name, line).await.map(|()| None),
        Action::Lines { name, count } => side.lines(name, *count).await.map(|()| None),
        Action::Signal { name, signal } => side.signal(name, *signal).map(|()| None),
        Action::Finish { name } => side.finish(name).await.map(Some),
        Action::Watchers(count) => side.watchers(*count).await.map(|()| None),
    }
}

fn judge(step: &Step, etcd: Option<&Outcome>, ours: Option<&Outcome>) -> Option<String> {
    let (etcd, ours) = (etcd?, ours?);
    if let Action::Run { succeeds, .. } = step.action
        && succeeds != (etcd.status == "0")
    {
        return Some(format!("unexpected on etcd:\n{etcd}"));
    }
    match &step.ours {
        None if etcd == ours => None,
        None => Some(format!("--- etcd\n{etcd}--- ours\n{ours}")),
        Some(_) if etcd == ours => Some("does not differ any more".into()),
        Some(expected) if *expected == ours.to_string() => None,
        Some(expected) => Some(format!("--- expected of ours\n{expected}--- ours\n{ours}")),
    }
}
