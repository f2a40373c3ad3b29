//! Rows in memory, for tests and for trying things out: the same order and meaning as any backend, nothing durable.

use super::Opened;
use crate::mvcc::{Location, State, Version};
use crate::rows::{Batch, CommitError, ReadError, Row, RowReader, RowWriter, ScanFrom, Size};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

type Rows = Arc<RwLock<BTreeMap<Location, Row>>>;

struct Memory {
    rows: Rows,
}

pub fn open() -> Opened {
    let rows = Rows::default();
    Opened {
        writer: Box::new(Memory { rows: rows.clone() }),
        reader: Arc::new(Memory { rows }),
        state: State::default(),
        identity: super::new_identity(None),
        images: None,
    }
}

fn load(rows: &Rows, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
    let rows = rows.read().expect("no writer of the rows panics");
    let value = |version: &Version| match rows.get(&version.location) {
        Some(row) => Ok(row.value.clone()),
        None => Err(ReadError::Gone(version.location)),
    };
    versions.iter().map(value).collect()
}

impl RowWriter for Memory {
    fn commit(&mut self, batch: &Batch) -> Result<(), CommitError> {
        let mut rows = self.rows.write().expect("no writer of the rows panics");
        rows.extend(batch.rows.iter().map(|row| (row.version.location, row.clone())));
        for location in &batch.removed {
            rows.remove(location);
        }
        Ok(())
    }

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        load(&self.rows, versions)
    }

    fn release_space(&mut self) -> Result<bool, CommitError> {
        Ok(false)
    }

    fn defragment(&mut self) -> Result<(), CommitError> {
        Ok(())
    }

    fn size(&self) -> Size {
        let rows = self.rows.read().expect("no writer of the rows panics");
        let bytes =
            rows.values().map(|row| (row.key.len() + row.value.len() + size_of::<Row>()) as u64).sum();
        Size { allocated: bytes, in_use: bytes }
    }
}

impl RowReader for Memory {
    fn visit(&self, versions: &[Version], each: &mut dyn FnMut(usize, &[u8])) -> Result<(), ReadError> {
        for (at, value) in load(&self.rows, versions)?.iter().enumerate() {
            if !value.is_empty() {
                each(at, value);
            }
        }
        Ok(())
    }

    fn scan(&self, from: ScanFrom, rows_max: usize, bytes_max: usize) -> Result<Vec<Row>, ReadError> {
        let rows = self.rows.read().expect("no writer of the rows panics");
        let (location, revision) = match from {
            ScanFrom::Location(location) => (location, 0),
            ScanFrom::Revision(revision) => (0, revision),
        };
        let mut bytes = 0;
        let found =
            rows.range(location..).map(|(_, row)| row).filter(|row| row.version.mod_revision >= revision);
        let bounded = found.take(rows_max).take_while(|row| {
            let within = bytes < bytes_max;
            bytes += row.value.len();
            within
        });
        Ok(bounded.cloned().collect())
    }

    fn scan_heads(&self, from: ScanFrom, rows_max: usize) -> Result<Vec<Row>, ReadError> {
        let mut rows = self.scan(from, rows_max, usize::MAX)?;
        rows.iter_mut().for_each(|row| row.value = Bytes::new());
        Ok(rows)
    }
}
