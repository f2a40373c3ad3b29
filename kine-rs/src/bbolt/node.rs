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

/// Where an element says its data is, relative to the node.
struct Span {
    start: u64,
    key_len: u32,
    value_len: u32,
}

impl Span {
    fn end(&self) -> u64 {
        self.start + u64::from(self.key_len) + u64::from(self.value_len)
    }
}

impl Node {
    /// Takes the page with number `id`, whose first bytes are `head`: one page, or all of `extent` if that is less.
    pub fn new(source: &impl ReadAt, id: u64, extent: Extent, head: Vec<u8>) -> Result<Self, ReadError> {
        let mut node = Self { extent, kind: Kind::Leaf, count: 0, head, beyond: Vec::new(), beyond_start: 0 };
        let Some(header) = node.head.first_chunk() else {
            return Err(node.corrupt(0, Fault::TooShort { len: extent.len }));
        };
        let header = PageHeader::decode(header);
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
            node.head.resize(node.table_end(), 0);
            read(source, &mut node.head, extent.offset)?;
        }
        Ok(node)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Element `index` of a leaf, which is below [`Node::count`].
    pub fn leaf_item(&mut self, source: &impl ReadAt, index: usize) -> Result<LeafItem<'_>, ReadError> {
        let is_bucket = match u32_at(&self.head, element_at(index)) {
            0 => false,
            BUCKET_ELEMENT => true,
            flags => return Err(self.corrupt_item(index, Fault::ElementFlags { flags })),
        };
        let span = self.checked_span(index)?;
        let value_offset = self.extent.offset + span.start + u64::from(span.key_len);
        let (key, value) = self.bytes(source, &span)?;
        Ok(LeafItem { is_bucket, key, value, value_offset })
    }

    /// Element `index` of a branch, which is below [`Node::count`].
    pub fn branch_item(&mut self, source: &impl ReadAt, index: usize) -> Result<BranchItem<'_>, ReadError> {
        let child = u64_at(&self.head, element_at(index) + 8);
        let span = self.checked_span(index)?;
        Ok(BranchItem { key: self.bytes(source, &span)?.0, child })
    }

    /// An error at byte `at` of this node.
    pub fn corrupt(&self, at: usize, fault: Fault) -> ReadError {
        let offset = self.extent.offset + at as u64;
        Corruption { page: self.extent.page, offset, fault }.into()
    }

    /// An error at element `index`.
    pub fn corrupt_item(&self, index: usize, fault: Fault) -> ReadError {
        self.corrupt(element_at(index), fault)
    }

    /// Where element `index` is.
    pub fn item_extent(&self, index: usize) -> Extent {
        let offset = self.extent.offset + element_at(index) as u64;
        Extent { page: self.extent.page, offset, len: ELEMENT_LEN as u64 }
    }

    fn table_end(&self) -> usize {
        element_at(self.count)
    }

    fn span(&self, index: usize) -> Span {
        let at = element_at(index);
        let field = |n: usize| u32_at(&self.head, at + 4 * n);
        let (pos, key_len, value_len) = match self.kind {
            Kind::Branch => (field(0), field(1), 0),
            Kind::Leaf => (field(1), field(2), field(3)),
        };
        Span { start: at as u64 + u64::from(pos), key_len, value_len }
    }

    /// The data of elements is in the order of the elements and never overlaps, so that a page cannot make us read more
    /// than its length.
    fn checked_span(&self, index: usize) -> Result<Span, ReadError> {
        let span = self.span(index);
        if span.key_len == 0 || span.key_len as usize > KEY_BYTES_MAX {
            return Err(self.corrupt_item(index, Fault::KeyLength { len: span.key_len }));
        }
        if span.value_len > READ_VALUE_BYTES_MAX {
            return Err(self.corrupt_item(index, Fault::ValueLength { len: span.value_len }));
        }
        let min = if index == 0 { self.table_end() as u64 } else { self.span(index - 1).end() };
        if span.start < min || span.end() > self.extent.len {
            let fault = Fault::DataOutside { start: span.start, end: span.end(), min, max: self.extent.len };
            return Err(self.corrupt_item(index, fault));
        }
        Ok(span)
    }

    fn bytes(&mut self, source: &impl ReadAt, span: &Span) -> Result<(&[u8], &[u8]), ReadError> {
        // Positions are below 2^34, and we are on a 64-bit system.
        let (start, end, key_len) = (span.start as usize, span.end() as usize, span.key_len as usize);
        if end <= self.head.len() {
            return Ok(self.head[start..end].split_at(key_len));
        }
        // A record is asked for more than once, and one of these can be long.
        if self.beyond_start != start || self.beyond.len() != end - start {
            self.beyond_start = 0;
            self.beyond.resize(end - start, 0);
            read(source, &mut self.beyond, self.extent.offset + span.start)?;
            self.beyond_start = start;
        }
        Ok(self.beyond.split_at(key_len))
    }
}

/// Byte of an element in its page.
fn element_at(index: usize) -> usize {
    PAGE_HEADER_LEN + index * ELEMENT_LEN
}

/// A positioned read whose error says where.
pub(super) fn read(source: &impl ReadAt, buf: &mut [u8], offset: u64) -> Result<(), ReadError> {
    source.read_exact_at(buf, offset).map_err(|source| ReadError::Io { offset, len: buf.len(), source })
}
