//! What clients may cost: pings, floods, large replies, clients that do not read, many watchers.
//!
//! Needs `etcd` in `K0S_TEST_BIN_DIR` where it is the measure.

mod floods;
mod http2;
mod keys;
mod large_replies;
mod memory;
mod pings;
mod servers;
mod stalled;
mod watchers;
mod websockets;

/// The page that lists the bounds names where each of them is.
#[test]
fn bounds_on_the_page_are_in_the_source() {
    let page = include_str!("../../../docs/limits.md");
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = 0;
    for row in page.lines().filter(|line| line.starts_with('|')) {
        let mut file = String::new();
        for name in row.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                file = std::fs::read_to_string(source.join(name)).expect(name);
            } else if !file.is_empty()
                && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                && name.contains('_')
            {
                assert!(file.contains(&format!("const {name}:")), "{row}");
                found += 1;
            }
        }
    }
    assert!(found > 25, "{found}");
}
