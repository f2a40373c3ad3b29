//! An image of the index: what a state knows of its rows, as bytes. Written from a frozen state while the store goes on;
//! read at start, when only the rows after it are left to read.
//!
//! Invariant: `read` returns the index that `write` was given under that id, or an error; no bytes make it panic or take
//! more memory than they are long. What is no part of it: leases, alarms and users, which a backend keeps as records, and
//! the compact revision of today, which is one of them. `docs/index-format.md` describes the bytes.
//!
//! Called by the backends, which say where an image is, which one belongs to their rows, and when there is a new one. Knows
//! no files and no backend.

use super::tree::{Builder, Malformed, Record, Tree};
use super::{Location, Past, REVISION_MAX, State, Version};
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"kineindx";
pub const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 64;
const BLOCK_HEADER_BYTES: usize = 12;
/// A block ends with the leaf that fills it. Large enough that a file is read in few steps, small enough that writing one
/// holds up nobody's write for long.
const BLOCK_BYTES: usize = 256 << 10;
/// History keys end with two bytes and a location, those of `attached` begin with a lease.
const HISTORY_KEY_BYTES_MIN: usize = 10;
const ATTACHED_KEY_BYTES_MIN: usize = 8;
const BURIED_KEY_BYTES: usize = 8;

/// Names one image among all there ever were: random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageId(pub [u8; 16]);

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not an index")]
    Foreign,
    #[error("it has format {found}, this release reads {FORMAT}")]
    Format { found: u32 },
    #[error("it goes with another state of the database")]
    OtherId,
    #[error("it is damaged in {0}")]
    Damaged(Part),
}

/// Where an image is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Header,
    /// Counted from 0.
    Block(u64),
    /// Blocks are missing, or there is something behind the last.
    End,
}

impl std::fmt::Display for Part {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Header => write!(out, "its header"),
            Part::Block(number) => write!(out, "block {number}"),
            Part::End => write!(out, "its end"),
        }
    }
}

/// The trees, in the order they are written in; the discriminant is what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Section {
    Live = 1,
    History = 2,
    Attached = 3,
    Buried = 4,
    End = 255,
}

impl Section {
    const ALL: [Section; 5] =
        [Section::Live, Section::History, Section::Attached, Section::Buried, Section::End];
}

/// Writes the index of `state`, in pieces of about `BLOCK_BYTES`.
pub fn write(state: &State, id: ImageId, out: &mut impl Write) -> io::Result<()> {
    out.write_all(&Header::of(state).encode(id))?;
    let mut blocks = Blocks { id, number: 0, block: Vec::new(), out };
    blocks.tree(Section::Live, &state.live)?;
    blocks.tree(Section::History, &state.history)?;
    blocks.tree(Section::Attached, &state.attached)?;
    blocks.tree(Section::Buried, &state.buried)?;
    blocks.begin(Section::End);
    for count in counts(state) {
        blocks.block.extend_from_slice(&count.to_be_bytes());
    }
    blocks.close()
}

fn counts(state: &State) -> [u64; 4] {
    [state.live.len(), state.history.len(), state.attached.len(), state.buried.len()]
}

struct Header {
    revision: i64,
    compact_revision: i64,
    next_location: Location,
}

impl Header {
    fn of(state: &State) -> Self {
        Header {
            revision: state.revision,
            compact_revision: state.compact_revision,
            next_location: state.next_location,
        }
    }

    fn encode(&self, id: ImageId) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_be_bytes());
        bytes[16..32].copy_from_slice(&id.0);
        bytes[32..40].copy_from_slice(&self.revision.to_be_bytes());
        bytes[40..48].copy_from_slice(&self.compact_revision.to_be_bytes());
        bytes[48..56].copy_from_slice(&self.next_location.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// What is refused as something else is looked at first: a newer format may have its checksum elsewhere.
    fn decode(bytes: &[u8; HEADER_BYTES], id: ImageId) -> Result<Self, ImageError> {
        if &bytes[..8] != MAGIC {
            return Err(ImageError::Foreign);
        }
        match number(&bytes[8..12]) as u32 {
            FORMAT => {}
            found => return Err(ImageError::Format { found }),
        }
        if number(&bytes[60..]) != u64::from(crc32c::crc32c(&bytes[..60])) {
            return Err(ImageError::Damaged(Part::Header));
        }
        if bytes[16..32] != id.0 {
            return Err(ImageError::OtherId);
        }
        let header = Header {
            revision: number(&bytes[32..40]) as i64,
            compact_revision: number(&bytes[40..48]) as i64,
            next_location: number(&bytes[48..56]),
        };
        let sound =
            (1..=REVISION_MAX).contains(&header.revision) && header.compact_revision <= header.revision;
        if sound { Ok(header) } else { Err(ImageError::Damaged(Part::Header)) }
    }

    fn allows(&self, version: &Version) -> bool {
        version.location < self.next_location
            && version.create_revision <= version.mod_revision
            && version.mod_revision <= self.revision
            && version.version >= 0
    }
}

/// Up to eight bytes, big endian.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Covers which image and which place in it a block is of, so that no block can stand in for another.
fn checksum(id: ImageId, number: u64, block: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&id.0), &number.to_be_bytes());
    let head = crc32c::crc32c_append(place, &block[..8]);
    crc32c::crc32c_append(head, &block[BLOCK_HEADER_BYTES..])
}

struct Blocks<'w, W> {
    id: ImageId,
    number: u64,
    /// The block being filled, from its header on; empty between two.
    block: Vec<u8>,
    out: &'w mut W,
}

impl<W: Write> Blocks<'_, W> {
    fn tree<R: Record>(&mut self, section: Section, tree: &Tree<R>) -> io::Result<()> {
        for leaf in tree.leaves() {
            if self.block.is_empty() {
                self.begin(section);
            }
            leaf.put(&mut self.block);
            if self.block.len() >= BLOCK_BYTES {
                self.close()?;
            }
        }
        if self.block.is_empty() { Ok(()) } else { self.close() }
    }

    fn begin(&mut self, section: Section) {
        self.block.extend_from_slice(&[0, 0, 0, 0, section as u8, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn close(&mut self) -> io::Result<()> {
        let payload = (self.block.len() - BLOCK_HEADER_BYTES) as u32;
        self.block[..4].copy_from_slice(&payload.to_be_bytes());
        let crc = checksum(self.id, self.number, &self.block);
        self.block[8..BLOCK_HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        self.out.write_all(&self.block)?;
        self.number += 1;
        self.block.clear();
        Ok(())
    }
}

/// Reads the image `id` to its end. The state has no leases, alarms and users, and the compact revision of then.
pub fn read(id: ImageId, input: &mut impl Read) -> Result<State, ImageError> {
    let mut bytes = [0; HEADER_BYTES];
    match input.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ImageError::Foreign),
        other => other?,
    }
    let header = Header::decode(&bytes, id)?;
    let mut trees = Trees::default();
    let mut section = Section::Live;
    let mut block = Vec::new();
    for at in 0.. {
        let damaged = || ImageError::Damaged(Part::Block(at));
        read_block(input, &mut block)?;
        if block.is_empty() {
            return Err(ImageError::Damaged(Part::End));
        }
        let whole = block.len() >= BLOCK_HEADER_BYTES
            && number(&block[..4]) == (block.len() - BLOCK_HEADER_BYTES) as u64
            && number(&block[8..BLOCK_HEADER_BYTES]) == u64::from(checksum(id, at, &block));
        let found = Section::ALL.into_iter().find(|section| block.get(4) == Some(&(*section as u8)));
        section = found.filter(|found| whole && *found >= section).ok_or_else(damaged)?;
        let mut payload = &block[BLOCK_HEADER_BYTES..];
        if section == Section::End {
            let state = trees.finish(&header);
            let expected: Vec<u8> = counts(&state).iter().flat_map(|count| count.to_be_bytes()).collect();
            let is_last = input.read(&mut [0])? == 0;
            return if is_last && payload == expected {
                Ok(state)
            } else {
                Err(ImageError::Damaged(Part::End))
            };
        }
        while !payload.is_empty() {
            trees.leaf(section, &header, &mut payload).map_err(|Malformed| damaged())?;
        }
    }
    unreachable!("a file ends")
}

/// The next block, as far as there is one. Its length is not believed before it was read.
fn read_block(input: &mut impl Read, block: &mut Vec<u8>) -> io::Result<()> {
    block.clear();
    input.by_ref().take(BLOCK_HEADER_BYTES as u64).read_to_end(block)?;
    if block.len() == BLOCK_HEADER_BYTES {
        let payload = number(&block[..4]);
        input.by_ref().take(payload).read_to_end(block)?;
    }
    Ok(())
}

#[derive(Default)]
struct Trees {
    live: Builder<Version>,
    history: Builder<Past>,
    attached: Builder<()>,
    buried: Builder<()>,
}

impl Trees {
    fn leaf(&mut self, section: Section, header: &Header, bytes: &mut &[u8]) -> Result<(), Malformed> {
        match section {
            Section::Live => {
                self.live.packed(bytes, |_, version| header.allows(version) && !version.is_tombstone())
            }
            Section::History => self.history.packed(bytes, |key, past| {
                key.len() >= HISTORY_KEY_BYTES_MIN
                    && header.allows(&past.version)
                    && (past.version.mod_revision..=header.revision + 1).contains(&past.end)
            }),
            Section::Attached => self.attached.packed(bytes, |key, ()| key.len() >= ATTACHED_KEY_BYTES_MIN),
            Section::Buried => self.buried.packed(bytes, |key, ()| key.len() == BURIED_KEY_BYTES),
            Section::End => Err(Malformed),
        }
    }

    fn finish(self, header: &Header) -> State {
        State {
            revision: header.revision,
            compact_revision: header.compact_revision,
            next_location: header.next_location,
            live: self.live.finish(),
            history: self.history.finish(),
            attached: self.attached.finish(),
            buried: self.buried.finish(),
            ..State::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Granted;
    use proptest::prelude::*;

    const ID: ImageId = ImageId([7; 16]);

    /// Keys with a past, of two leases, some of them deleted, the oldest of those compacted and held back.
    fn state(keys: u64) -> State {
        let mut state = State::default();
        state.grant(1, Granted { ttl: 60 });
        state.grant(-2, Granted { ttl: 60 });
        for n in 0..keys * 2 {
            let key = format!("/registry/{}/\0{:06}", n % keys % 7, n % keys);
            state.revision += 1;
            let (revision, location) = (state.revision, state.next_location);
            state.next_location += 1;
            if n >= keys && n % 5 == 0 {
                state.delete(key.as_bytes(), revision, location);
                continue;
            }
            let create_revision = state.get(key.as_bytes()).map_or(revision, |old| old.create_revision);
            let lease = [0, 1, -2][n as usize % 3];
            let version = Version {
                mod_revision: revision,
                create_revision,
                version: 1,
                lease,
                location,
                value_len: 300,
            };
            state.put(key.as_bytes(), &version);
        }
        state.compact_revision = state.revision / 4 * 3;
        state.take_garbage(usize::MAX, state.compact_revision, 0);
        state
    }

    fn image(state: &State) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(state, ID, &mut bytes).unwrap();
        bytes
    }

    fn read_bytes(mut bytes: &[u8]) -> Result<State, ImageError> {
        read(ID, &mut bytes)
    }

    /// All that an image has, as text.
    fn content(state: &State) -> String {
        let State { revision, compact_revision, next_location, live, history, attached, buried, .. } = state;
        format!("{revision} {compact_revision} {next_location} {live:?} {history:?} {attached:?} {buried:?}")
    }

    /// Where each block begins, and the end.
    fn blocks(bytes: &[u8]) -> Vec<usize> {
        let mut starts = vec![HEADER_BYTES];
        while starts[starts.len() - 1] < bytes.len() {
            let at = starts[starts.len() - 1];
            starts.push(at + BLOCK_HEADER_BYTES + number(&bytes[at..at + 4]) as usize);
        }
        starts
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        for keys in [1, 12, 20_000] {
            let state = state(keys);
            let bytes = image(&state);
            let found = read_bytes(&bytes).unwrap();
            assert!(content(&found) == content(&state), "{keys} keys");
            assert!(image(&found) == bytes, "leaves are as they were");
        }
        let large = state(20_000);
        assert!(counts(&large).iter().all(|count| *count > 1000), "{:?}", counts(&large));
        assert!(blocks(&image(&large)).len() > 6, "several blocks of a tree");
        assert_eq!(content(&read_bytes(&image(&State::default())).unwrap()), content(&State::default()));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = image(&state(12));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read_bytes(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_image_cut_short_or_continued_is_found() {
        let bytes = image(&state(12));
        for len in 0..bytes.len() {
            assert!(read_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(read_bytes(&[bytes.as_slice(), b"\0"].concat()).is_err());
        assert!(read_bytes(&[bytes.as_slice(), &bytes[blocks(&bytes)[3]..]].concat()).is_err());
    }

    #[test]
    fn blocks_can_not_be_left_out_or_exchanged_or_come_from_another_image() {
        let bytes = image(&state(20_000));
        let starts = blocks(&bytes);
        let block = |at: usize| &bytes[starts[at]..starts[at + 1]];
        let number = starts.len() - 1;
        let assemble = |order: &[usize]| {
            let blocks: Vec<&[u8]> = order.iter().map(|at| block(*at)).collect();
            [&bytes[..HEADER_BYTES], &blocks.concat()].concat()
        };
        let all: Vec<usize> = (0..number).collect();
        assert!(read_bytes(&assemble(&all)).is_ok());
        for at in 0..number {
            let without: Vec<usize> = all.iter().copied().filter(|block| *block != at).collect();
            assert!(read_bytes(&assemble(&without)).is_err(), "without block {at}");
            let mut twice = all.clone();
            twice.insert(at, at);
            assert!(read_bytes(&assemble(&twice)).is_err(), "block {at} twice");
            let mut exchanged = all.clone();
            exchanged.swap(at, (at + 1) % number);
            assert!(read_bytes(&assemble(&exchanged)).is_err(), "block {at} and the next");
        }
        let mut other = Vec::new();
        write(&state(20_000), ImageId([8; 16]), &mut other).unwrap();
        other[..HEADER_BYTES].copy_from_slice(&bytes[..HEADER_BYTES]);
        assert!(matches!(read_bytes(&other), Err(ImageError::Damaged(Part::Block(0)))));
    }

    #[test]
    fn another_image_or_format_or_file_is_told_apart() {
        let mut bytes = image(&state(1));
        let mut other = ImageId([8; 16]);
        other.0[15] = 7;
        assert!(matches!(read(other, &mut bytes.as_slice()), Err(ImageError::OtherId)));
        bytes[11] = 2;
        assert!(matches!(read_bytes(&bytes), Err(ImageError::Format { found: 2 })));
        assert!(matches!(read_bytes(b"SQLite format 3\0"), Err(ImageError::Foreign)));
        assert!(matches!(read_bytes(&[0; 100]), Err(ImageError::Foreign)));
    }

    /// A whole image around one block of bytes that may be anything.
    fn around(section: u8, payload: &[u8]) -> Vec<u8> {
        let header = Header { revision: 100, compact_revision: 50, next_location: 100 };
        let mut bytes = header.encode(ID).to_vec();
        let mut blocks = Blocks { id: ID, number: 0, block: Vec::new(), out: &mut bytes };
        blocks.begin(Section::End);
        blocks.block[4] = section;
        blocks.block.extend_from_slice(payload);
        blocks.close().unwrap();
        blocks.begin(Section::End);
        let counts = [1, 2, 3, 4].map(|of| u64::from(of == section));
        blocks.block.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        blocks.close().unwrap();
        bytes
    }

    #[test]
    fn entries_that_no_store_could_have_are_refused() {
        // mod revision, less create revision, version, lease, location, length of the value; and the end, less mod revision.
        let live = |record: &[u8]| [&[0, 1, record.len() as u8 + 2, 1, b'k'], record].concat();
        let past = |record: &[u8]| {
            let key = [b"k\0\x01".as_slice(), &7u64.to_be_bytes()].concat();
            [&[0, 1, (key.len() + record.len() + 1) as u8, key.len() as u8], key.as_slice(), record].concat()
        };
        let sound = [9, 2, 1, 0, 7, 5];
        assert!(read_bytes(&around(1, &live(&sound))).is_ok());
        assert!(read_bytes(&around(2, &past(&[9, 2, 0, 0, 7, 0, 1]))).is_ok());
        assert!(read_bytes(&around(4, &[0, 1, 9, 8, 0, 0, 0, 0, 0, 0, 0, 9])).is_ok());
        for (at, value) in [(0, 101), (2, 0), (4, 100)] {
            let mut bad = sound;
            bad[at] = value;
            assert!(read_bytes(&around(1, &live(&bad))).is_err(), "{bad:?}");
        }
        for bad in [&sound[..5], &[9, 2, 1, 0, 7, 5, 0], &[9, 2, 1, 0, 7, 0x85], &[]] {
            assert!(read_bytes(&around(1, &live(bad))).is_err(), "{bad:?}");
        }
        assert!(
            read_bytes(&around(2, &past(&[9, 2, 0, 0, 7, 0, 93]))).is_err(),
            "an end beyond the revision"
        );
        assert!(read_bytes(&around(2, &live(&[9, 2, 0, 0, 7, 0, 1]))).is_err(), "no key of a history");
        assert!(read_bytes(&around(3, &[0, 1, 2, 1, b'k'])).is_err(), "no lease");
        assert!(read_bytes(&around(4, &[0, 1, 8, 7, 0, 0, 0, 0, 0, 0, 9])).is_err(), "no location");
        let two = |a: u8, b: u8| [&[0, 2, 8, 8, 1, a], sound.as_slice(), &[1, b], sound.as_slice()].concat();
        let of_two = |bytes: Vec<u8>| {
            let mut image = around(1, &bytes);
            let at = image.len() - 25;
            image[at] = 2;
            let end = blocks(&image)[1];
            let crc = checksum(ID, 1, &image[end..]);
            image[end + 8..end + BLOCK_HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
            image
        };
        assert_eq!(read_bytes(&of_two(two(b'a', b'b'))).unwrap().keys(), 2);
        assert!(read_bytes(&of_two(two(b'b', b'a'))).is_err(), "keys descend");
        assert!(read_bytes(&of_two(two(b'a', b'a'))).is_err(), "a key twice");
        let leaves = |a: &[u8], b: &[u8]| [a, b].concat();
        let (a, b) = (&live(&sound), &[&[0, 1, 8, 1, b'l'], sound.as_slice()].concat());
        assert!(read_bytes(&of_two(leaves(a, b))).is_ok());
        assert!(read_bytes(&of_two(leaves(b, a))).is_err(), "leaves descend");
        assert!(read_bytes(&of_two(leaves(a, a))).is_err(), "a leaf twice");
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(
            section in 0u8..7,
            payload in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..80),
        ) {
            if let Ok(state) = read_bytes(&around(section, &payload)) {
                prop_assert!(content(&read_bytes(&image(&state)).unwrap()) == content(&state));
            }
        }
    }
}
