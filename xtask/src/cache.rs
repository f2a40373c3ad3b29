//! Directory of finished upstream binaries, outside every checkout.
//!
//! Invariant: a directory that has its final name is complete. It is filled under another name and renamed, under a lock
//! file per name, so that an interrupted or a second concurrent call can neither publish half of it nor build it twice.
//! What an entry is called, and when it must be a new one, is the callers' business (`go.rs`, `download.rs`, `upstream.rs`).

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

const KEY_HEX_DIGITS: usize = 16;

#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// `$K0S_CACHE_DIR`, else `k0s-rs` in the user's cache directory.
    pub fn from_environment() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = set("K0S_CACHE_DIR")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("k0s-rs")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/k0s-rs")))
            .context("no cache directory: set K0S_CACHE_DIR or HOME")?;
        Self::at(&dir)
    }

    pub fn at(dir: &Path) -> Result<Self> {
        let dir =
            std::path::absolute(dir).with_context(|| format!("not a usable path: {}", dir.display()))?;
        Ok(Self { dir: dir.join("upstream") })
    }

    /// Directory beside the entries for data that nobody keeps.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.with_file_name(name)
    }

    /// Path of the entry `name`; calls `fill` with an empty directory first if there is none yet.
    pub fn entry(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let finished = self.dir.join(name);
        if finished.is_dir() {
            return Ok(finished);
        }
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        let _held = self.lock(name)?;
        if finished.is_dir() {
            return Ok(finished);
        }
        let partial = self.dir.join(format!("{name}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        fs::create_dir(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        let filled = fill(&partial).and_then(|()| {
            fs::rename(&partial, &finished).with_context(|| format!("cannot create {}", finished.display()))
        });
        if filled.is_err() && partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        filled.map(|()| finished)
    }

    /// The kernel drops the lock with the process, so a killed build leaves nothing to clean up by hand.
    fn lock(&self, name: &str) -> Result<File> {
        let path = self.dir.join(format!("{name}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another process that builds {name} ({} is locked)", path.display());
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// Short name for everything that `parts` hold; equal parts give an equal key.
pub fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut key = hex::encode(hash.finalize());
    key.truncate(KEY_HEX_DIGITS);
    key
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use anyhow::bail;

    use super::*;

    #[test]
    fn an_entry_is_filled_once_even_by_concurrent_callers() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let fills = AtomicU32::new(0);
        let fill = |entry: &Path| {
            fills.fetch_add(1, Ordering::Relaxed);
            Ok(fs::write(entry.join("binary"), "x")?)
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(cache.entry("a", fill).unwrap().join("binary").is_file()));
            }
        });
        assert_eq!(fills.into_inner(), 1);
    }

    #[test]
    fn a_failed_or_interrupted_fill_publishes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let failed = cache.entry("a", |entry| {
            fs::write(entry.join("half"), "x")?;
            bail!("compiler says no")
        });
        assert_eq!(failed.unwrap_err().to_string(), "compiler says no");
        assert!(!cache.dir.join("a").exists() && !cache.dir.join("a.partial").exists());

        fs::create_dir(cache.dir.join("a.partial")).unwrap();
        fs::write(cache.dir.join("a.partial/half"), "left by a kill").unwrap();
        let entry = cache.entry("a", |_| Ok(())).unwrap();
        assert!(!entry.join("half").exists());
    }

    #[test]
    fn keys_tell_apart_where_parts_end() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_eq!(key(&[b"ab"]).len(), KEY_HEX_DIGITS);
    }
}
