//! Groups of binaries together, as the tasks want them: build each, then show all of them in one directory.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{self, Cache};
use crate::go::Go;
use crate::patched::DATA;
use crate::python;
use crate::versions::Versions;

/// What a directory shows: a name, and what it leads to.
type Link = (String, PathBuf);

/// Directory with every binary of `groups`: the group's own if it is one, else links to all of them.
pub fn build(cache: &Cache, versions: &Versions, groups: &[&str]) -> Result<PathBuf> {
    let go = Go::find(&versions.go)?;
    if let [only] = groups {
        return go.build(cache, versions.group(only)?);
    }
    show(cache, &groups.join("-"), &links(&go, cache, versions, groups)?)
}

/// Directory with everything that tests start besides our own executables.
pub fn for_tests(cache: &Cache, versions: &Versions, root: &Path) -> Result<PathBuf> {
    let go = Go::find(&versions.go)?;
    let groups = ["kubernetes", "etcd", "kine", "go-client", "kubernetes-suites"];
    let mut shown = links(&go, cache, versions, &groups)?;
    shown.push(("python".to_owned(), python::build(cache, &root.join("conformance/clients/python"))?));
    show(cache, "tests", &shown)
}

fn links(go: &Go, cache: &Cache, versions: &Versions, groups: &[&str]) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    for name in groups {
        let group = versions.group(name)?;
        let dir = go.build(cache, group)?;
        let data = (!group.data.is_empty()).then(|| DATA.to_owned());
        let names = group.packages.keys().cloned().chain(data);
        links.extend(names.map(|name| (name.clone(), dir.join(name))));
    }
    Ok(links)
}

fn show(cache: &Cache, name: &str, links: &[Link]) -> Result<PathBuf> {
    let parts =
        links.iter().flat_map(|(name, target)| [name.as_bytes(), target.as_os_str().as_encoded_bytes()]);
    let name = format!("{name}-{}", cache::key(&parts.collect::<Vec<_>>()));
    cache.entry(&name, |dir| {
        for (name, target) in links {
            symlink(target, dir.join(name)).with_context(|| format!("cannot link {name}"))?;
        }
        Ok(())
    })
}
