//! Installs official release binaries instead of compiling them.
//!
//! Nothing is installed unless every binary has the expected SHA-256: the one pinned in `versions.toml`, else the one the
//! server publishes beside the binary (which protects against damage and mirrors gone wrong, not against that server).
//! What was fetched before an interruption is kept apart and completed by the next call.
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

/// Times in a row that a broken transfer is taken up again; each must have got further than the one before.
const RESUMPTIONS_MAX: u32 = 20;
/// curl's exit status where the server knows no ranges, or the file is not one that can be completed.
const CANNOT_RESUME: [i32; 2] = [33, 36];
/// What curl says where the file is longer than what the server has.
const OUT_OF_RANGE: &str = "returned error: 416";

#[derive(Debug, thiserror::Error)]
enum DownloadError {
    #[error("{url} failed: {reason}")]
    Transfer { url: String, reason: String, cannot_resume: bool },
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
    let entry = format!("{name}-official-{key}");
    let fetched = cache.scratch("downloads").join(&entry);
    cache.entry(&entry, |dir| {
        eprintln!("downloading {name} {} from {base_url}", group.version);
        fs::create_dir_all(&fetched).with_context(|| format!("cannot create {}", fetched.display()))?;
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
                None => published_digest(&url, &fetched.join("digest"))?,
            };
            fetch_verified(&url, &expected, &fetched.join(binary))?;
        }
        for binary in group.packages.keys() {
            fs::rename(fetched.join(binary), dir.join(binary))
                .with_context(|| format!("cannot move {binary} to {}", dir.display()))?;
        }
        fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))
    })
}

fn fetch_verified(url: &str, expected: &str, file: &Path) -> Result<()> {
    if !(file.exists() && complete(url, expected, file)?) {
        fetch(url, file)?;
        let actual = digest_of(file)?;
        if actual != expected {
            remove(file)?;
            return Err(DownloadError::Mismatch { url: url.into(), actual, expected: expected.into() }.into());
        }
    }
    fs::set_permissions(file, Permissions::from_mode(0o755))
        .with_context(|| format!("cannot chmod {}", file.display()))
}

/// Makes the right file out of what an earlier call has left, or removes it if that cannot be.
fn complete(url: &str, expected: &str, file: &Path) -> Result<bool> {
    if digest_of(file)? == expected {
        return Ok(true);
    }
    match fetch(url, file) {
        Ok(()) if digest_of(file)? == expected => return Ok(true),
        Err(error) if !error.is_about_resuming() => return Err(error.into()),
        _ => {}
    }
    remove(file).map(|()| false)
}

fn digest_of(file: &Path) -> Result<String> {
    let read = || -> io::Result<String> {
        let mut hash = Sha256::new();
        io::copy(&mut File::open(file)?, &mut hash)?;
        Ok(hex::encode(hash.finalize()))
    };
    read().with_context(|| format!("cannot read {}", file.display()))
}

fn remove(file: &Path) -> Result<()> {
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))
}

fn published_digest(url: &str, scratch: &Path) -> Result<String> {
    let url = format!("{url}.sha256");
    if scratch.exists() {
        remove(scratch)?;
    }
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

/// Fetches what `file` does not have yet, and goes on where the connection breaks.
fn fetch(url: &str, file: &Path) -> Result<(), DownloadError> {
    let have = || fs::metadata(file).map_or(0, |metadata| metadata.len());
    let mut resumptions = 0;
    loop {
        let before = have();
        match fetch_once(url, file) {
            Err(error) if have() > before && resumptions < RESUMPTIONS_MAX && !error.is_about_resuming() => {
                eprintln!("    {error}; going on after {} bytes", have());
                resumptions += 1;
            }
            ended => return ended,
        }
    }
}

fn fetch_once(url: &str, file: &Path) -> Result<(), DownloadError> {
    // A redirection may not lead from TLS to plain text.
    let redirected_to = if url.starts_with("https:") { "=https" } else { "=https,http" };
    let output = Command::new("curl")
        .args(["--fail", "--location", "--silent", "--show-error", "--proto", "=https,http", "--retry", "3"])
        .args(["--proto-redir", redirected_to, "--continue-at", "-"])
        .args(["--connect-timeout", "20", "--speed-limit", "1024", "--speed-time", "60", "--output"])
        .arg(file)
        .args(["--", url])
        .output()
        .map_err(DownloadError::NoCurl)?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let cannot_resume = output.status.code().is_some_and(|status| CANNOT_RESUME.contains(&status))
        || reason.ends_with(OUT_OF_RANGE);
    Err(DownloadError::Transfer { url: url.into(), reason, cannot_resume })
}

impl DownloadError {
    fn is_about_resuming(&self) -> bool {
        matches!(self, DownloadError::Transfer { cannot_resume: true, .. })
    }
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
