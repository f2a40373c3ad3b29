//! Writing a file front to back: a [`Planner`] for the first pass, a [`Writer`] for the second.
//!
//! Buckets come in ascending order of their names, the records of a bucket in ascending order of their keys, and both
//! passes see the same ones; the writer refuses anything else before the file is complete. Every bucket has pages of its
//! own (bbolt puts small ones inline, and turns ours into that when it changes them): with ten buckets this costs ten
//! pages and saves a second way to write. The freelist is there and empty, so that etcd needs no scan of the whole file
//! when it opens a restored one. Layout: metas 0 and 1, freelist 2, the buckets, the root bucket.
//!
//! The output gets many small writes; the caller buffers. The caller also syncs.

use std::io::{self, Write};

use super::meta::MetaPage;
use super::shape::{Closed, Shape};
use super::{
    BRANCH_FLAG, BUCKET_ELEMENT, BUCKET_HEADER_LEN, ELEMENT_LEN, FREELIST_FLAG, KEY_BYTES_MAX, LEAF_FLAG,
    PAGE_HEADER_LEN, PAGE_SIZE, PageHeader, VALUE_BYTES_MAX,
};

const FREELIST_PAGE: u64 = 2;
const FIRST_TREE_PAGE: u64 = 3;
static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Why a file could not be planned or written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("a record came before the first bucket")]
    NoBucket,
    #[error("bucket {bucket:?}: a key or bucket name of {len} bytes, allowed are 1 to {KEY_BYTES_MAX}")]
    KeyLength { bucket: String, len: usize },
    #[error("bucket {bucket:?}: a value of {len} bytes, allowed are up to {VALUE_BYTES_MAX}")]
    ValueTooLong { bucket: String, len: usize },
    #[error("bucket {bucket:?}: key {key:02x?} does not come after the one before it")]
    KeyOrder { bucket: String, key: Vec<u8> },
    #[error("bucket {bucket:?} does not come after bucket {previous:?}")]
    BucketOrder { bucket: String, previous: String },
    #[error("not the records that were planned: they need {written} pages or more, planned are {planned}")]
    NotAsPlanned { planned: u64, written: u64 },
    #[error("writing the bbolt file")]
    Io(#[from] io::Error),
}

/// Where a planned file's root is and how long it will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    root: u64,
    pages: u64,
}

impl Plan {
    /// Length of the file in bytes: a multiple of the page size.
    pub fn file_len(&self) -> u64 {
        self.pages * PAGE_SIZE as u64
    }
}

/// The first pass: takes the lengths of all records.
#[derive(Debug)]
pub struct Planner {
    shape: Shape,
    /// Names of the buckets so far; the last one is open.
    names: Vec<Vec<u8>>,
}

impl Default for Planner {
    fn default() -> Self {
        Self::new()
    }
}

impl Planner {
    pub fn new() -> Self {
        Self { shape: Shape::new(FIRST_TREE_PAGE), names: Vec::new() }
    }

    /// Ends the bucket before and begins an empty one.
    ///
    /// # Errors
    /// The name is empty, too long or not after the bucket before.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.begin(name, &mut |_| Ok(())).map(drop)
    }

    /// Adds a record to the bucket.
    ///
    /// # Errors
    /// There is no bucket, or bbolt does not allow these lengths.
    pub fn record(&mut self, key_len: usize, value_len: usize) -> Result<(), WriteError> {
        self.push(key_len, value_len, &mut |_| Ok(()))
    }

    /// # Errors
    /// None that [`Planner::bucket`] and [`Planner::record`] have not refused before.
    pub fn finish(mut self) -> Result<Plan, WriteError> {
        self.end(&mut |_| Ok(()))?;
        for name in &self.names {
            self.shape.push::<WriteError>(name.len(), BUCKET_HEADER_LEN, &mut |_| Ok(()))?;
        }
        let root = self.shape.finish::<WriteError>(&mut |_| Ok(()))?;
        Ok(Plan { root, pages: self.shape.next_page() })
    }

    /// Returns the root page of the bucket before, if there is one.
    fn begin(
        &mut self,
        name: &[u8],
        on_close: &mut impl FnMut(Closed) -> Result<(), WriteError>,
    ) -> Result<Option<u64>, WriteError> {
        if name.is_empty() || name.len() > KEY_BYTES_MAX {
            return Err(WriteError::KeyLength { bucket: lossy(name), len: name.len() });
        }
        if let Some(previous) = self.names.last().filter(|previous| previous.as_slice() >= name) {
            return Err(WriteError::BucketOrder { bucket: lossy(name), previous: lossy(previous) });
        }
        let root = self.end(on_close)?;
        self.names.push(name.to_vec());
        Ok(root)
    }

    fn end(
        &mut self,
        on_close: &mut impl FnMut(Closed) -> Result<(), WriteError>,
    ) -> Result<Option<u64>, WriteError> {
        if self.names.is_empty() { Ok(None) } else { self.shape.finish(on_close).map(Some) }
    }

    fn push(
        &mut self,
        key_len: usize,
        value_len: usize,
        on_close: &mut impl FnMut(Closed) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let Some(bucket) = self.names.last() else { return Err(WriteError::NoBucket) };
        if key_len == 0 || key_len > KEY_BYTES_MAX {
            return Err(WriteError::KeyLength { bucket: lossy(bucket), len: key_len });
        }
        if value_len > VALUE_BYTES_MAX {
            return Err(WriteError::ValueTooLong { bucket: lossy(bucket), len: value_len });
        }
        self.shape.push(key_len, value_len, on_close)
    }
}

/// The second pass: takes the records and writes the file.
#[derive(Debug)]
pub struct Writer<W> {
    plan: Plan,
    /// Walks the same way as in the first pass, and says when a page is complete.
    walk: Planner,
    /// Root pages of the buckets that are complete, as many as names or one less.
    roots: Vec<u64>,
    pages: Pages<W>,
}

impl<W: Write> Writer<W> {
    /// Writes the pages that the plan alone decides.
    ///
    /// # Errors
    /// The output failed.
    pub fn new(out: W, plan: Plan) -> Result<Self, WriteError> {
        let mut pages = Pages { out, planned: plan.pages, levels: Vec::new() };
        // Both metas describe the same state; bbolt puts even transactions on page 0 and odd ones on page 1.
        for id in 0..2 {
            let meta = MetaPage {
                page_size: PAGE_SIZE as u32,
                root: plan.root,
                freelist: FREELIST_PAGE,
                high_water: plan.pages,
                txid: id,
            };
            pages.write_padded(&[&meta.encode(id)], 1)?;
        }
        let freelist = PageHeader { id: FREELIST_PAGE, flags: FREELIST_FLAG, count: 0, overflow: 0 };
        pages.write_padded(&[&freelist.encode()], 1)?;
        Ok(Self { plan, walk: Planner::new(), roots: Vec::new(), pages })
    }

    /// Ends the bucket before and begins an empty one.
    ///
    /// # Errors
    /// The name is empty, too long or not after the bucket before; not as planned; the output failed.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        let root = self.walk.begin(name, &mut |closed| self.pages.write(closed))?;
        self.roots.extend(root);
        self.pages.levels.clear();
        Ok(())
    }

    /// Adds a record to the bucket.
    ///
    /// # Errors
    /// There is no bucket, or bbolt does not allow these lengths; the key is not after the one before; not as planned;
    /// the output failed.
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        if self.pages.level(0).last_key().is_some_and(|last| last >= key) {
            let bucket = self.walk.names.last().map_or_else(String::new, |name| lossy(name));
            return Err(WriteError::KeyOrder { bucket, key: key.to_vec() });
        }
        self.pages.level(0).push(
            Element { flags: 0, child: 0, key_len: key.len(), value_len: value.len() },
            key,
            value,
        );
        self.walk.push(key.len(), value.len(), &mut |closed| self.pages.write(closed))
    }

    /// The output, for a caller that takes from it what was written so far.
    pub fn out_mut(&mut self) -> &mut W {
        &mut self.pages.out
    }

    /// Writes the root bucket and returns the output, which is not flushed.
    ///
    /// # Errors
    /// Not as planned; the output failed.
    pub fn finish(mut self) -> Result<W, WriteError> {
        let root = self.walk.end(&mut |closed| self.pages.write(closed))?;
        self.roots.extend(root);
        self.pages.levels.clear();
        for (name, root) in self.walk.names.iter().zip(&self.roots) {
            let mut header = [0; BUCKET_HEADER_LEN];
            header[..8].copy_from_slice(&root.to_le_bytes());
            let element = Element {
                flags: BUCKET_ELEMENT,
                child: 0,
                key_len: name.len(),
                value_len: BUCKET_HEADER_LEN,
            };
            self.pages.level(0).push(element, name, &header);
            self.walk.shape.push(name.len(), BUCKET_HEADER_LEN, &mut |closed| self.pages.write(closed))?;
        }
        let root = self.walk.shape.finish(&mut |closed| self.pages.write(closed))?;
        let written = self.walk.shape.next_page();
        if (Plan { root, pages: written }) != self.plan {
            return Err(WriteError::NotAsPlanned { planned: self.plan.pages, written });
        }
        Ok(self.pages.out)
    }
}

/// Entries that wait for their page, and the output for complete pages.
#[derive(Debug)]
struct Pages<W> {
    out: W,
    planned: u64,
    levels: Vec<Entries>,
}

impl<W: Write> Pages<W> {
    fn level(&mut self, level: usize) -> &mut Entries {
        while self.levels.len() <= level {
            self.levels.push(Entries::default());
        }
        &mut self.levels[level]
    }

    /// Writes a page and gives its parent an entry for it.
    fn write(&mut self, closed: Closed) -> Result<(), WriteError> {
        if closed.page + closed.pages > self.planned {
            let written = closed.page + closed.pages;
            return Err(WriteError::NotAsPlanned { planned: self.planned, written });
        }
        let page = self.level(closed.level).take(closed.entries);
        let header = PageHeader {
            id: closed.page,
            flags: if closed.level == 0 { LEAF_FLAG } else { BRANCH_FLAG },
            count: u16::try_from(page.elements.len()).expect("a page has less than 256 entries"),
            overflow: u32::try_from(closed.pages - 1).expect("the longest record has less than 2^20 pages"),
        };
        let table = page.table(closed.level);
        self.write_padded(&[&header.encode(), &table, &page.data], closed.pages)?;
        let first_key = page.first_key();
        let element = Element { flags: 0, child: closed.page, key_len: first_key.len(), value_len: 0 };
        self.level(closed.level + 1).push(element, first_key, &[]);
        Ok(())
    }

    fn write_padded(&mut self, parts: &[&[u8]], pages: u64) -> io::Result<()> {
        let mut len = 0;
        for part in parts {
            self.out.write_all(part)?;
            len += part.len();
        }
        self.out.write_all(&ZEROS[..pages as usize * PAGE_SIZE - len])
    }
}

/// Elements and, in the same order, their keys and values: the two parts of a page.
#[derive(Debug, Default)]
struct Entries {
    elements: Vec<Element>,
    data: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Element {
    /// Leaves only.
    flags: u32,
    /// Branches only.
    child: u64,
    key_len: usize,
    value_len: usize,
}

impl Entries {
    fn push(&mut self, element: Element, key: &[u8], value: &[u8]) {
        self.elements.push(element);
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    /// The oldest `count` entries; the others stay.
    fn take(&mut self, count: usize) -> Self {
        let elements: Vec<Element> = self.elements.drain(..count).collect();
        let len: usize = elements.iter().map(|element| element.key_len + element.value_len).sum();
        let data = self.data.drain(..len).collect();
        Self { elements, data }
    }

    fn first_key(&self) -> &[u8] {
        self.elements.first().map_or(&[], |first| &self.data[..first.key_len])
    }

    fn last_key(&self) -> Option<&[u8]> {
        let last = self.elements.last()?;
        let start = self.data.len() - last.key_len - last.value_len;
        Some(&self.data[start..start + last.key_len])
    }

    /// The page's element table.
    fn table(&self, level: usize) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.elements.len() * ELEMENT_LEN);
        let mut data_at = self.elements.len() * ELEMENT_LEN;
        for element in &self.elements {
            // No more than the longest record and a page: below 2^32.
            let pos = ((data_at - table.len()) as u32).to_le_bytes();
            let (key_len, value_len) = (element.key_len as u32, element.value_len as u32);
            if level == 0 {
                table.extend_from_slice(&element.flags.to_le_bytes());
                table.extend_from_slice(&pos);
                table.extend_from_slice(&key_len.to_le_bytes());
                table.extend_from_slice(&value_len.to_le_bytes());
            } else {
                table.extend_from_slice(&pos);
                table.extend_from_slice(&key_len.to_le_bytes());
                table.extend_from_slice(&element.child.to_le_bytes());
            }
            data_at += element.key_len + element.value_len;
        }
        table
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

const _: () = assert!((PAGE_SIZE - PAGE_HEADER_LEN) / ELEMENT_LEN < 256);
