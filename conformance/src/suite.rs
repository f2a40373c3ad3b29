//! Test suites of other projects, as compiled Go test binaries, run against one server executable.
//!
//! [`SUITES`] are the binaries; [`Bench`] lays out what they expect around them: the server under the name `etcd`, etcd's
//! tools, fixtures. [`Suite::run`] runs one without the tests that `suites/excluded.txt` names, each under a reason, and
//! [`Outcome::check`] is the rule: nothing failed, and exactly the stated number passed. What the tests do is theirs; nothing
//! here knows etcd's API.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::server::upstream_path;

/// A test that hangs ends its binary with the stacks of all goroutines before CI gives up.
const BINARY_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// Go begins the lines about tests with this character, so that a line that a test left unfinished hides none.
const MARK: char = '\u{16}';
const OUTPUT_LINES_SHOWN: usize = 60;
/// Tests whose clusters are larger skip themselves.
const MEMBERS_MAX: usize = 1;
const EXCLUDED: &str = include_str!("../suites/excluded.txt");

/// All binaries that there are. `docs/suites.md` says what each is about.
pub const SUITES: &[Suite] = &[
    Suite { binary: "etcd3.test", dir: "", tools: false, passing: 74 },
    Suite { binary: "factory.test", dir: "", tools: false, passing: 6 },
    Suite { binary: "registry.test", dir: "", tools: false, passing: 53 },
    Suite { binary: "cacher.test", dir: "", tools: false, passing: 148 },
    Suite { binary: "concurrency.test", dir: "integration/clientv3/concurrency", tools: false, passing: 10 },
    Suite { binary: "lease.test", dir: "integration/clientv3/lease", tools: false, passing: 47 },
    Suite { binary: "naming.test", dir: "integration/clientv3/naming", tools: false, passing: 3 },
    Suite {
        binary: "recipes.test",
        dir: "integration/clientv3/experimental/recipes",
        tools: false,
        passing: 5,
    },
    Suite { binary: "watch.test", dir: "integration/clientv3/watch", tools: false, passing: 29 },
    Suite { binary: "connectivity.test", dir: "integration/clientv3/connectivity", tools: false, passing: 4 },
    Suite { binary: "clientv3.test", dir: "integration/clientv3", tools: false, passing: 33 },
    Suite { binary: "integration.test", dir: "integration", tools: false, passing: 73 },
    Suite { binary: "common.test", dir: "common", tools: true, passing: 63 },
    Suite { binary: "e2e.test", dir: "e2e", tools: true, passing: 146 },
];

/// A Go test binary.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    pub binary: &'static str,
    /// Directory of its package: tests name fixtures by relative paths.
    pub dir: &'static str,
    /// Its tests start servers and etcd's tools from a directory given to them.
    pub tools: bool,
    /// How many tests pass. The sources are pinned, so another number means that something did not run.
    pub passing: usize,
}

/// Tests that do not run, and why.
pub type Excluded = BTreeMap<&'static str, &'static str>;

/// What the tests of a binary said.
#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: Vec<String>,
    pub failed: Vec<String>,
    /// Tests that found themselves that they can't run here.
    pub skipped: Vec<String>,
    pub elapsed: Duration,
    /// What the binary printed, if it did not end well.
    trouble: Option<String>,
}

/// Directories and executables for the tests of one server.
pub struct Bench {
    dir: TempDir,
    upstream: PathBuf,
}

impl Bench {
    /// `server` takes etcd's flags when it is called `etcd`.
    ///
    /// # Errors
    /// When something is missing.
    pub fn new(server: &Path) -> Result<Self> {
        let upstream = upstream_path(SUITES[0].binary)?;
        let upstream = upstream.parent().context("a binary is in a directory")?.to_path_buf();
        // Sockets are put below it, and their names end at 107 bytes.
        let dir =
            tempfile::Builder::new().prefix("suite-").tempdir_in("/tmp").context("a directory in /tmp")?;
        let bench = Self { dir, upstream };
        for name in ["bin", "tmp", "tests/integration"] {
            fs::create_dir_all(bench.path(name)).with_context(|| format!("directory {name}"))?;
        }
        bench.link(server, "bin/etcd")?;
        for tool in ["etcdctl", "etcdutl"] {
            bench.link(&bench.upstream.join(tool), &format!("bin/{tool}"))?;
        }
        // Beside etcd's suites, which read them.
        let data = bench.upstream.join("data");
        if data.is_dir() {
            for fixtures in ["fixtures", "integration/fixtures-expired"] {
                bench.link(&data.join(fixtures), &format!("tests/{fixtures}"))?;
            }
            bench.link(&data.join("etcd.conf.yml.sample"), "etcd.conf.yml.sample")?;
        }
        Ok(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn link(&self, source: &Path, name: &str) -> Result<()> {
        let source = fs::canonicalize(source).with_context(|| format!("no {}", source.display()))?;
        symlink(&source, self.path(name)).with_context(|| format!("link {name}"))
    }
}

impl Suite {
    pub fn find(binary: &str) -> Option<&'static Self> {
        SUITES.iter().find(|suite| suite.binary == binary)
    }

    /// The tests that can't pass: those that no process can (they look into one, or upstream's own fails there), and unless
    /// the server is etcd those that ours can't. A line `# reason` stands above the names it is for; one that begins with
    /// `# any:` is about every process.
    pub fn excluded(&self, server_is_etcd: bool) -> Excluded {
        let mut excluded = Excluded::new();
        let mut reason = "";
        for line in EXCLUDED.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                reason = comment;
            } else if let Some((binary, test)) = line.split_once(' ')
                && binary == self.binary
                && (!server_is_etcd || reason.starts_with("any:"))
            {
                excluded.insert(test, reason);
            }
        }
        excluded
    }

    /// Runs every test that is not excluded, or of those the ones whose name matches `pattern`.
    ///
    /// # Errors
    /// When the binary can't be run or does not have an excluded test; not when tests fail.
    pub fn run(&self, bench: &Bench, excluded: &Excluded, pattern: Option<&str>) -> Result<Outcome> {
        let known = self.names(bench)?;
        for name in excluded.keys() {
            let is_known = known.iter().any(|known| known == name);
            ensure!(is_known, "{} has no test {name} that could be left out", self.binary);
        }
        let names: Vec<&str> = excluded.keys().copied().collect();
        let mut command = self.command(bench)?;
        command
            .args(["-test.v=test2json", &format!("-test.timeout={}s", BINARY_DEADLINE.as_secs())])
            .arg(format!("-test.skip=^({})$", names.join("|")))
            .args(pattern.map(|pattern| format!("-test.run={pattern}")));
        if self.tools {
            command.arg("-bin-dir").arg(bench.path("bin"));
        }
        let started = Instant::now();
        let output = command.output().with_context(|| format!("run {}", self.binary))?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let mut outcome = Outcome::parse(&text);
        outcome.elapsed = started.elapsed();
        if !output.status.success() {
            outcome.trouble = Some(format!("{}\n{text}", output.status));
        }
        Ok(outcome)
    }

    fn names(&self, bench: &Bench) -> Result<Vec<String>> {
        let output = self.command(bench)?.arg("-test.list=.").output().context("list the tests")?;
        ensure!(output.status.success(), "{}: {}", self.binary, String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    fn command(&self, bench: &Bench) -> Result<Command> {
        let dir = bench.path("tests").join(self.dir);
        fs::create_dir_all(&dir).with_context(|| format!("directory {}", dir.display()))?;
        let mut command = Command::new(bench.upstream.join(self.binary));
        command
            .current_dir(dir)
            .stdin(Stdio::null())
            .env("TMPDIR", bench.path("tmp"))
            .env("K0S_SUITE_ETCD", bench.path("bin/etcd"))
            .env("K0S_SUITE_MEMBERS_MAX", MEMBERS_MAX.to_string());
        // SAFETY: only async-signal-safe calls happen between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
            });
        }
        Ok(command)
    }
}

impl Outcome {
    fn parse(text: &str) -> Self {
        let mut outcome = Self::default();
        for line in text.split(MARK).filter_map(|part| part.lines().next()) {
            let Some((verdict, rest)) = line.strip_prefix("--- ").and_then(|line| line.split_once(": "))
            else {
                continue;
            };
            let name = rest.split(' ').next().unwrap_or_default().to_owned();
            // Subtests belong to their test.
            match verdict {
                _ if name.contains('/') => {}
                "PASS" => outcome.passed.push(name),
                "FAIL" => outcome.failed.push(name),
                "SKIP" => outcome.skipped.push(name),
                _ => {}
            }
        }
        outcome
    }

    /// One line for people.
    pub fn summary(&self, suite: &Suite) -> String {
        let Self { passed, failed, skipped, elapsed, .. } = self;
        format!(
            "{:18} {:4} passed, {:3} failed, {:3} skipped themselves, {:3} s",
            suite.binary,
            passed.len(),
            failed.len(),
            skipped.len(),
            elapsed.as_secs()
        )
    }

    /// # Errors
    /// When a test failed, or another number passed than should have.
    pub fn check(&self, suite: &Suite) -> Result<()> {
        self.check_failures(suite)?;
        let passed = self.passed.len();
        let Suite { binary, passing, .. } = suite;
        ensure!(
            passed == *passing,
            "{binary}: {passed} tests passed, not {passing}; skipped: {:?}",
            self.skipped
        );
        Ok(())
    }

    /// # Errors
    /// When a test failed, or the binary itself.
    pub fn check_failures(&self, suite: &Suite) -> Result<()> {
        let binary = suite.binary;
        let Some(trouble) = &self.trouble else {
            ensure!(self.failed.is_empty(), "{binary}: failed: {:?}", self.failed);
            return Ok(());
        };
        let told: Vec<String> = failures(trouble)
            .into_iter()
            .map(|name| format!("{name}:\n{}", end(said(trouble, name))))
            .collect();
        if told.is_empty() {
            bail!("{binary} failed; its output ends with:\n{}", end(trouble.lines()));
        }
        bail!("{binary}: failed: {:?}\n{}", self.failed, told.join("\n"))
    }
}

/// Tests and subtests that failed by themselves and not for a subtest.
fn failures(text: &str) -> Vec<&str> {
    let failed: Vec<&str> =
        text.split(MARK).filter_map(|part| part.strip_prefix("--- FAIL: ")?.split(' ').next()).collect();
    let is_parent = |name: &str| {
        failed.iter().any(|other| other.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
    };
    failed.iter().copied().filter(|name| !is_parent(name)).collect()
}

/// What one test printed; those that run side by side take turns.
fn said<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let mut speaks = false;
    text.split(MARK)
        .filter(move |part| {
            if let Some(turn) = part.strip_prefix("=== ") {
                speaks = turn.split_whitespace().nth(1) == Some(name);
            }
            speaks
        })
        .flat_map(|part| part.lines().skip(1))
}

fn end<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<&str> = lines.collect();
    lines[lines.len().saturating_sub(OUTPUT_LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_found_wherever_they_stand_and_subtests_are_not_counted() {
        let text = "\u{16}=== RUN   TestA\nunfinished\u{16}--- PASS: TestA (0.01s)\n    \u{16}--- FAIL: TestB/sub (0.00s)\n\
                    \u{16}--- FAIL: TestB (0.00s)\n\u{16}--- SKIP: TestC (0.00s)\n--- PASS: not a verdict\n";
        let outcome = Outcome::parse(text);
        assert_eq!(outcome.passed, ["TestA"]);
        assert_eq!(outcome.failed, ["TestB"]);
        assert_eq!(outcome.skipped, ["TestC"]);
    }

    #[test]
    fn a_failure_is_told_with_what_its_test_said() {
        let text = "\u{16}=== RUN   TestA\n\u{16}=== RUN   TestA/x\nwhy\n\u{16}=== NAME  TestB\nbeside\n\
                    \u{16}=== NAME  TestA/x\nmore\n\u{16}--- FAIL: TestA/x (0.00s)\n\u{16}--- FAIL: TestA (0.00s)\n\
                    \u{16}=== NAME  \n\u{16}=== NAME  TestB\nafter\n\u{16}--- PASS: TestB (0.00s)\n";
        assert_eq!(failures(text), ["TestA/x"]);
        assert_eq!(said(text, "TestA/x").collect::<Vec<_>>(), ["why", "more"]);
    }

    #[test]
    fn too_few_tests_are_a_failure() {
        let suite = Suite { binary: "x", dir: "", tools: false, passing: 1 };
        assert!(Outcome::default().check(&suite).is_err());
        let outcome = Outcome { passed: vec!["TestA".into()], ..Outcome::default() };
        assert!(outcome.check(&suite).is_ok());
    }

    #[test]
    fn every_exclusion_has_a_suite_and_a_reason() {
        let mut reason = None;
        for line in EXCLUDED.lines().filter(|line| !line.is_empty()) {
            match line.strip_prefix("# ") {
                Some(comment) => reason = Some(comment),
                None => {
                    let (binary, _) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
                    assert!(Suite::find(binary).is_some() && reason.is_some(), "{line:?}");
                }
            }
        }
    }
}
