//! Downloads from a real HTTP server on loopback, through the real curl.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::versions::Versions;

/// Serves `path -> body`, 404 for the rest, until the test process ends.
fn serve(files: BTreeMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &files).unwrap();
        }
    });
    url
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    let lines = BufReader::new(stream.try_clone()?).lines();
    let head: Vec<String> = lines.map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    let path = head[0].split(' ').nth(1).unwrap().trim_start_matches('/');
    let (status, body) = match files.get(path) {
        Some(body) => ("200 OK", &body[..]),
        None => ("404 Not Found", &b"no such file"[..]),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(body)
}

fn kubernetes() -> Versions {
    Versions::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream")).unwrap()
}

/// The release as the project publishes it, with made-up content.
fn release(group: &Group) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in group.packages.keys() {
        let path = format!("v{}/bin/linux/{}/{name}", group.version, go_arch());
        let body = format!("#!/bin/sh\necho {name}\n").into_bytes();
        files.insert(format!("{path}.sha256"), hex::encode(Sha256::digest(&body)).into_bytes());
        files.insert(path, body);
    }
    files
}

#[test]
fn a_release_with_good_checksums_is_installed_executable() {
    let (dir, versions) = (tempfile::tempdir().unwrap(), kubernetes());
    let group = versions.group("kubernetes").unwrap();
    let cache = Cache::at(dir.path()).unwrap();
    let url = serve(release(group));

    let installed = install(&cache, group, Some(&url)).unwrap();
    for name in group.packages.keys() {
        let output = Command::new(installed.join(name)).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), name);
    }
    assert_eq!(fs::read_dir(&installed).unwrap().count(), group.packages.len());
    assert_eq!(install(&cache, group, Some(&url)).unwrap(), installed);
}

#[test]
fn a_bad_checksum_installs_nothing_and_names_the_url() {
    let (dir, versions) = (tempfile::tempdir().unwrap(), kubernetes());
    let group = versions.group("kubernetes").unwrap();
    let cache = Cache::at(dir.path()).unwrap();
    let mut files = release(group);
    let (path, body) = files.iter_mut().rfind(|(path, _)| path.ends_with("/kubelet")).unwrap();
    body.extend(b"# one line more\n");
    let path = path.clone();

    let message = install(&cache, group, Some(&serve(files))).unwrap_err().to_string();
    assert!(message.contains(&path) && message.contains("nothing was installed"), "{message}");
    let left: Vec<_> =
        fs::read_dir(dir.path().join("upstream")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.extension().is_some_and(|end| end == "lock")), "{left:?}");
}

#[test]
fn a_pinned_digest_beats_the_published_one() {
    let (dir, mut files) = (tempfile::tempdir().unwrap(), BTreeMap::new());
    let body = b"evil".to_vec();
    files.insert("kubectl".to_owned(), body.clone());
    files.insert("kubectl.sha256".to_owned(), hex::encode(Sha256::digest(&body)).into_bytes());
    let group: Group = toml::from_str(&format!(
        "module = 'm'\nversion = '1'\ncgo = false\ntags = []\nldflags = []\npackages = {{ kubectl = 'p' }}\n\
         [download]\nbase_url = 'http://unused.invalid'\npath = '{{name}}'\nsha256 = {{ '{}/kubectl' = '{}' }}\n",
        go_arch(),
        hex::encode(Sha256::digest(b"good")),
    ))
    .unwrap();

    let refused = install(&Cache::at(dir.path()).unwrap(), &group, Some(&serve(files))).unwrap_err();
    assert!(refused.to_string().contains(&hex::encode(Sha256::digest(b"good"))), "{refused}");
}

#[test]
fn a_missing_file_or_digest_is_an_error() {
    let (dir, versions) = (tempfile::tempdir().unwrap(), kubernetes());
    let group = versions.group("kubernetes").unwrap();
    let cache = Cache::at(dir.path()).unwrap();
    let missing = install(&cache, group, Some(&serve(BTreeMap::new()))).unwrap_err();
    assert!(missing.to_string().contains("404"), "{missing}");

    let mut files = release(group);
    for (path, body) in &mut files {
        if path.ends_with(".sha256") {
            *body = b"<html>welcome to the hotel</html>".to_vec();
        }
    }
    let no_digest = install(&cache, group, Some(&serve(files))).unwrap_err();
    assert!(no_digest.to_string().contains("not a SHA-256 digest"), "{no_digest}");
}
