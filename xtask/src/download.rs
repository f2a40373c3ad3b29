//! Installs official release binaries instead of compiling them.
//!
//! Nothing is installed unless every binary has the expected SHA-256: the one pinned in `versions.toml`, else the one the
//! server publishes beside the binary (which protects against damage and mirrors gone wrong, not against that server).
//! Transport is curl's: it knows the user's proxies and certificates, and keeps an HTTP and TLS stack out of xtask.

use std::env::consts::ARCH;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::cache::{self, Cache};
use crate::versions::Group;

#[derive(Debug, thiserror::Error)]
enum DownloadError {
    #[error("{url} failed: {reason}")]
    Transfer { url: String, reason: String },
    #[error(
        "cannot run curl ({0}). Install it (`apt-get install curl`), or compile instead (`cargo xtask kubernetes`)"
    )]
    NoCurl(io::Error),
    #[error("{url} is not a SHA-256 digest but {content:?}")]
    NoDigest { url: String, content: String },
    #[error("{url} has SHA-256 {actual}, expected {expected}; nothing was installed")]
    Mismatch { url: String, actual: String, expected: String },
}

/// Directory with the group's official binaries, fetched now unless the cache has them.
pub fn install(cache: &Cache, group: &Group, base_url: Option<&str>) -> Result<PathBuf> {
    let name = &group.name;
    let download =
        group.download.as_ref().with_context(|| format!("versions.toml has no [groups.{name}.download]"))?;
    let base_url = base_url.unwrap_or(&download.base_url).trim_end_matches('/');
    let arch = go_arch();
    let pins = format!("{:?}", download.sha256);
    let key = cache::key(&[base_url.as_bytes(), group.version.as_bytes(), arch.as_bytes(), pins.as_bytes()]);
    cache.entry(&format!("{name}-official-{key}"), |dir| {
        eprintln!("downloading {name} {} from {base_url}", group.version);
        for binary in group.packages.keys() {
            let path = download
                .path
                .replace("{version}", &group.version)
                .replace("{arch}", arch)
                .replace("{name}", binary);
            let url = format!("{base_url}/{path}");
            eprintln!("  {binary}");
            let expected = match download.sha256.get(&format!("{arch}/{binary}")) {
                Some(pinned) => pinned.clone(),
                None => published_digest(&url, &dir.join("digest"))?,
            };
            fetch_verified(&url, &expected, &dir.join(binary))?;
        }
        Ok(())
    })
}

fn fetch_verified(url: &str, expected: &str, file: &Path) -> Result<()> {
    fetch(url, file)?;
    let mut hash = Sha256::new();
    io::copy(&mut File::open(file)?, &mut hash).with_context(|| format!("cannot read {}", file.display()))?;
    let actual = hex::encode(hash.finalize());
    if actual != expected {
        return Err(DownloadError::Mismatch { url: url.into(), actual, expected: expected.into() }.into());
    }
    fs::set_permissions(file, Permissions::from_mode(0o755))
        .with_context(|| format!("cannot chmod {}", file.display()))
}

fn published_digest(url: &str, scratch: &Path) -> Result<String> {
    let url = format!("{url}.sha256");
    fetch(&url, scratch)?;
    let content = fs::read(scratch)?;
    fs::remove_file(scratch)?;
    let content = String::from_utf8_lossy(&content);
    let digest = content.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    if digest.len() != 64 || hex::decode(&digest).is_err() {
        let content = content.chars().take(80).collect();
        return Err(DownloadError::NoDigest { url, content }.into());
    }
    Ok(digest)
}

fn fetch(url: &str, file: &Path) -> Result<(), DownloadError> {
    let output = Command::new("curl")
        .args(["--fail", "--location", "--silent", "--show-error", "--proto", "=https,http", "--retry", "3"])
        .args(["--connect-timeout", "20", "--speed-limit", "1024", "--speed-time", "60", "--output"])
        .arg(file)
        .args(["--", url])
        .output()
        .map_err(DownloadError::NoCurl)?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(DownloadError::Transfer { url: url.into(), reason })
}

/// This machine's architecture in the words of Go and of the download servers.
fn go_arch() -> &'static str {
    match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests;
