//! Clients in other languages: programs in `conformance/clients`, on ours and on a real etcd, which holds them to the truth.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use conformance::server::{Flavor, Options, Server, upstream_path};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Far above the half minute that the slowest of them takes.
const DEADLINE: Duration = Duration::from_secs(300);

/// Runs a program to its end. A line "kill" of it is answered when the server was killed and runs again.
async fn run(command: &mut Command, server: &mut Server) -> String {
    let mut program = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut errors = program.stderr.take().unwrap();
    let printed = follow(program.stdout.take().unwrap(), program.stdin.take().unwrap(), server);
    let mut complaints = String::new();
    let all = async { tokio::join!(printed, errors.read_to_string(&mut complaints)) };
    let (printed, _) = timeout(DEADLINE, all).await.expect("the program ends");
    let status = program.wait().await.unwrap();
    assert!(status.success(), "{status}\n{printed}\n{complaints}");
    printed + &complaints
}

async fn follow(stdout: ChildStdout, mut stdin: ChildStdin, server: &mut Server) -> String {
    let mut lines = BufReader::new(stdout).lines();
    let mut printed = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line == "kill" {
            server.kill().unwrap();
            server.resume().await.unwrap();
            stdin.write_all(b"killed\n").await.unwrap();
        }
        printed.push_str(&line);
        printed.push('\n');
    }
    printed
}

/// Go's client/v3 and its packages. Tokens live for a second, so that one of them expires.
async fn go(flavor: Flavor) {
    let etcd_flags = vec!["--auth-token-ttl=1".to_owned()];
    let mut server = Server::start(flavor, Options { etcd_flags, ..Options::default() }).await.unwrap();
    let mut program = Command::new(upstream_path("go-client").unwrap());
    let printed = run(program.args(["--endpoint", &server.address()]), &mut server).await;
    assert!(printed.contains("\nPASS\n") && !printed.contains("no tests to run"), "{printed}");
}

#[tokio::test]
async fn the_go_client_finds_etcd_as_expected() {
    go(Flavor::Etcd).await;
}

#[tokio::test]
async fn the_go_client_finds_ours_as_expected() {
    go(Flavor::KineAsEtcd).await;
}

/// Python's etcd3gw over the JSON gateway and etcd3 over gRPC.
async fn python(flavor: Flavor) {
    let mut server = Server::start(flavor, Options::default()).await.unwrap();
    let address = server.address();
    let (host, port) = address.split_once(':').unwrap();
    let mut program = Command::new(upstream_path("python/bin/python").unwrap());
    program
        .args(["-B", "-m", "unittest", "discover", "--start-directory"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python"))
        .envs([("HOST", host), ("PORT", port)]);
    let printed = run(&mut program, &mut server).await;
    // Its status says that they passed. Around the last lines threads of etcd3, which closing it leaves behind, may complain.
    assert!(printed.contains("Ran ") && !printed.contains("Ran 0 tests"), "{printed}");
}

#[tokio::test]
async fn python_clients_find_etcd_as_expected() {
    python(Flavor::Etcd).await;
}

#[tokio::test]
async fn python_clients_find_ours_as_expected() {
    python(Flavor::KineAsEtcd).await;
}
