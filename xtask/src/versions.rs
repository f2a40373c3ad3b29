//! `xtask/upstream/versions.toml`: which upstream releases we build, from what, and how.
//!
//! Plain data with unknown fields refused. `go.rs` and `download.rs` act on it; nobody else spells a version.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

#[derive(Debug)]
pub struct Versions {
    pub go: GoToolchain,
    groups: BTreeMap<String, Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoToolchain {
    /// Oldest Go release that compiles all groups, as `major.minor.patch`.
    pub minimum: String,
}

/// Binaries that one `go.mod` builds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The table's key.
    #[serde(skip)]
    pub name: String,
    /// Where its `go.mod` is; in the file relative to it, by default a directory with the group's name.
    #[serde(default)]
    pub dir: PathBuf,
    /// The Go module whose release `version` is.
    pub module: String,
    pub version: String,
    pub cgo: bool,
    pub tags: Vec<String>,
    ldflags: Vec<String>,
    /// The binaries are the packages' tests.
    #[serde(default)]
    pub tests: bool,
    /// File of `module` -> file in `dir` that is compiled instead, or nothing for one that is left out.
    #[serde(default)]
    pub patches: BTreeMap<String, String>,
    /// Directories of `module` that the tests read, kept beside the binaries.
    #[serde(default)]
    pub data: Vec<String>,
    /// File that the tests read and another module of `go.mod` has -> that module.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Name of the binary -> Go package.
    pub packages: BTreeMap<String, String>,
    pub download: Option<Download>,
}

/// Where the project publishes the same binaries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Download {
    pub base_url: String,
    pub path: String,
    /// `<arch>/<binary>` -> lower-case hex digest that must match, whatever the server publishes.
    pub sha256: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    go: GoToolchain,
    groups: BTreeMap<String, Group>,
}

impl Versions {
    /// Reads `versions.toml` in `dir`, which also holds one directory per group.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("versions.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let File { go, mut groups } =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        for (name, group) in &mut groups {
            group.name = name.clone();
            let own_dir = if group.dir.as_os_str().is_empty() { Path::new(name) } else { &group.dir };
            group.dir = dir.join(own_dir);
        }
        Ok(Self { go, groups })
    }

    pub fn group(&self, name: &str) -> Result<&Group> {
        match self.groups.get(name) {
            Some(group) => Ok(group),
            None => bail!("xtask/upstream/versions.toml has no table [groups.{name}]"),
        }
    }
}

impl Group {
    pub fn ldflags(&self) -> String {
        self.ldflags.join(" ").replace("{version}", &self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked_in() -> Versions {
        Versions::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream")).unwrap()
    }

    #[test]
    fn versions_are_those_that_go_mod_pins() {
        for group in checked_in().groups.values() {
            let go_mod = fs::read_to_string(group.dir.join("go.mod")).unwrap();
            let pinned = [group.module.clone(), format!("v{}", group.version)];
            assert!(
                go_mod.lines().any(|line| line.split_whitespace().take(2).eq(&pinned)),
                "{} does not require {pinned:?}",
                group.dir.join("go.mod").display()
            );
            // A program of ours is no tool of its module but the module.
            for package in group.packages.values().filter(|package| *package != ".") {
                assert!(
                    go_mod.contains(&format!("{package}\n")),
                    "{}/go.mod has no tool {package}",
                    group.name
                );
            }
        }
    }

    #[test]
    fn ldflags_carry_the_version() {
        let versions = checked_in();
        let ldflags = versions.group("kubernetes").unwrap().ldflags();
        assert!(ldflags.contains("component-base/version.gitVersion=v1."), "{ldflags}");
        assert!(!ldflags.contains('{'), "{ldflags}");
    }
}
