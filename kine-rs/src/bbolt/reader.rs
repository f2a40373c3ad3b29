//! Reading a file: the valid meta, the buckets, the records of a bucket in order.
//!
//! Whatever the bytes are, reading ends, with records or with an error that names page and offset. A walk goes down at
//! most [`DEPTH_MAX`] pages, every step down ends at a record, and records ascend strictly, so no record is seen twice
//! and no loop in the file can hold a walk; the pages of a walk together are no longer than the file. Pages have no checksums: damage inside a value shows only in the trailer of a
//! snapshot ([`super::verify_trailer`]).
//!
//! Memory: one page a level and one record. The file must not change meanwhile, as with a snapshot or a stopped etcd.

use std::io;

use super::meta::{META_LEN, MetaFault, MetaPage, PAGE_SIZE_MAX, PAGE_SIZE_MIN};
use super::node::{Extent, Kind, LeafItem, Node, read};
use super::{BUCKET_HEADER_LEN, PageHeader, ReadAt, u64_at};

/// Pages from a bucket's root to its leaves. With two children a branch this is 2^32 leaves; real files have five.
const DEPTH_MAX: usize = 32;
/// Buckets in a file; etcd has ten.
const BUCKETS_MAX: usize = 1024;
/// Pages 0 and 1 are the metas.
const FIRST_PAGE: u64 = 2;
/// Page number in the header of inline buckets.
const INLINE_PAGE: u64 = 0;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading {len} bytes at offset {offset}")]
    Io { offset: u64, len: usize, source: io::Error },
    #[error("asking for the file's length")]
    Size(#[source] io::Error),
    #[error("not a bbolt file, or damaged at its start: meta page 0: {meta0}; meta page 1: {meta1}")]
    NoMeta { meta0: MetaFault, meta1: MetaFault },
    #[error("the file is cut off: it has {actual} bytes, its meta page says {expected}")]
    CutOff { actual: u64, expected: u64 },
    #[error("the bbolt file is damaged")]
    Corrupt(#[from] Corruption),
}

/// Where a file contradicts the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page {page}, offset {offset}: {fault}")]
pub struct Corruption {
    pub page: u64,
    /// Byte in the file.
    pub offset: u64,
    pub fault: Fault,
}

/// What contradicts the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("refers to page {page}, pages with data are {FIRST_PAGE} to below {high_water}")]
    PageOutside { page: u64, high_water: u64 },
    #[error("the page says it is page {found}")]
    PageId { found: u64 },
    #[error("neither branch nor leaf (flags {flags:#06x})")]
    PageKind { flags: u16 },
    #[error("the run of {pages} pages passes the end of the data at page {high_water}")]
    RunOutside { pages: u64, high_water: u64 },
    #[error("{len} bytes are too few for a page header")]
    TooShort { len: u64 },
    #[error("{count} elements do not fit {len} bytes")]
    Count { count: u16, len: u64 },
    #[error("a page without elements that is not the leaf of an empty bucket")]
    Empty,
    #[error("element flags {flags:#010x}, expected 0 or 1")]
    ElementFlags { flags: u32 },
    #[error("a key of {len} bytes")]
    KeyLength { len: u32 },
    #[error("a value of {len} bytes, which is more than we read into memory")]
    ValueLength { len: u32 },
    #[error("data at bytes {start} to {end} of the page, which is not inside {min} to {max}")]
    DataOutside { start: u64, end: u64, min: u64, max: u64 },
    #[error("a bucket of {len} bytes, expected its {BUCKET_HEADER_LEN} byte header")]
    BucketHeader { len: usize },
    #[error("the key is out of order")]
    KeyOrder,
    #[error("the tree is deeper than {DEPTH_MAX} pages")]
    TooDeep,
    #[error("the tree has more pages than the file")]
    TooManyPages,
    #[error("more than {BUCKETS_MAX} buckets")]
    TooManyBuckets,
    #[error("a record where a bucket is expected")]
    NotABucket,
    #[error("a bucket where a record is expected")]
    NestedBucket,
}

/// A bbolt file, open for reading.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    meta: MetaPage,
}

/// A top-level bucket of a file.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub name: Vec<u8>,
    tree: Tree,
}

/// A record, valid until the next one is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
}

impl<S: ReadAt> Reader<S> {
    /// Finds the valid meta page with the higher transaction.
    ///
    /// # Errors
    /// No meta page is valid, or the file is shorter than it says.
    pub fn open(source: S) -> Result<Self, ReadError> {
        let size = source.size().map_err(ReadError::Size)?;
        let meta0 = read_meta(&source, size, 0)?;
        let meta1 = match meta0 {
            Ok(meta) => read_meta(&source, size, u64::from(meta.page_size))?,
            Err(_) => find_meta1(&source, size)?,
        };
        let meta = match (meta0, meta1) {
            (Ok(a), Ok(b)) if a.txid < b.txid => b,
            (Ok(meta), _) | (_, Ok(meta)) => meta,
            (Err(meta0), Err(meta1)) => return Err(ReadError::NoMeta { meta0, meta1 }),
        };
        let expected = meta.high_water.saturating_mul(u64::from(meta.page_size));
        if size < expected {
            return Err(ReadError::CutOff { actual: size, expected });
        }
        Ok(Self { source, meta })
    }

    /// Length of the part of the file that has data; a trailer may follow.
    pub fn data_len(&self) -> u64 {
        self.meta.high_water * u64::from(self.meta.page_size)
    }

    /// The transaction that wrote the file last.
    pub fn txid(&self) -> u64 {
        self.meta.txid
    }

    /// All top-level buckets in the order of their names.
    ///
    /// # Errors
    /// The root bucket is damaged, has records, or more buckets than we take.
    pub fn buckets(&self) -> Result<Vec<Bucket>, ReadError> {
        let mut walk = Walk::new(self, Tree::Rooted { page: self.meta.root, named_at: self.meta_extent() });
        let mut buckets = Vec::new();
        while let Some((node, index)) = walk.step()? {
            if buckets.len() == BUCKETS_MAX {
                return Err(node.corrupt_item(index, Fault::TooManyBuckets));
            }
            let page = node.extent().page;
            let item = node.leaf_item(&self.source, index)?;
            let bucket = if item.is_bucket { bucket(page, &item) } else { Err(Fault::NotABucket) };
            buckets.push(bucket.map_err(|fault| node.corrupt_item(index, fault))?);
        }
        Ok(buckets)
    }

    /// The records of a bucket of this file.
    pub fn records<'r>(&'r self, bucket: &Bucket) -> Records<'r, S> {
        Records { walk: Walk::new(self, bucket.tree) }
    }

    fn load(&self, tree: Tree) -> Result<Node, ReadError> {
        match tree {
            Tree::Rooted { page, named_at } => self.load_page(page, named_at),
            Tree::Inline(extent) => {
                let head = self.read_head(extent)?;
                Node::new(&self.source, INLINE_PAGE, extent, head)
            }
        }
    }

    /// Reads the page with number `page`, which is told at `named_at`.
    fn load_page(&self, page: u64, named_at: Extent) -> Result<Node, ReadError> {
        let (page_size, high_water) = (u64::from(self.meta.page_size), self.meta.high_water);
        if !(FIRST_PAGE..high_water).contains(&page) {
            let fault = Fault::PageOutside { page, high_water };
            return Err(Corruption { page: named_at.page, offset: named_at.offset, fault }.into());
        }
        let mut extent = Extent { page, offset: page * page_size, len: page_size };
        let head = self.read_head(extent)?;
        let header = PageHeader::decode(head.first_chunk().expect("a page is longer than its header"));
        let pages = u64::from(header.overflow) + 1;
        if pages > high_water - page {
            let fault = Fault::RunOutside { pages, high_water };
            return Err(Corruption { page, offset: extent.offset + 12, fault }.into());
        }
        extent.len = pages * page_size;
        Node::new(&self.source, page, extent, head)
    }

    fn read_head(&self, extent: Extent) -> Result<Vec<u8>, ReadError> {
        let mut head = vec![0; extent.len.min(u64::from(self.meta.page_size)) as usize];
        read(&self.source, &mut head, extent.offset)?;
        Ok(head)
    }

    fn meta_extent(&self) -> Extent {
        Extent { page: 0, offset: 32, len: BUCKET_HEADER_LEN as u64 }
    }
}

/// The records of a bucket in ascending order of their keys.
#[derive(Debug)]
pub struct Records<'r, S> {
    walk: Walk<'r, S>,
}

impl<S: ReadAt> Records<'_, S> {
    /// The next record, or `None` after the last. Not to be called again after an error.
    ///
    /// # Errors
    /// The file is damaged at this place, or reading failed.
    #[expect(clippy::should_implement_trait, reason = "the record borrows from the walk")]
    pub fn next(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        let source = &self.walk.reader.source;
        let Some((node, index)) = self.walk.step()? else { return Ok(None) };
        if node.leaf_item(source, index)?.is_bucket {
            return Err(node.corrupt_item(index, Fault::NestedBucket));
        }
        let item = node.leaf_item(source, index)?;
        Ok(Some(Record { key: item.key, value: item.value }))
    }
}

#[cfg(test)]
impl<S> Reader<S> {
    pub(super) fn meta_root(&self) -> u64 {
        self.meta.root
    }
}

#[cfg(test)]
impl Bucket {
    pub(super) fn root_page(&self) -> u64 {
        match self.tree {
            Tree::Rooted { page, .. } => page,
            Tree::Inline(_) => INLINE_PAGE,
        }
    }
}

/// Where a bucket's tree begins.
#[derive(Debug, Clone, Copy)]
enum Tree {
    Rooted { page: u64, named_at: Extent },
    Inline(Extent),
}

/// A walk over the leaf elements of a tree.
#[derive(Debug)]
struct Walk<'r, S> {
    reader: &'r Reader<S>,
    /// Until the first step.
    start: Option<Tree>,
    /// From the root down; the second part is the next element.
    path: Vec<(Node, usize)>,
    /// Bytes of pages that the tree can still have.
    bytes_left: u64,
    /// The last key seen, on a branch or on a leaf.
    bound: Vec<u8>,
    /// Whether `bound` was a record's key: then the next key must be greater, else it may be equal.
    passed: bool,
}

impl<'r, S: ReadAt> Walk<'r, S> {
    fn new(reader: &'r Reader<S>, tree: Tree) -> Self {
        let bytes_left = reader.data_len();
        Self { reader, start: Some(tree), path: Vec::new(), bytes_left, bound: Vec::new(), passed: false }
    }

    /// The leaf and the index of the next element. Its key has been checked against all before.
    fn step(&mut self) -> Result<Option<(&mut Node, usize)>, ReadError> {
        if let Some(tree) = self.start.take() {
            self.enter(self.reader.load(tree)?)?;
        }
        while let Some((node, next)) = self.path.last_mut() {
            let index = *next;
            if index == node.count() {
                self.path.pop();
                continue;
            }
            *next += 1;
            if node.kind() == Kind::Leaf {
                let key = node.leaf_item(&self.reader.source, index)?.key;
                if !follows(&self.bound, self.passed, key) {
                    return Err(node.corrupt_item(index, Fault::KeyOrder));
                }
                replace(&mut self.bound, key);
                self.passed = true;
                return Ok(self.path.last_mut().map(|(node, _)| (node, index)));
            }
            self.descend(index)?;
        }
        Ok(None)
    }

    /// Enters child `index` of the branch that is last on the path.
    fn descend(&mut self, index: usize) -> Result<(), ReadError> {
        let depth = self.path.len();
        let (node, _) = self.path.last_mut().expect("called with a branch on the path");
        if depth == DEPTH_MAX {
            return Err(node.corrupt_item(index, Fault::TooDeep));
        }
        let item = node.branch_item(&self.reader.source, index)?;
        let child = item.child;
        if !follows(&self.bound, self.passed, item.key) {
            return Err(node.corrupt_item(index, Fault::KeyOrder));
        }
        replace(&mut self.bound, item.key);
        self.passed = false;
        let child = self.reader.load_page(child, node.item_extent(index))?;
        if child.count() == 0 {
            return Err(child.corrupt(10, Fault::Empty));
        }
        self.enter(child)
    }

    fn enter(&mut self, node: Node) -> Result<(), ReadError> {
        let left = self.bytes_left.checked_sub(node.extent().len);
        self.bytes_left = left.ok_or_else(|| node.corrupt(12, Fault::TooManyPages))?;
        self.path.push((node, 0));
        Ok(())
    }
}

/// See the order in [`super`].
fn follows(bound: &[u8], passed: bool, key: &[u8]) -> bool {
    if passed { key > bound } else { key >= bound }
}

fn replace(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}

/// Reads the header of the bucket that is an element of `page`.
fn bucket(page: u64, item: &LeafItem<'_>) -> Result<Bucket, Fault> {
    let len = item.value.len();
    if len < BUCKET_HEADER_LEN {
        return Err(Fault::BucketHeader { len });
    }
    let tree = match u64_at(item.value, 0) {
        0 => Tree::Inline(Extent {
            page,
            offset: item.value_offset + BUCKET_HEADER_LEN as u64,
            len: (len - BUCKET_HEADER_LEN) as u64,
        }),
        root => {
            Tree::Rooted { page: root, named_at: Extent { page, offset: item.value_offset, len: len as u64 } }
        }
    };
    Ok(Bucket { name: item.key.to_vec(), tree })
}

fn read_meta(source: &impl ReadAt, size: u64, offset: u64) -> Result<Result<MetaPage, MetaFault>, ReadError> {
    if size < offset + META_LEN as u64 {
        return Ok(Err(MetaFault::Missing));
    }
    let mut bytes = [0; META_LEN];
    read(source, &mut bytes, offset)?;
    Ok(MetaPage::decode(&bytes))
}

/// Looks for page 1 when page 0 cannot tell the page size.
fn find_meta1(source: &impl ReadAt, size: u64) -> Result<Result<MetaPage, MetaFault>, ReadError> {
    let mut fault = MetaFault::Missing;
    let mut page_size = PAGE_SIZE_MIN;
    while page_size <= PAGE_SIZE_MAX {
        match read_meta(source, size, u64::from(page_size))? {
            Ok(meta) if meta.page_size == page_size => return Ok(Ok(meta)),
            Ok(meta) => fault = MetaFault::PageSize(meta.page_size),
            // Most places are not page 1, and their fault says nothing.
            Err(MetaFault::Missing | MetaFault::Magic(_)) => {}
            Err(found) => fault = found,
        }
        page_size *= 2;
    }
    Ok(Err(fault))
}
