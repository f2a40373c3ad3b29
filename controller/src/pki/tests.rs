//! The PKI directory as a whole: first start, later starts, interrupted starts, a user's own files.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn request() -> Request {
    Request {
        server_names: ["localhost", "127.0.0.1"].map(Name::parse).into(),
        authority_lifetime: 87_600 * HOUR,
        leaf_lifetime: 8_760 * HOUR,
        owners: Owners::default(),
        local_api_url: "https://localhost:6443".into(),
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().mode() & 0o777;
            format!("{mode:o} {}", entry.file_name().to_str().unwrap())
        })
        .collect();
    names.sort();
    names
}

/// What a start leaves. One start for all the tests that begin with it: RSA keys take their time.
fn complete(dir: &Path) {
    static MADE: LazyLock<Vec<(OsString, Vec<u8>)>> = LazyLock::new(|| {
        let made = tempfile::tempdir().unwrap();
        start(made.path());
        let files = fs::read_dir(made.path()).unwrap().map(Result::unwrap);
        files.map(|file| (file.file_name(), fs::read(file.path()).unwrap())).collect()
    });
    for (name, content) in MADE.iter() {
        fs::write(dir.join(name), content).unwrap();
    }
}

fn start(dir: &Path) {
    reconcile(dir, &request(), now()).unwrap();
}

#[test]
fn first_start_makes_the_files_k0s_makes_and_second_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let changes = reconcile(dir.path(), &request(), now()).unwrap();
    assert_eq!(changes.len(), AUTHORITIES.len() + LEAVES.len() + 1);
    let expected = "\
        600 admin.conf|600 ccm.conf|600 scheduler.conf|\
        640 admin.key|640 apiserver-kubelet-client.key|640 ca.key|640 ccm.key|640 front-proxy-ca.key|\
        640 front-proxy-client.key|640 sa.key|640 scheduler.key|640 server.key|\
        644 admin.crt|644 apiserver-kubelet-client.crt|644 ca.crt|644 ccm.crt|644 front-proxy-ca.crt|\
        644 front-proxy-client.crt|644 sa.pub|644 scheduler.crt|644 server.crt";
    assert_eq!(files(dir.path()).join("|"), expected);
    assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, DIRECTORY_MODE);

    let before = fs::metadata(dir.path().join("server.crt")).unwrap().ino();
    assert_eq!(reconcile(dir.path(), &request(), now() + HOUR).unwrap(), []);
    assert_eq!(fs::metadata(dir.path().join("server.crt")).unwrap().ino(), before);
}

#[test]
fn changed_names_renew_the_server_certificate_only() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let mut changed = request();
    changed.server_names.insert(Name::parse("10.0.0.1"));
    assert_eq!(
        reconcile(dir.path(), &changed, now()).unwrap(),
        [Change::LeafIssued { name: "server", because: Defect::OtherNames }]
    );
    assert_eq!(reconcile(dir.path(), &changed, now()).unwrap(), []);
}

#[test]
fn start_after_an_interrupted_start_completes_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let admin = fs::read(dir.path().join("admin.crt")).unwrap();
    // What a crash between a key and its certificate leaves behind, for a CA and for a leaf.
    for name in ["ca.crt", "server.crt", "sa.pub", "admin.conf"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert_eq!(
        reconcile(dir.path(), &request(), now() + HOUR).unwrap(),
        [
            Change::AuthorityCreated { name: "ca" },
            Change::LeafIssued { name: "server", because: Defect::Missing }
        ]
    );
    assert_eq!(fs::read(dir.path().join("admin.crt")).unwrap(), admin);
    assert_eq!(reconcile(dir.path(), &request(), now() + HOUR).unwrap(), []);
}

#[test]
fn a_users_ca_is_kept_and_everything_is_issued_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let own =
        Authority::create("Our Company", KeyPair::generate().unwrap().serialize_pem(), 9_000 * HOUR, now())
            .unwrap();
    fs::write(dir.path().join("ca.crt"), &own.pem.certificate).unwrap();
    fs::write(dir.path().join("ca.key"), &own.pem.key).unwrap();
    start(dir.path());
    assert_eq!(fs::read_to_string(dir.path().join("ca.crt")).unwrap(), own.pem.certificate);
    let server = read_pair(dir.path(), "server").unwrap().unwrap();
    assert_eq!(own.defect(&server, &LEAVES[2].wish(&request()), now()), None);
}

#[test]
fn a_ca_without_its_key_or_with_anothers_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let own =
        Authority::create("Our Company", KeyPair::generate().unwrap().serialize_pem(), 9_000 * HOUR, now())
            .unwrap();
    fs::write(dir.path().join("ca.crt"), &own.pem.certificate).unwrap();
    let error = reconcile(dir.path(), &request(), now()).unwrap_err();
    assert!(matches!(error, PkiError::AuthorityWithoutKey { .. }), "{error}");
    fs::write(dir.path().join("ca.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = reconcile(dir.path(), &request(), now()).unwrap_err();
    assert!(error.to_string().ends_with("ca.crt cannot be used"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn damaged_leaves_are_issued_again_and_a_damaged_ca_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    fs::write(dir.path().join("server.crt"), b"\xff\xfe\x00").unwrap();
    fs::write(dir.path().join("ccm.key"), "").unwrap();
    fs::write(dir.path().join("admin.conf"), b"apiVersion: v1\nclus\xff").unwrap();
    assert_eq!(
        reconcile(dir.path(), &request(), now()).unwrap(),
        ["server", "ccm"].map(|name| Change::LeafIssued { name, because: Defect::Unreadable })
    );
    assert!(fs::read_to_string(dir.path().join("admin.conf")).unwrap().contains("client-key-data"));

    let authority = fs::read(dir.path().join("ca.crt")).unwrap();
    for (file, content) in [("ca.crt", &b"\xff\xfe"[..]), ("ca.key", b"")] {
        let intact = fs::read(dir.path().join(file)).unwrap();
        fs::write(dir.path().join(file), content).unwrap();
        let error = reconcile(dir.path(), &request(), now()).unwrap_err();
        assert!(error.to_string().ends_with("ca.crt cannot be used"), "{error}");
        assert_eq!(fs::read(dir.path().join(file)).unwrap(), content);
        fs::write(dir.path().join(file), intact).unwrap();
    }
    assert_eq!(reconcile(dir.path(), &request(), now()).unwrap(), []);
    assert_eq!(fs::read(dir.path().join("ca.crt")).unwrap(), authority);
}

#[test]
fn older_public_keys_of_service_accounts_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let path = dir.path().join("sa.pub");
    let ours = fs::read_to_string(&path).unwrap();
    let both = pem_block("PUBLIC KEY", b"an older key") + &ours;
    fs::write(&path, &both).unwrap();
    start(dir.path());
    assert_eq!(fs::read_to_string(&path).unwrap(), both);
    fs::write(&path, pem_block("PUBLIC KEY", b"an older key")).unwrap();
    start(dir.path());
    assert_eq!(fs::read_to_string(&path).unwrap(), ours);
}

#[test]
fn client_certificates_cannot_replace_k0s_own() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ca", "admin", "sa", "", "../x", "a/b", ".hidden"] {
        let error = issue_client(dir.path(), name, None, HOUR, now()).unwrap_err();
        assert!(matches!(error, PkiError::UserName { .. }), "{name}: {error}");
    }
}
