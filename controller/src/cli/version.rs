//! `k0s version`.

use clap::Args;

use crate::release::{VERSIONS, Versions};

#[derive(Debug, Args)]
pub struct Version {
    /// The versions of all parts
    #[arg(short, long)]
    all: bool,
    /// As JSON
    #[arg(short, long)]
    json: bool,
}

impl Version {
    pub fn run(self) -> anyhow::Result<()> {
        super::print(&self.text()?)
    }

    /// `--all` wins over `--json`, as in k0s.
    fn text(&self) -> anyhow::Result<String> {
        let Versions { k0s, kubernetes, kine } = VERSIONS;
        if self.all {
            return Ok(format!("k0s : {k0s}\nkubernetes : {kubernetes}\nkine : {kine}\n"));
        }
        if self.json {
            return super::status::indented(&VERSIONS);
        }
        Ok(format!("{k0s}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_upstreams() {
        let text = |all, json| Version { all, json }.text().unwrap();
        assert_eq!(text(false, false), "v1.36.3+k0s.0\n");
        assert!(text(true, true).starts_with("k0s : v1.36.3+k0s.0\nkubernetes : 1.36.3\n"));
        assert!(text(false, true).starts_with("{\n   \"k0s\": \"v1.36.3+k0s.0\",\n"));
    }
}
