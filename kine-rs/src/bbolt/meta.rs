//! The meta page: where the root bucket is and how far the file reaches, under a checksum.
//!
//! Invariant: a [`MetaPage`] decoded without error had the right magic, version and checksum and a page size we can
//! work with. Whether its page numbers fit the file is the reader's question.

use super::{META_FLAG, PAGE_HEADER_LEN, PageHeader, u32_at, u64_at};

/// Length of a meta page that means something: header and fields.
pub(super) const META_LEN: usize = PAGE_HEADER_LEN + 64;
/// bbolt takes its page size from the operating system; Linux knows pages of up to 64 KiB.
pub(super) const PAGE_SIZE_MAX: u32 = 64 << 10;
/// The smallest page size bbolt itself looks for.
pub(super) const PAGE_SIZE_MIN: u32 = 1 << 10;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
const CHECKSUM_AT: usize = META_LEN - 8;

/// Fields of a meta page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MetaPage {
    pub page_size: u32,
    pub root: u64,
    pub freelist: u64,
    /// Number of pages in use, counted from page 0.
    pub high_water: u64,
    pub txid: u64,
}

/// Why a meta page is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetaFault {
    #[error("the file ends before it")]
    Missing,
    #[error("magic number {0:#010x}, expected {MAGIC:#010x}")]
    Magic(u32),
    #[error("format version {0}, expected {VERSION}")]
    Version(u32),
    #[error("checksum {stored:#018x}, computed {computed:#018x}")]
    Checksum { stored: u64, computed: u64 },
    #[error("page size {0}, expected a power of two from {PAGE_SIZE_MIN} to {PAGE_SIZE_MAX}")]
    PageSize(u32),
}

impl MetaPage {
    /// The page's bytes; `id` is 0 or 1.
    pub fn encode(&self, id: u64) -> [u8; META_LEN] {
        let mut bytes = [0; META_LEN];
        let header = PageHeader { id, flags: META_FLAG, count: 0, overflow: 0 };
        bytes[..16].copy_from_slice(&header.encode());
        bytes[16..20].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[20..24].copy_from_slice(&VERSION.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.page_size.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.root.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.freelist.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.high_water.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.txid.to_le_bytes());
        let checksum = fnv1a(&bytes[PAGE_HEADER_LEN..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// # Errors
    /// The first of magic, version, checksum, page size that is wrong.
    pub fn decode(bytes: &[u8; META_LEN]) -> Result<Self, MetaFault> {
        let magic = u32_at(bytes, 16);
        if magic != MAGIC {
            return Err(MetaFault::Magic(magic));
        }
        let version = u32_at(bytes, 20);
        if version != VERSION {
            return Err(MetaFault::Version(version));
        }
        let (stored, computed) = (u64_at(bytes, CHECKSUM_AT), fnv1a(&bytes[PAGE_HEADER_LEN..CHECKSUM_AT]));
        if stored != computed {
            return Err(MetaFault::Checksum { stored, computed });
        }
        let page_size = u32_at(bytes, 24);
        if !page_size.is_power_of_two() || !(PAGE_SIZE_MIN..=PAGE_SIZE_MAX).contains(&page_size) {
            return Err(MetaFault::PageSize(page_size));
        }
        Ok(Self {
            page_size,
            root: u64_at(bytes, 32),
            freelist: u64_at(bytes, 48),
            high_water: u64_at(bytes, 56),
            txid: u64_at(bytes, 64),
        })
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_of_known_strings() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn any_flipped_bit_of_the_fields_is_noticed() {
        let meta = MetaPage { page_size: 4096, root: 7, freelist: 2, high_water: 8, txid: 1 };
        let good = meta.encode(0);
        assert_eq!(MetaPage::decode(&good), Ok(meta));
        for bit in PAGE_HEADER_LEN * 8..META_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(MetaPage::decode(&bad).is_err(), "bit {bit}");
        }
    }
}
