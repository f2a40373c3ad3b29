//! bbolt files: the format of etcd's database and of its snapshots, read and written without bbolt.
//!
//! For what: the Snapshot RPC streams a file that `etcdutl snapshot status|restore` accept, and a restore reads files
//! that etcd wrote. The API layer and the restore command call [`etcd`], which calls [`Writer`] and [`Reader`]; nothing
//! here knows of the store, of gRPC or of tasks. There is no mmap, no update in place, no nested bucket.
//!
//! # The file
//!
//! All integers are little-endian. A file is a sequence of pages of one size; page `n` starts at byte `n * page_size`.
//!
//! ```text
//! page     0  id u64 | 8  flags u16 | 10 count u16 | 12 overflow u32 | 16 body
//!          flags: 0x01 branch, 0x02 leaf, 0x04 meta, 0x10 freelist; overflow: further pages of the same run
//! branch   count elements {pos u32, key length u32, child page u64}, then the keys
//! leaf     count elements {flags u32, pos u32, key length u32, value length u32}, then key and value of each;
//!          pos counts from the element itself; flag 1: the value is a bucket
//! bucket   0  root page u64 | 8  sequence u64; root 0: an inline leaf page (header and all) follows at 16
//! meta     16 magic u32 ed0cdaed | 20 version u32 2 | 24 page size u32 | 28 flags u32 | 32 root bucket (16 bytes)
//!          48 freelist page u64 (all ones: none kept) | 56 high-water page u64 | 64 txid u64
//!          72 checksum u64: FNV-1a of bytes 16..72
//! ```
//!
//! Pages 0 and 1 are metas; the valid one with the higher txid counts. Bytes after `high-water * page_size` mean nothing,
//! which is why a snapshot can carry a SHA-256 after its last page (see [`has_trailer`]).
//!
//! Order, kept by the writer and checked by the reader for every bucket:
//! `last record before < branch key <= first record below it`.
//!
//! # Why two passes
//!
//! The metas come first and name the root, which is written last, and the stream must announce its length. So a
//! [`Planner`] takes only the *lengths* of all records and answers with a [`Plan`]: the root's page and the number of
//! pages. Then the [`Writer`] takes the records and writes the file front to back into any [`std::io::Write`]. The
//! alternative, a temporary file with the metas patched at the end, costs the disk space of a second database in the
//! moment it is least available, writes and reads it once more, and delays the first byte until the last record. The
//! price of two passes is that both must see the same view of the store (the writer refuses a difference in the number of
//! pages), and a walk over lengths, for which values need not be loaded (see [`etcd::KeyValueLen`]).
//!
//! Both passes use the same `shape`, so they cannot disagree. Memory is one page per tree level plus the largest
//! record.

pub mod etcd;
mod meta;
mod node;
mod reader;
mod shape;
mod source;
mod trailer;
mod writer;

#[cfg(test)]
mod tests;

pub use meta::MetaFault;
pub use reader::{Bucket, Corruption, Fault, ReadError, Reader, Record, Records};
pub use source::ReadAt;
pub use trailer::{DIGEST_LEN, Digest, DigestWriter, TrailerError, has_trailer, verify_trailer};
pub use writer::{Plan, Planner, WriteError, Writer};

/// Page size of the files we write: what bbolt takes from the operating system on x86-64.
pub const PAGE_SIZE: usize = 4096;
/// bbolt's own limit.
pub const KEY_BYTES_MAX: usize = 32_768;
/// bbolt's own limit.
pub const VALUE_BYTES_MAX: usize = (1 << 31) - 2;

const PAGE_HEADER_LEN: usize = 16;
/// Branch and leaf elements have the same length.
const ELEMENT_LEN: usize = 16;
const BUCKET_HEADER_LEN: usize = 16;

const BRANCH_FLAG: u16 = 0x01;
const LEAF_FLAG: u16 = 0x02;
const META_FLAG: u16 = 0x04;
const FREELIST_FLAG: u16 = 0x10;

/// Flag of a leaf element whose value is a bucket.
const BUCKET_ELEMENT: u32 = 0x01;

/// The first 16 bytes of every page.
#[derive(Debug, Clone, Copy)]
struct PageHeader {
    id: u64,
    flags: u16,
    count: u16,
    overflow: u32,
}

impl PageHeader {
    fn encode(self) -> [u8; PAGE_HEADER_LEN] {
        let mut bytes = [0; PAGE_HEADER_LEN];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.flags.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&self.overflow.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; PAGE_HEADER_LEN]) -> Self {
        Self {
            id: u64_at(bytes, 0),
            flags: u16::from_le_bytes([bytes[8], bytes[9]]),
            count: u16::from_le_bytes([bytes[10], bytes[11]]),
            overflow: u32_at(bytes, 12),
        }
    }
}

/// Callers have checked that `bytes` reaches that far.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("a slice of 4 bytes"))
}

/// Callers have checked that `bytes` reaches that far.
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("a slice of 8 bytes"))
}
