//! Configuration files as users write them, with what becomes of them.
//!
//! Each `tests/config/NAME.yaml` is read on a host whose address is 192.0.2.10; `NAME.expected` holds either `accepted`,
//! the warnings and every field that is not the default, or `refused` and the complaints. A first line `# storage: TYPE`
//! stands for `--storage=TYPE`. `UPDATE_EXPECTED=1` rewrites the expectations; read the difference before you commit it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use controller::config::{ClusterConfig, Host, Overrides, ShowImages, create, parse};
use proptest::prelude::*;
use serde_json::Value;

const DATA_DIR: &str = "/var/lib/k0s";

fn host() -> Host {
    let address = "192.0.2.10".parse().unwrap();
    Host { address, addresses: vec![address, "fe80::1".parse().unwrap()] }
}

fn overrides(text: &[u8]) -> Overrides<'static> {
    let first_line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let storage = first_line
        .strip_prefix(b"# storage: ")
        .map(|name| std::str::from_utf8(name).unwrap().parse().unwrap());
    Overrides { storage, data_dir: Path::new(DATA_DIR) }
}

/// Every field as `path: value`.
fn fields(config: &ClusterConfig) -> BTreeMap<String, String> {
    fn collect(path: String, value: &Value, fields: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    collect(path, value, fields);
                }
            }
            _ => {
                fields.insert(path, value.to_string());
            }
        }
    }
    let mut fields = BTreeMap::new();
    collect(String::new(), &serde_saphyr::from_str(&config.to_yaml(ShowImages::Yes)).unwrap(), &mut fields);
    fields
}

fn outcome(text: &[u8]) -> String {
    let loaded = match parse(text, &overrides(text), &host()) {
        Ok(loaded) => loaded,
        Err(error) => return format!("refused\n{error}\n"),
    };
    let mut outcome = "accepted\n".to_owned();
    for warning in &loaded.warnings {
        writeln!(outcome, "warning: {warning}").unwrap();
    }
    let (actual, default) = (fields(&loaded.config), fields(&ClusterConfig::default_on(&host())));
    for (path, value) in &actual {
        if default.get(path) != Some(value) {
            writeln!(outcome, "{path}: {value}").unwrap();
        }
    }
    for path in default.keys().filter(|path| !actual.contains_key(*path)) {
        writeln!(outcome, "{path} is gone").unwrap();
    }
    outcome
}

#[test]
fn files_are_accepted_or_refused_as_expected() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() > 20, "the corpus is missing: {files:?}");
    let mut wrong = String::new();
    for file in files {
        let actual = outcome(&std::fs::read(&file).unwrap());
        let expected_file = file.with_extension("expected");
        if update {
            std::fs::write(&expected_file, &actual).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_file).unwrap_or_default();
        if actual != expected {
            writeln!(wrong, "--- {}\nexpected {expected}\ngot {actual}", file.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What is written reads back as the same configuration, whatever it was.
#[test]
fn accepted_files_survive_a_round_trip() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut accepted = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read(&path).unwrap();
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml");
        let Ok(loaded) = parse(&text, &overrides(&text), &host()) else { continue };
        if !is_yaml {
            continue;
        }
        let written = loaded.config.to_yaml(ShowImages::Yes);
        let again = parse(written.as_bytes(), &overrides(b""), &host());
        let again = again.unwrap_or_else(|error| panic!("{}: {error}\n{written}", path.display()));
        assert_eq!(again.config, loaded.config, "{}", path.display());
        accepted += 1;
    }
    assert!(accepted > 8, "only {accepted}");
}

#[test]
fn what_create_prints_is_the_default() {
    for images in [ShowImages::No, ShowImages::Yes] {
        let text = create(&host(), images);
        let loaded = parse(text.as_bytes(), &overrides(b""), &host()).unwrap();
        assert_eq!(loaded.config, ClusterConfig::default_on(&host()), "{text}");
        assert_eq!(loaded.warnings, Vec::<String>::new());
    }
}

/// The layout upstream's `k0s config create` has.
#[test]
fn create_prints_upstreams_layout() {
    assert_eq!(create(&host(), ShowImages::No), include_str!("config/created.yaml"));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[a-z0-9:./-]{0,16}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,6}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// Puts `value` at the place reached after `countdown` others, depth first; whether there was one.
fn replace(node: &mut Value, countdown: &mut usize, value: &Value) -> bool {
    if *countdown == 0 {
        *node = value.clone();
        return true;
    }
    *countdown -= 1;
    node.as_object_mut().is_some_and(|map| map.values_mut().any(|node| replace(node, countdown, value)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Anything at any field is either refused, or means what it means after being written and read.
    #[test]
    fn any_value_at_any_field_is_refused_or_survives_a_round_trip(place in 0_usize..150, value in any_value()) {
        let text = create(&host(), ShowImages::Yes);
        let mut tree: Value = serde_saphyr::from_str(&text).unwrap();
        prop_assume!(replace(&mut tree, &mut { place }, &value));
        if let Ok(loaded) = parse(tree.to_string().as_bytes(), &overrides(b""), &host()) {
            let written = loaded.config.to_yaml(ShowImages::Yes);
            let again = parse(written.as_bytes(), &overrides(b""), &host());
            prop_assert_eq!(again.map(|again| again.config).map_err(|error| error.to_string()), Ok(loaded.config));
        }
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ a-z:\\[\\]{}&*!|>'\"%@#\n-]{0,200}") {
        for input in [&bytes[..], text.as_bytes()] {
            drop(parse(input, &overrides(b""), &host()));
        }
    }

    /// What a user gives as text arrives as that text, however it has to be quoted.
    #[test]
    fn text_survives_being_written(text in any::<String>(), key in ".{1,12}") {
        let mut config = ClusterConfig::default_on(&host());
        config.spec.api.extra_args.insert(key, text.clone());
        config.spec.api.raw_args.push(text);
        let written = config.to_yaml(ShowImages::No);
        let again = parse(written.as_bytes(), &overrides(b""), &host());
        prop_assert_eq!(again.map(|again| again.config).map_err(|error| error.to_string()), Ok(config), "{}", written);
    }
}
