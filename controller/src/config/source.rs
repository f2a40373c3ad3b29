//! Where a configuration comes from: `--config FILE`, `--config -`, or the default file if there is one.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::document::BYTES_MAX;

/// Read if no `--config` is given; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/k0s/k0s.yaml";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// [`DEFAULT_FILE`], or built-in defaults.
    Default,
    File(PathBuf),
    /// Can be read once.
    Stdin,
}

impl Source {
    /// From the value of `--config`.
    pub fn from_flag(flag: Option<&Path>) -> Self {
        match flag {
            None => Self::Default,
            Some(path) if path == Path::new("-") => Self::Stdin,
            Some(path) => Self::File(path.to_owned()),
        }
    }

    /// The bytes, at most one more than a document may have; `None` if the default file does not exist.
    ///
    /// # Errors
    /// If a file that was asked for cannot be read.
    pub fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Default => match File::open(DEFAULT_FILE) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                file => bounded(file?).map(Some),
            },
            Self::File(path) => bounded(File::open(path)?).map(Some),
            Self::Stdin => bounded(io::stdin().lock()).map(Some),
        }
    }
}

fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str(DEFAULT_FILE),
            Self::File(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_is_standard_input() {
        assert_eq!(Source::from_flag(Some(Path::new("-"))), Source::Stdin);
        assert_eq!(Source::from_flag(Some(Path::new("./-"))), Source::File("./-".into()));
        assert_eq!(Source::from_flag(None), Source::Default);
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let error = Source::File("/nonexistent/k0s.yaml".into()).read().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_endless_file_is_cut_off() {
        let bytes = Source::File("/dev/zero".into()).read().unwrap().unwrap();
        assert_eq!(bytes.len(), BYTES_MAX + 1);
    }
}
