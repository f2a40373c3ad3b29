//! The writer and the reader against each other, and the reader against damage.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

type Content = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

fn plan(content: &Content) -> Plan {
    let mut planner = Planner::new();
    for (name, records) in content {
        planner.bucket(name).expect("names ascend");
        for (key, value) in records {
            planner.record(key.len(), value.len()).expect("allowed lengths");
        }
    }
    planner.finish().expect("nothing is left to refuse")
}

fn write(content: &Content) -> Vec<u8> {
    let plan = plan(content);
    let mut writer = Writer::new(Vec::new(), plan).expect("memory");
    for (name, records) in content {
        writer.bucket(name).expect("names ascend");
        for (key, value) in records {
            writer.record(key, value).expect("keys ascend");
        }
    }
    let file = writer.finish().expect("as planned");
    assert_eq!(file.len() as u64, plan.file_len());
    file
}

fn read(file: &[u8]) -> Result<Content, ReadError> {
    let reader = Reader::open(file)?;
    let mut content = Content::new();
    for bucket in reader.buckets()? {
        let (mut found, mut records) = (BTreeMap::new(), reader.records(&bucket));
        while let Some(record) = records.next()? {
            assert!(found.insert(record.key.to_vec(), record.value.to_vec()).is_none());
        }
        content.insert(bucket.name, found);
    }
    Ok(content)
}

/// Three levels in one bucket, runs of pages, an empty bucket and an empty value.
fn sample() -> Content {
    let many = (0..30_000u64)
        .map(|n| ([&n.to_be_bytes()[..], b"_12345678"].concat(), vec![n as u8; n as usize % 40]));
    let long = (1..20u8).map(|n| (vec![n; usize::from(n) * 300], vec![n; usize::from(n) * 1000]));
    Content::from([
        (b"empty".to_vec(), BTreeMap::new()),
        (b"long".to_vec(), long.collect()),
        (b"many".to_vec(), many.collect()),
        (b"value".to_vec(), BTreeMap::from([(b"k".to_vec(), Vec::new())])),
    ])
}

/// What the error says with all its sources.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        write!(text, ": {error}").expect("a string");
        source = error.source();
    }
    text
}

#[test]
fn what_was_written_is_read() {
    let content = sample();
    let file = write(&content);
    assert_eq!(file.len() % PAGE_SIZE, 0);
    assert_eq!(read(&file).expect("our file"), content);
    assert_eq!(read(&write(&Content::new())).expect("our file"), Content::new());
}

#[test]
fn bytes_after_the_data_are_ignored() {
    let mut file = write(&sample());
    let len = file.len();
    file.extend_from_slice(&[0xa5; DIGEST_LEN]);
    assert_eq!(Reader::open(&file[..]).expect("our file").data_len(), len as u64);
    assert_eq!(read(&file).expect("our file"), sample());
}

#[test]
fn one_damaged_meta_page_is_survived_and_two_are_not() {
    let good = write(&sample());
    for page in 0..2 {
        let mut file = good.clone();
        file[page * PAGE_SIZE + 40] ^= 1;
        assert_eq!(read(&file).expect("the other meta is valid"), sample());
    }
    let mut file = good;
    file[20] ^= 1;
    file[PAGE_SIZE + 76] ^= 1;
    assert!(matches!(
        read(&file),
        Err(ReadError::NoMeta { meta0: MetaFault::Version(3), meta1: MetaFault::Checksum { .. } })
    ));
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let good = write(&sample());
    for len in (0..good.len()).step_by(509) {
        assert!(matches!(read(&good[..len]), Err(ReadError::CutOff { .. } | ReadError::NoMeta { .. })));
    }
}

#[test]
fn a_page_that_is_its_own_child_is_an_error() {
    let mut file = write(&sample());
    let root = Reader::open(&file[..]).expect("our file").meta_root();
    // The root bucket's leaf becomes a branch whose only child is itself.
    let at = root as usize * PAGE_SIZE;
    file[at + 8] = 1;
    file[at + 10..at + 12].copy_from_slice(&1u16.to_le_bytes());
    file[at + 16..at + 20].copy_from_slice(&16u32.to_le_bytes());
    file[at + 20..at + 24].copy_from_slice(&1u32.to_le_bytes());
    file[at + 24..at + 32].copy_from_slice(&root.to_le_bytes());
    let error = read(&file).expect_err("a loop");
    assert!(matches!(error, ReadError::Corrupt(Corruption { fault: Fault::TooDeep, .. })), "{error:?}");
    assert_eq!(
        text(&error),
        format!(
            "the bbolt file is damaged: page {root}, offset {}: the tree is deeper than 32 pages",
            at + 16
        )
    );
}

#[test]
fn a_page_with_two_parents_is_an_error() {
    let mut file = write(&sample());
    let content = sample();
    let depth_one = content.keys().position(|name| name == b"many").expect("in the sample");
    let reader = Reader::open(&file[..]).expect("our file");
    let root = reader.buckets().expect("our file")[depth_one].root_page() as usize * PAGE_SIZE;
    let first_child = file[root + 24..root + 32].to_vec();
    file[root + 40..root + 48].copy_from_slice(&first_child);
    let error = read(&file).expect_err("the second element leads back");
    assert!(matches!(error, ReadError::Corrupt(Corruption { fault: Fault::KeyOrder, .. })), "{error:?}");
}

/// A leaf page without padding.
fn leaf(id: u64, items: &[(u32, &[u8], &[u8])]) -> Vec<u8> {
    let header = PageHeader { id, flags: LEAF_FLAG, count: items.len() as u16, overflow: 0 };
    let (mut page, mut data) = (header.encode().to_vec(), Vec::new());
    for (index, (flags, key, value)) in items.iter().enumerate() {
        let pos = (items.len() - index) * ELEMENT_LEN + data.len();
        for field in [*flags, pos as u32, key.len() as u32, value.len() as u32] {
            page.extend_from_slice(&field.to_le_bytes());
        }
        data.extend_from_slice(key);
        data.extend_from_slice(value);
    }
    page.extend_from_slice(&data);
    page
}

/// Two metas and the root bucket's leaf on page 2.
fn file_of(root: &[u8], page_size: u32) -> Vec<u8> {
    let mut file = vec![0; page_size as usize * 3];
    for id in 0..2 {
        let meta = meta::MetaPage { page_size, root: 2, freelist: u64::MAX, high_water: 3, txid: 9 - id };
        let at = (id * u64::from(page_size)) as usize;
        file[at..at + meta::META_LEN].copy_from_slice(&meta.encode(id));
    }
    let at = page_size as usize * 2;
    file[at..at + root.len()].copy_from_slice(root);
    file
}

fn inline(page: &[u8]) -> Vec<u8> {
    [&[0; BUCKET_HEADER_LEN][..], page].concat()
}

#[test]
fn inline_buckets_and_other_page_sizes_are_read() {
    let full = inline(&leaf(0, &[(0, b"a", b"1"), (0, b"b", b"")]));
    let root = leaf(2, &[(1, b"empty", &inline(&leaf(0, &[]))), (1, b"full", &full)]);
    let records = BTreeMap::from([(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), Vec::new())]);
    let content = Content::from([(b"empty".to_vec(), BTreeMap::new()), (b"full".to_vec(), records)]);
    for page_size in [1024, 4096, 65_536] {
        let mut file = file_of(&root, page_size);
        let reader = Reader::open(&file[..]).expect("a valid file");
        assert_eq!((reader.txid(), reader.data_len()), (9, u64::from(page_size) * 3));
        assert_eq!(read(&file).expect("a valid file"), content);
        // Without page 0, page 1 is found by trying.
        file[16] ^= 1;
        assert_eq!(Reader::open(&file[..]).expect("meta 1 is valid").txid(), 8);
        assert_eq!(read(&file).expect("meta 1 is valid"), content);
    }
}

#[test]
fn a_bucket_that_contradicts_the_format_is_named() {
    let nested = inline(&leaf(0, &[(1, b"nested", &inline(&leaf(0, &[])))]));
    let itself = leaf(2, &[(1, b"b", &2u64.to_le_bytes().repeat(2))]);
    let elsewhere = leaf(2, &[(1, b"b", &3u64.to_le_bytes().repeat(2))]);
    let mut overlapping = leaf(2, &[(1, b"a", &inline(&leaf(0, &[]))), (1, b"b", b"")]);
    // The second element's data are those of the first, too.
    let pos = u32_at(&overlapping, 36) - 33;
    overlapping[36..40].copy_from_slice(&pos.to_le_bytes());
    for (root, fault) in [
        (leaf(2, &[(0, b"record", b"")]), Fault::NotABucket),
        (leaf(2, &[(2, b"b", b"")]), Fault::ElementFlags { flags: 2 }),
        (leaf(2, &[(1, b"b", b"short")]), Fault::BucketHeader { len: 5 }),
        (leaf(2, &[(1, b"b", &inline(b"short"))]), Fault::TooShort { len: 5 }),
        (leaf(2, &[(1, b"b", &inline(&leaf(7, &[])))]), Fault::PageId { found: 7 }),
        (leaf(2, &[(1, b"b", &nested)]), Fault::NestedBucket),
        (leaf(2, &[(1, b"", &nested)]), Fault::KeyLength { len: 0 }),
        (leaf(2, &[(1, b"b", &nested), (1, b"a", &nested)]), Fault::KeyOrder),
        (itself, Fault::NestedBucket),
        (elsewhere, Fault::PageOutside { page: 3, high_water: 3 }),
        (overlapping, Fault::DataOutside { start: 48, end: 49, min: 81, max: 4096 }),
        (leaf(5, &[]), Fault::PageId { found: 5 }),
    ] {
        match read(&file_of(&root, 4096)) {
            Err(ReadError::Corrupt(found)) => assert_eq!((found.page, found.fault), (2, fault)),
            other => panic!("{other:?}, expected {fault:?}"),
        }
    }
    for (at, bytes, named_at, fault) in [
        (8, &[4, 0][..], 8, Fault::PageKind { flags: 4 }),
        (8, &[1, 0], 10, Fault::Empty),
        (10, &[0xff, 0xff], 10, Fault::Count { count: 0xffff, len: 4096 }),
        (12, &[0xff; 4], 12, Fault::RunOutside { pages: 1 << 32, high_water: 3 }),
    ] {
        let mut root = leaf(2, &[]);
        root[at..at + bytes.len()].copy_from_slice(bytes);
        match read(&file_of(&root, 4096)) {
            Err(ReadError::Corrupt(found)) => {
                assert_eq!(found, Corruption { page: 2, offset: 8192 + named_at, fault }, "{found}");
            }
            other => panic!("{other:?}, expected {fault:?}"),
        }
    }
}

#[test]
fn no_flipped_bit_panics_or_hangs_the_reader() {
    let small: Content = sample()
        .into_iter()
        .map(|(name, records)| (name, records.into_iter().step_by(7).take(150).collect()))
        .collect();
    let file = write(&small);
    let mut bad = file.clone();
    for page in 0..file.len() / PAGE_SIZE {
        // Headers and the first elements hold what leads elsewhere; a few bytes stand for the rest.
        let bytes = (0..64).chain((64..PAGE_SIZE).step_by(997));
        for bit in bytes.flat_map(|byte| (0..8).step_by(3).map(move |bit| (page * PAGE_SIZE + byte, bit))) {
            bad[bit.0] ^= 1 << bit.1;
            if let Ok(content) = read(&bad) {
                assert!(content.len() <= small.len());
            }
            bad[bit.0] = file[bit.0];
        }
    }
}

#[test]
fn records_out_of_order_or_without_bucket_are_refused() {
    let mut planner = Planner::new();
    assert!(matches!(planner.record(1, 1), Err(WriteError::NoBucket)));
    planner.bucket(b"b").expect("the first");
    assert!(matches!(planner.bucket(b"b"), Err(WriteError::BucketOrder { .. })));
    assert!(matches!(planner.bucket(b""), Err(WriteError::KeyLength { len: 0, .. })));
    assert!(matches!(planner.record(0, 1), Err(WriteError::KeyLength { len: 0, .. })));
    assert!(matches!(planner.record(KEY_BYTES_MAX + 1, 1), Err(WriteError::KeyLength { .. })));
    assert!(matches!(planner.record(1, VALUE_BYTES_MAX + 1), Err(WriteError::ValueTooLong { .. })));

    let plan = plan(&sample());
    let mut writer = Writer::new(Vec::new(), plan).expect("memory");
    assert!(matches!(writer.record(b"k", b""), Err(WriteError::NoBucket)));
    let mut writer = Writer::new(Vec::new(), plan).expect("memory");
    writer.bucket(b"b").expect("the first");
    writer.record(b"k", b"v").expect("the first");
    assert!(matches!(writer.record(b"k", b"v"), Err(WriteError::KeyOrder { .. })));
}

#[test]
fn records_that_were_not_planned_are_refused() {
    let small = Content::from([(b"b".to_vec(), BTreeMap::from([(b"k".to_vec(), b"v".to_vec())]))]);
    let mut writer = Writer::new(Vec::new(), plan(&small)).expect("memory");
    writer.bucket(b"b").expect("the first");
    writer.record(b"k", &[0; 10 * PAGE_SIZE]).expect("its page is not complete yet");
    assert!(matches!(writer.finish(), Err(WriteError::NotAsPlanned { .. })));

    let mut writer = Writer::new(Vec::new(), plan(&sample())).expect("memory");
    writer.bucket(b"b").expect("the first");
    assert!(matches!(writer.finish(), Err(WriteError::NotAsPlanned { .. })));
}

fn arbitrary_content() -> impl Strategy<Value = Content> {
    // Bytes do not matter, lengths and order do; and single random bytes are slow to make.
    let run = |len: std::ops::Range<usize>| {
        (any::<[u8; 4]>(), len).prop_map(|(head, len)| {
            head.iter().chain(std::iter::repeat(&head[0])).take(len).copied().collect::<Vec<u8>>()
        })
    };
    let key = prop_oneof![9 => run(1..24), 1 => run(1..9000)];
    let value = prop_oneof![9 => run(0..60), 1 => run(0..20_000)];
    let records = prop::collection::btree_map(key, value, 0..200);
    prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..12), records, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_content_survives_a_round_trip(content in arbitrary_content()) {
        prop_assert_eq!(read(&write(&content)).expect("our file"), content);
    }

    #[test]
    fn any_bytes_written_over_a_file_are_read_or_refused(
        content in arbitrary_content(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let mut file = write(&content);
        for (at, byte) in damage {
            // Half of it at the front of pages, where the structure is.
            let at = at.index(file.len());
            let at = if byte % 2 == 0 { at } else { at / PAGE_SIZE * PAGE_SIZE + at % 48 };
            file[at] = byte;
        }
        match read(&file) {
            Ok(_) | Err(ReadError::NoMeta { .. } | ReadError::CutOff { .. } | ReadError::Corrupt(_)) => {}
            Err(error) => prop_assert!(false, "{error:?}"),
        }
    }
}
