//! The image of the index under a real process: killed at each of its steps, and on a disk that fails.

use crate::servers::{Dir, Server};
use crate::sqlite_file::{beside, fault_library, faulty};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;

const WITHIN: Duration = Duration::from_secs(60);
/// Rows after which an image is written, and operations of a transaction.
const ROWS: usize = 4096;
const TRANSACTION: usize = 128;

/// Puts keys and deletes every second one again; false when the server has gone.
fn fill(server: &Server, name: &str, keys: usize) -> bool {
    let keys: Vec<String> = (0..keys).map(|n| format!("{name}/{n:05}")).collect();
    let put = |key: &String| {
        let value = "value".into();
        Request::RequestPut(PutRequest { key: key.clone().into(), value, ..Default::default() })
    };
    let delete = |key: &String| {
        Request::RequestDeleteRange(DeleteRangeRequest { key: key.clone().into(), ..Default::default() })
    };
    let txn = |operations: &mut dyn Iterator<Item = Request>| {
        let success = operations.map(|request| RequestOp { request: Some(request) }).collect();
        TxnRequest { success, ..Default::default() }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let endpoint = Endpoint::from_shared(server.url()).expect("a URL");
    runtime.block_on(async {
        let Ok(channel) = endpoint.connect().await else { return false };
        let mut kv = KvClient::new(channel);
        for keys in keys.chunks(TRANSACTION) {
            let puts = txn(&mut keys.iter().map(put));
            let deletes = txn(&mut keys.iter().step_by(2).map(delete));
            if kv.txn(puts).await.is_err() || kv.txn(deletes).await.is_err() {
                return false;
            }
        }
        true
    })
}

fn wait_for_image(server: &mut Server, database: &Path) {
    let deadline = Instant::now() + WITHIN;
    while !beside(database, ".index").exists() && !server.has_ended() {
        assert!(Instant::now() < deadline, "no image: {}", server.log());
        std::thread::yield_now();
    }
}

#[test]
fn a_kill_at_any_step_of_an_image_leaves_a_store_that_starts() {
    const KILL: i32 = 0;
    let dir = Dir::new();
    let library = fault_library(&dir);
    let mut survived = false;
    let mut kills = 0;
    let mut images_read = 0;
    while !survived {
        let (database, fault) = (dir.join(&format!("{kills}.db")), dir.join("fault"));
        let mut server = faulty(&database, &library, &fault);
        server.ctl(&["put", "before", "v"]);
        std::fs::write(&fault, format!("index {KILL} {kills}")).expect("room");
        fill(&server, "key", ROWS * 2 / 3 + TRANSACTION);
        wait_for_image(&mut server, &database);
        survived = !server.has_ended();
        std::fs::remove_file(&fault).expect("ours");
        let log = server.log();
        if !survived {
            server.ended();
            server = Server::kine(&database);
            assert!(!beside(&database, ".index.new").exists(), "kill {kills}: {log}");
            assert_eq!(server.ctl(&["get", "before", "--print-value-only"]), "v\n");
            images_read += usize::from(server.log().contains("read the image of the index"));
        }
        // What is acknowledged now is there after the next start, which reads an image.
        assert!(fill(&server, "later", ROWS / 2));
        server.ctl(&["compact", &server.json(&["get", "x"])["header"]["revision"].to_string(), "--physical"]);
        let before = server.content(0);
        wait_for_image(&mut server, &database);
        server.kill();
        let server = Server::kine(&database);
        assert!(server.log().contains("read the image of the index"), "kill {kills}: {}", server.log());
        assert!(server.content(0) == before, "kill {kills}");
        server.stop();
        kills += 1;
    }
    // Writes, their syncs, the sync of the file and the renaming; when that is cut off, the image is used all the same.
    assert!(kills > 6 && images_read >= 1, "{kills} kills, {images_read} images read");
}

#[test]
fn an_image_that_can_not_be_written_is_done_without() {
    const EIO: i32 = 5;
    let dir = Dir::new();
    let library = fault_library(&dir);
    for spared in [0, 1, 4] {
        let (database, fault) = (dir.join(&format!("{spared}.db")), dir.join("fault"));
        let mut server = faulty(&database, &library, &fault);
        std::fs::write(&fault, format!("index {EIO} {spared}")).expect("room");
        assert!(fill(&server, "key", ROWS), "{}", server.log());
        let deadline = Instant::now() + WITHIN;
        while !server.log().contains("no image of the index") {
            assert!(Instant::now() < deadline, "nobody was told: {}", server.log());
            std::thread::yield_now();
        }
        assert!(!beside(&database, ".index").exists() && !beside(&database, ".index.new").exists());
        std::fs::remove_file(&fault).expect("ours");
        // The next one is written when it is due.
        assert!(fill(&server, "more", ROWS));
        wait_for_image(&mut server, &database);
        assert!(!server.has_ended());
        let before = server.content(0);
        server.kill();
        let server = Server::kine(&database);
        assert!(server.content(0) == before);
        assert!(server.log().contains("read the image of the index"), "{}", server.log());
        server.stop();
    }
}
