//! Compiles one group of binaries from its Go module: upstream's, or ours on upstream's libraries.
//!
//! The result depends on `go.mod`, `go.sum`, Go files beside them, our flags, the toolchain and the platform, and on
//! nothing else: these make up the cache key, and Go settings of the user's environment that could change the output are overridden.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Cache};
use crate::patched::{self, Patched};
use crate::versions::{GoToolchain, Group};

const INSTALL_GO: &str = "install it from https://go.dev/dl/ and put its bin directory on PATH, or give official binaries \
                          instead (`cargo xtask kubernetes --download`, `make run BIN_DIR=...`)";

/// A Go toolchain that is new enough.
#[derive(Debug)]
pub struct Go {
    /// For example `go1.26.8 linux/amd64`.
    identity: String,
}

impl Go {
    pub fn find(wanted: &GoToolchain) -> Result<Self> {
        let minimum = &wanted.minimum;
        let asked = go_command().args(["env", "GOVERSION", "GOOS", "GOARCH"]).output();
        let answer = match asked {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            Ok(output) => bail!("`go env` failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => bail!("cannot run `go` ({error}). Go {minimum} or newer is needed: {INSTALL_GO}"),
        };
        let [version, os, arch] = answer.split_whitespace().collect::<Vec<_>>()[..] else {
            bail!("`go env GOVERSION GOOS GOARCH` printed {answer:?}");
        };
        if release(version) < release(minimum) {
            bail!("this is {version}, Go {minimum} or newer is needed: {INSTALL_GO}");
        }
        Ok(Self { identity: format!("{version} {os}/{arch}") })
    }

    /// Directory with the group's binaries, compiled now unless the cache has them.
    pub fn build(&self, cache: &Cache, group: &Group) -> Result<PathBuf> {
        let name = format!("{}-{}", group.name, self.key(group)?);
        cache.entry(&name, |dir| {
            let total = group.packages.len();
            let patched = Patched::new(group, dir)?;
            eprintln!("building {} {} with {}", group.module, group.version, self.identity);
            for (done, (binary, package)) in group.packages.iter().enumerate() {
                let start = Instant::now();
                eprint!("  [{}/{total}] {binary} ... ", done + 1);
                let status = go_command()
                    .current_dir(&group.dir)
                    .args(if group.tests { &["test", "-c"][..] } else { &["build"] })
                    .args(["-mod=readonly", "-trimpath"])
                    .args(patched.as_ref().map(Patched::argument))
                    .args(["-tags", &group.tags.join(","), "-ldflags", &group.ldflags(), "-o"])
                    .args([&dir.join(binary), Path::new(package)])
                    .env("CGO_ENABLED", if group.cgo { "1" } else { "0" })
                    .status()
                    .context("cannot run `go`")?;
                if !status.success() {
                    bail!("building {package} in {} failed ({status})", group.dir.display());
                }
                eprintln!("{} s", start.elapsed().as_secs());
            }
            patched.map_or(Ok(()), |patched| patched.keep(group))
        })
    }

    fn key(&self, group: &Group) -> Result<String> {
        let read = |name: &str| read(&group.dir.join(name));
        let sources = sources(&group.dir)?;
        let recipe = format!(
            "{} cgo={} {:?} {} {:?}",
            self.identity,
            group.cgo,
            group.tags,
            group.ldflags(),
            group.packages
        );
        let (go_mod, go_sum) = (read("go.mod")?, read("go.sum")?);
        let mut parts: Vec<&[u8]> = vec![&go_mod, &go_sum, recipe.as_bytes()];
        parts.extend(sources.iter().flat_map(|(name, content)| [name.as_encoded_bytes(), content]));
        let patches = patched::key(group)?;
        parts.extend(patches.iter().map(Vec::as_slice));
        Ok(cache::key(&parts))
    }
}

/// The Go files of a module that is one directory, by name; upstream's have none.
fn sources(dir: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let unreadable = || format!("cannot read {}", dir.display());
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "go") {
            sources.insert(path.file_name().expect("an entry has a name").to_owned(), read(&path)?);
        }
    }
    Ok(sources)
}

pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// `go` that uses neither another toolchain than the one on PATH nor settings that would change what it builds.
pub fn go_command() -> Command {
    let mut go = Command::new("go");
    go.env("GOTOOLCHAIN", "local").env("GOWORK", "off").env("GOFLAGS", "");
    for platform in ["GOOS", "GOARCH", "GOAMD64", "GOARM64", "GOEXPERIMENT"] {
        go.env_remove(platform);
    }
    go
}

/// `go1.26.8`, `1.26.8` and `go1.27rc1` as comparable numbers; what does not parse counts as 0.
fn release(version: &str) -> [u32; 3] {
    let mut parts = version.trim_start_matches("go").split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
        digits.parse().unwrap_or(0)
    });
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_those_that_change_what_is_built() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["go.mod", "main.go", "locks.go", "README.md"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let found = sources(dir.path()).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["locks.go", "main.go"]);
        assert_eq!(found[std::ffi::OsStr::new("main.go")], b"main.go");
    }

    #[test]
    fn go_releases_compare_by_number() {
        assert!(release("go1.26.8") >= release("1.26.0"));
        assert!(release("go1.27rc1") > release("1.26.10"));
        assert!(release("go1.9.7") < release("1.26.0"));
        assert!(release("devel +abc") < release("1.26.0"));
    }
}
