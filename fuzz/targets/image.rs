//! Bytes as an image of an index, with lengths and checksums put right: it is read or refused with a reason; what was read
//! is written as the same image again. Nothing panics, and no file makes reading take much more memory than it has bytes.
//!
//! The checksums are made here from `docs/index-format.md`. Without them every change would be refused for them alone.

#![no_main]

use conformance::command::Command;
use kine_rs::mvcc::image::{ImageId, read, write};
use kine_rs::mvcc::{State, Version};
use libfuzzer_sys::{Corpus, fuzz_target};

const SEEDS: u64 = 20;
const ID: ImageId = ImageId([7; 16]);
const HEADER: usize = 64;
const BLOCK_HEADER: usize = 12;

fuzz_target!(init: fuzz::write(SEEDS, image), |data: &[u8]| -> Corpus {
    let Some(bytes) = mended(data) else { return Corpus::Reject };
    match read(ID, &mut bytes.as_slice()) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(state) => {
            let written = bytes_of(&state);
            let again = read(ID, &mut written.as_slice()).expect("what was written can be read");
            assert!(bytes_of(&again) == written);
            let keys = (0..state.keys()).filter(|at| state.nth(*at).is_some()).count();
            assert_eq!(keys as u64, state.keys());
        }
    }
    Corpus::Keep
});

/// The same image with everything right that says nothing about the index.
fn mended(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let (header, mut rest) = bytes.split_at_mut_checked(HEADER)?;
    header[..8].copy_from_slice(b"kineindx");
    header[8..12].copy_from_slice(&1_u32.to_be_bytes());
    header[16..32].copy_from_slice(&ID.0);
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_be_bytes());
    let mut number = 0_u64;
    while rest.len() >= BLOCK_HEADER {
        let told = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let content = told.min(rest.len() - BLOCK_HEADER);
        let (block, after) = rest.split_at_mut(BLOCK_HEADER + content);
        block[..4].copy_from_slice(&(content as u32).to_be_bytes());
        let place = number.to_be_bytes();
        let crc = crc32c::crc32c(&[&ID.0, place.as_slice(), &block[..8], &block[BLOCK_HEADER..]].concat());
        block[8..BLOCK_HEADER].copy_from_slice(&crc.to_be_bytes());
        (number, rest) = (number + 1, after);
    }
    Some(bytes)
}

fn bytes_of(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(state, ID, &mut bytes).expect("memory takes all");
    bytes
}

/// The index of a store that has run the program's puts and deletions, half of them compacted.
fn image(program: &[Command]) -> Vec<u8> {
    let mut state = State::default();
    for command in program {
        let (revision, location) = (state.revision + 1, state.next_location);
        match command {
            Command::Put(put) => {
                let old = state.get(&put.key);
                let version = Version {
                    mod_revision: revision,
                    create_revision: old.map_or(revision, |old| old.create_revision),
                    version: old.map_or(1, |old| old.version + 1),
                    lease: put.lease,
                    location,
                    value_len: put.value.len() as u32,
                };
                state.put(&put.key, &version);
            }
            Command::Delete(delete) => {
                state.delete(&delete.key, revision, location);
            }
            _ => continue,
        }
        (state.revision, state.next_location) = (revision, location + 1);
    }
    state.compact_revision = state.revision / 2;
    state.take_garbage(usize::MAX, state.compact_revision, 0);
    bytes_of(&state)
}
