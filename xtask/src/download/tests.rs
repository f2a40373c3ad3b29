//! Downloads from a real HTTP server on loopback, through the real curl.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::versions::Versions;

/// What a server does beside answering `path -> body` and 404 for the rest.
#[derive(Default)]
struct Server {
    files: BTreeMap<String, Vec<u8>>,
    /// Path -> where it says the file is.
    moved: BTreeMap<String, String>,
    /// Whether it answers `Range: bytes=N-`.
    knows_ranges: bool,
    /// Bytes after which it breaks the connection, for one body after the other; digests are not counted.
    breaks_after: Arc<Mutex<VecDeque<usize>>>,
    /// Where it notes how many bytes of which path it was asked to skip.
    skipped: Arc<Mutex<Vec<(String, usize)>>>,
}

impl Server {
    /// Until the test process ends.
    fn start(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that has seen enough may hang up.
                self.answer(stream.unwrap()).ok();
            }
        });
        url
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let lines = BufReader::new(stream.try_clone()?).lines();
        let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let path = head[0].split(' ').nth(1).unwrap().trim_start_matches('/');
        if let Some(elsewhere) = self.moved.get(path) {
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        let Some(body) = self.files.get(path) else {
            return write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        };
        let range = head.iter().find_map(|line| line.strip_prefix("Range: bytes=")?.strip_suffix('-'));
        let skip = range.filter(|_| self.knows_ranges).map_or(0, |from| from.parse().unwrap());
        if skip > 0 {
            self.skipped.lock().unwrap().push((path.to_owned(), skip));
        }
        if skip > 0 && skip >= body.len() {
            return write!(
                stream,
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        let rest = &body[skip..];
        if skip > 0 {
            let (last, total) = (body.len() - 1, body.len());
            write!(stream, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {skip}-{last}/{total}\r\n")?;
        } else {
            write!(stream, "HTTP/1.1 200 OK\r\n")?;
        }
        write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", rest.len())?;
        let is_digest = path.ends_with(".sha256");
        let breaks = (!is_digest).then(|| self.breaks_after.lock().unwrap().pop_front()).flatten();
        stream.write_all(&rest[..rest.len().min(breaks.unwrap_or(rest.len()))])
    }
}

fn serve(files: BTreeMap<String, Vec<u8>>) -> String {
    Server { files, ..Server::default() }.start()
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

/// One binary of 64 bytes.
fn small_release() -> (Group, BTreeMap<String, Vec<u8>>) {
    let body = [b"#!/bin/sh\necho kubectl\n".to_vec(), vec![b'#'; 41]].concat();
    let digest = hex::encode(Sha256::digest(&body));
    let group = toml::from_str(
        "module = 'm'\nversion = '1'\ncgo = false\ntags = []\nldflags = []\npackages = { kubectl = 'p' }\n\
         [download]\nbase_url = 'http://unused.invalid'\npath = '{name}'\nsha256 = {}\n",
    )
    .unwrap();
    (
        group,
        BTreeMap::from([("kubectl".to_owned(), body), ("kubectl.sha256".to_owned(), digest.into_bytes())]),
    )
}

#[test]
fn a_redirection_is_followed() {
    let (dir, (group, files)) = (tempfile::tempdir().unwrap(), small_release());
    let elsewhere = serve(files);
    let moved = ["kubectl", "kubectl.sha256"].map(|file| (file.to_owned(), format!("{elsewhere}/{file}")));
    let url = Server { moved: moved.into(), ..Server::default() }.start();
    assert_installed(&install(&Cache::at(dir.path()).unwrap(), &group, Some(&url)).unwrap());
}

fn assert_installed(installed: &Path) {
    assert_eq!(Command::new(installed.join("kubectl")).output().unwrap().stdout, b"kubectl\n");
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke() {
    let (dir, (group, files)) = (tempfile::tempdir().unwrap(), small_release());
    let server = Server { files, knows_ranges: true, ..Server::default() };
    server.breaks_after.lock().unwrap().extend([20, 20, 20]);
    let skipped = Arc::clone(&server.skipped);
    let installed = install(&Cache::at(dir.path()).unwrap(), &group, Some(&server.start())).unwrap();
    assert_installed(&installed);
    assert_eq!(*skipped.lock().unwrap(), [20, 40, 60].map(|skip| ("kubectl".to_owned(), skip)));
    assert_eq!(fs::read_dir(dir.path().join("downloads")).unwrap().count(), 0);
}

#[test]
fn what_an_interrupted_call_has_left_is_completed_or_replaced() {
    type Spoil = fn(&mut Vec<u8>);
    let untouched: Spoil = |_| {};
    let of_another_file: Spoil = |part| part.fill(b'x');
    let too_long: Spoil = |part| part.resize(1000, b'x');
    for (spoil, knows_ranges, asked_to_skip) in [
        (untouched, true, Some(20)),
        (of_another_file, true, Some(20)),
        (too_long, true, Some(1000)),
        (untouched, false, None),
    ] {
        let (dir, (group, files)) = (tempfile::tempdir().unwrap(), small_release());
        let cache = Cache::at(dir.path()).unwrap();
        let server = Server { files, knows_ranges, ..Server::default() };
        // Once after 20 bytes, and then there is nobody.
        server.breaks_after.lock().unwrap().extend([20, 0]);
        let (skipped, breaks_after) = (Arc::clone(&server.skipped), Arc::clone(&server.breaks_after));
        let url = server.start();
        install(&cache, &group, Some(&url)).unwrap_err();
        breaks_after.lock().unwrap().clear();
        skipped.lock().unwrap().clear();

        let place = fs::read_dir(dir.path().join("downloads")).unwrap().next().unwrap().unwrap().path();
        let mut part = fs::read(place.join("kubectl")).unwrap();
        assert_eq!(part.len(), 20);
        spoil(&mut part);
        fs::write(place.join("kubectl"), part).unwrap();
        assert_installed(&install(&cache, &group, Some(&url)).unwrap());
        let skipped: Vec<usize> = skipped.lock().unwrap().iter().map(|(_, skip)| *skip).collect();
        assert_eq!(skipped.first().copied(), asked_to_skip);
    }
}

#[test]
fn a_file_that_is_cut_short_by_its_server_is_refused_and_not_kept() {
    let (dir, (group, mut files)) = (tempfile::tempdir().unwrap(), small_release());
    files.get_mut("kubectl").unwrap().truncate(30);
    let url = serve(files);
    let cache = Cache::at(dir.path()).unwrap();
    let error = install(&cache, &group, Some(&url)).unwrap_err().to_string();
    assert!(error.contains("nothing was installed"), "{error}");
    let place = fs::read_dir(dir.path().join("downloads")).unwrap().next().unwrap().unwrap().path();
    assert!(!place.join("kubectl").exists());
}
