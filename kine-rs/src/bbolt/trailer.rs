//! The 32 bytes after the last page of a snapshot file: SHA-256 of everything before them.
//!
//! etcd sends them as the last message of a snapshot stream, and tools tell from the file's length whether they are
//! there: pages are multiples of 512 bytes, so a remainder of 32 can only be the trailer.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use super::ReadAt;

pub const DIGEST_LEN: usize = 32;
/// SHA-256 of a bbolt file.
pub type Digest = [u8; DIGEST_LEN];

/// The unit that a file without trailer is a multiple of.
const SECTOR_LEN: u64 = 512;
const CHUNK_LEN: usize = 128 << 10;

/// Why a snapshot's trailer does not vouch for it.
#[derive(Debug, thiserror::Error)]
pub enum TrailerError {
    #[error(
        "no SHA-256 after the last page (length {file_len}, remainder {remainder} of {SECTOR_LEN}, expected {DIGEST_LEN}): \
         the file is incomplete, or was copied from a data directory and must be read without this check",
        remainder = file_len % SECTOR_LEN
    )]
    Missing { file_len: u64 },
    #[error(
        "SHA-256 after the last page is {stored:02x?}, the content has {computed:02x?}: the file is damaged"
    )]
    Mismatch { stored: Digest, computed: Digest },
    #[error("reading the snapshot")]
    Io(#[from] io::Error),
}

/// Whether a file of this length ends with a trailer.
pub fn has_trailer(file_len: u64) -> bool {
    file_len % SECTOR_LEN == DIGEST_LEN as u64
}

/// Reads the whole file and compares; returns the length without the trailer.
///
/// # Errors
/// There is no trailer, it does not match, or reading failed.
pub fn verify_trailer(source: &(impl ReadAt + ?Sized)) -> Result<u64, TrailerError> {
    let file_len = source.size()?;
    if !has_trailer(file_len) {
        return Err(TrailerError::Missing { file_len });
    }
    let content_len = file_len - DIGEST_LEN as u64;
    let mut stored = [0; DIGEST_LEN];
    source.read_exact_at(&mut stored, content_len)?;

    let (mut hasher, mut chunk, mut offset) = (Sha256::new(), vec![0; CHUNK_LEN], 0);
    while offset < content_len {
        let len = (content_len - offset).min(CHUNK_LEN as u64);
        let chunk = &mut chunk[..len as usize];
        source.read_exact_at(chunk, offset)?;
        hasher.update(chunk);
        offset += len;
    }
    let computed: Digest = hasher.finalize().into();
    if stored == computed { Ok(content_len) } else { Err(TrailerError::Mismatch { stored, computed }) }
}

/// Passes bytes on and computes their digest.
#[derive(Debug)]
pub struct DigestWriter<W> {
    out: W,
    hasher: Sha256,
}

impl<W: Write> DigestWriter<W> {
    pub fn new(out: W) -> Self {
        Self { out, hasher: Sha256::new() }
    }

    pub fn out_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// The output and the digest of what it got. The digest is not written.
    pub fn finish(self) -> (W, Digest) {
        (self.out, self.hasher.finalize().into())
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buf)?;
        self.hasher.update(&buf[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(content: &[u8]) -> Vec<u8> {
        let mut out = DigestWriter::new(Vec::new());
        out.write_all(content).expect("memory");
        let (mut file, digest) = out.finish();
        file.extend_from_slice(&digest);
        file
    }

    #[test]
    fn a_trailer_vouches_for_every_byte_before_it() {
        let good = sealed(&[7; 300 * 1024]);
        assert_eq!(verify_trailer(&good[..]).expect("intact"), 300 * 1024);
        for at in [0, 150_000, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(matches!(verify_trailer(&bad[..]), Err(TrailerError::Mismatch { .. })), "byte {at}");
        }
    }

    #[test]
    fn a_file_without_trailer_is_told_by_its_length() {
        assert!(matches!(verify_trailer(&[0; 8192][..]), Err(TrailerError::Missing { file_len: 8192 })));
        assert!(matches!(verify_trailer(&[][..]), Err(TrailerError::Missing { file_len: 0 })));
        assert!(has_trailer(8192 + 32) && !has_trailer(8192));
    }
}
