//! Groups of upstream binaries together, as the tasks want them: build each, then show all of them in one directory.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache::{self, Cache};
use crate::go::Go;
use crate::versions::Versions;

/// Directory with every binary of `groups`: the group's own if it is one, else links to all of them.
pub fn build(cache: &Cache, versions: &Versions, groups: &[&str]) -> Result<PathBuf> {
    let go = Go::find(&versions.go)?;
    let mut dirs = Vec::new();
    for name in groups {
        dirs.push(go.build(cache, versions.group(name)?)?);
    }
    if let [only] = &dirs[..] {
        return Ok(only.clone());
    }
    let sources: Vec<_> = dirs.iter().map(|dir| dir.as_os_str().as_encoded_bytes()).collect();
    let name = format!("{}-{}", groups.join("-"), cache::key(&sources));
    cache.entry(&name, |links| {
        for (name, dir) in groups.iter().zip(&dirs) {
            for binary in versions.group(name)?.packages.keys() {
                symlink(dir.join(binary), links.join(binary))
                    .with_context(|| format!("cannot link {binary}"))?;
            }
        }
        Ok(())
    })
}
