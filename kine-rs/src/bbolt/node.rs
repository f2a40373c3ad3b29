//! One branch or leaf page as it is in a file, read piece by piece with every offset checked.
//!
//! Invariant: what a `Node` returns lies inside its run of pages, behind its element table. It holds the page's head
//! (the first page of the run, or the whole table if that is longer) and at most one record beyond it, so that a count,
//! a length or an overflow that lies costs no more memory than the named bounds. Inline buckets are nodes as well.

use super::reader::{Corruption, Fault, ReadError};
use super::{
    BRANCH_FLAG, BUCKET_ELEMENT, ELEMENT_LEN, KEY_BYTES_MAX, LEAF_FLAG, PAGE_HEADER_LEN, PageHeader, ReadAt,
};
use super::{u32_at, u64_at};

/// Longest value the reader takes into memory. etcd's requests are limited to 1.5 MiB unless told otherwise.
pub(super) const READ_VALUE_BYTES_MAX: u32 = 128 << 20;

/// Where a node's bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Page that errors name: the node's, or the one that has the inline bucket.
    pub page: u64,
    /// Byte in the file.
    pub offset: u64,
    pub len: u64,
}

#[derive(Debug)]
pub(super) struct Node {
    extent: Extent,
    kind: Kind,
    count: usize,
    head: Vec<u8>,
    /// The last record that was not inside `head`, and where it starts (0: there was none yet).
    beyond: Vec<u8>,
    beyond_start: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Branch,
    Leaf,
}

/// An element of a leaf.
#[derive(Debug)]
pub(super) struct LeafItem<'n> {
    pub is_bucket: bool,
    pub key: &'n [u8],
    pub value: &'n [u8],
    /// Byte of the value in the file.
    pub value_offset: u64,
}

/// An element of a branch.
#[derive(Debug)]
pub(super) struct BranchItem<'n> {
    pub key: &'n [u8],
    pub child: u64,
}

/// Place of an element's data, relative to the node.
struct Span {
    start: usize,
    key_len: usize,
    value_len: usize,
}

impl Node {
    /// Reads the page with number `id` at the start of `extent`. `head_len` is how much to read at least.
    pub fn load(source: &impl ReadAt, id: u64, extent: Extent, head_len: usize) -> Result<Self, ReadError> {
        let mut node = Self {
            extent,
            kind: Kind::Leaf,
            count: 0,
            head: Vec::new(),
            beyond: Vec::new(),
            beyond_start: 0,
        };
        if extent.len < PAGE_HEADER_LEN as u64 {
            return Err(node.corrupt(0, Fault::TooShort { len: extent.len }));
        }
        node.read_head(source, head_len.max(PAGE_HEADER_LEN))?;
        let header =
            PageHeader::decode(node.head[..PAGE_HEADER_LEN].try_into().expect("a slice of 16 bytes"));
        if header.id != id {
            return Err(node.corrupt(0, Fault::PageId { found: header.id }));
        }
        node.kind = match header.flags {
            BRANCH_FLAG => Kind::Branch,
            LEAF_FLAG => Kind::Leaf,
            flags => return Err(node.corrupt(8, Fault::PageKind { flags })),
        };
        node.count = usize::from(header.count);
        if node.kind == Kind::Branch && node.count == 0 {
            return Err(node.corrupt(10, Fault::Empty));
        }
        if node.table_end() as u64 > extent.len {
            return Err(node.corrupt(10, Fault::Count { count: header.count, len: extent.len }));
        }
        if node.table_end() > node.head.len() {
            node.read_head(source, node.table_end())?;
        }
        Ok(node)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Element `index` of a leaf, which is below [`Node::count`].
    pub fn leaf_item(&mut self, source: &impl ReadAt, index: usize) -> Result<LeafItem<'_>, ReadError> {
        let at = PAGE_HEADER_LEN + index * ELEMENT_LEN;
        let is_bucket = match u32_at(&self.head, at) {
            0 => false,
            BUCKET_ELEMENT => true,
            flags => return Err(self.corrupt(at, Fault::ElementFlags { flags })),
        };
        let (pos, key_len) = (u32_at(&self.head, at + 4), u32_at(&self.head, at + 8));
        let span = self.span(at, pos, key_len, u32_at(&self.head, at + 12))?;
        let value_offset = self.extent.offset + (span.start + span.key_len) as u64;
        let (key, value) = self.bytes(source, &span)?;
        Ok(LeafItem { is_bucket, key, value, value_offset })
    }

    /// Element `index` of a branch, which is below [`Node::count`].
    pub fn branch_item(&mut self, source: &impl ReadAt, index: usize) -> Result<BranchItem<'_>, ReadError> {
        let at = PAGE_HEADER_LEN + index * ELEMENT_LEN;
        let child = u64_at(&self.head, at + 8);
        let span = self.span(at, u32_at(&self.head, at), u32_at(&self.head, at + 4), 0)?;
        Ok(BranchItem { key: self.bytes(source, &span)?.0, child })
    }

    /// An error at byte `at` of this node.
    pub fn corrupt(&self, at: usize, fault: Fault) -> ReadError {
        let offset = self.extent.offset + at as u64;
        Corruption { page: self.extent.page, offset, fault }.into()
    }

    /// An error at element `index`.
    pub fn corrupt_item(&self, index: usize, fault: Fault) -> ReadError {
        self.corrupt(PAGE_HEADER_LEN + index * ELEMENT_LEN, fault)
    }

    pub fn page(&self) -> u64 {
        self.extent.page
    }

    /// Where element `index` is.
    pub fn item_extent(&self, index: usize) -> Extent {
        let at = PAGE_HEADER_LEN + index * ELEMENT_LEN;
        Extent { page: self.extent.page, offset: self.extent.offset + at as u64, len: ELEMENT_LEN as u64 }
    }

    fn table_end(&self) -> usize {
        PAGE_HEADER_LEN + self.count * ELEMENT_LEN
    }

    /// Checks where the element at byte `at` says its data is.
    fn span(&self, at: usize, pos: u32, key_len: u32, value_len: u32) -> Result<Span, ReadError> {
        if key_len == 0 || key_len as usize > KEY_BYTES_MAX {
            return Err(self.corrupt(at, Fault::KeyLength { len: key_len }));
        }
        if value_len > READ_VALUE_BYTES_MAX {
            return Err(self.corrupt(at, Fault::ValueLength { len: value_len }));
        }
        let start = at as u64 + u64::from(pos);
        let end = start + u64::from(key_len) + u64::from(value_len);
        if start < self.table_end() as u64 || end > self.extent.len {
            return Err(self.corrupt(at, Fault::DataOutside { start, end, len: self.extent.len }));
        }
        // Below 2^34, and we are on a 64-bit system.
        Ok(Span { start: start as usize, key_len: key_len as usize, value_len: value_len as usize })
    }

    fn bytes(&mut self, source: &impl ReadAt, span: &Span) -> Result<(&[u8], &[u8]), ReadError> {
        let len = span.key_len + span.value_len;
        if span.start + len <= self.head.len() {
            return Ok(self.head[span.start..span.start + len].split_at(span.key_len));
        }
        // A record is asked for more than once, and one of these can be long.
        if self.beyond_start != span.start || self.beyond.len() != len {
            self.beyond.resize(len, 0);
            read(source, &mut self.beyond, self.extent.offset + span.start as u64)?;
            self.beyond_start = span.start;
        }
        Ok(self.beyond.split_at(span.key_len))
    }

    fn read_head(&mut self, source: &impl ReadAt, len: usize) -> Result<(), ReadError> {
        self.head.resize(self.extent.len.min(len as u64) as usize, 0);
        read(source, &mut self.head, self.extent.offset)
    }
}

/// A positioned read whose error says where.
pub(super) fn read(source: &impl ReadAt, buf: &mut [u8], offset: u64) -> Result<(), ReadError> {
    source.read_exact_at(buf, offset).map_err(|source| ReadError::Io { offset, len: buf.len(), source })
}
