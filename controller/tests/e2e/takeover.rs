//! From the Go kine to ours: under a kube-apiserver that keeps running, and in a data directory of upstream's k0s.
//!
//! Needs, besides what the other tests need, the Go `kine` in `K0S_TEST_BIN_DIR` and ours as `K0S_TEST_KINE`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::cluster::{Cluster, bin_dir, send, until};

/// Kinds of everything that the test makes.
const KINDS: &str = "configmaps,secrets,leases,widgets,events";
const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  names: {kind: Widget, plural: widgets, singular: widget}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;
const MODE: u32 = 0o777;
const NOBODY: u32 = 65534;

/// Kind and name of objects, with what tells whether they are still the same: uid and resource version.
type Known = BTreeMap<String, (String, String)>;

/// A process of the test; it does not outlive it.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Process {
        let log = File::options().create(true).append(true).open(log).unwrap();
        Process(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// Whether it is still the process that was started.
    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn stop(mut self) {
        send("TERM", self.0.id());
        until("a process to end", || self.0.try_wait().unwrap());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A kine, theirs or ours, as kube-apiserver's datastore.
fn kine(program: &Path, database: &Path, socket: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .arg(format!("--endpoint=sqlite://{}?_journal=WAL&cache=shared", database.display()))
        .arg(format!("--listen-address=unix://{}", socket.display()))
        // An idle watch is resumed from the last progress that it was told: compactions must not be faster.
        .args(["--metrics-bind-address=0", "--watch-progress-notify-interval=1s"])
        .args(more);
    command
}

fn our_kine() -> PathBuf {
    std::env::var_os("K0S_TEST_KINE").expect("K0S_TEST_KINE is our kine; `make test` sets it").into()
}

/// As upstream's k0s starts it on kine, but with compactions every few seconds.
fn kube_apiserver(cluster: &Cluster, socket: &Path) -> Command {
    let pki = |file: &str| cluster.data_dir().join("pki").join(file).display().to_string();
    let mut command = Command::new(bin_dir().join("kube-apiserver"));
    for (name, value) in [
        ("etcd-servers", format!("unix://{}", socket.display())),
        ("etcd-compaction-interval", "4s".to_owned()),
        ("secure-port", cluster.port.to_string()),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("client-ca-file", pki("ca.crt")),
        ("tls-cert-file", pki("server.crt")),
        ("tls-private-key-file", pki("server.key")),
        ("service-account-key-file", pki("sa.pub")),
        ("service-account-signing-key-file", pki("sa.key")),
        ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
        ("service-cluster-ip-range", "10.96.0.0/12".to_owned()),
    ] {
        command.arg(format!("--{name}={value}"));
    }
    command
}

/// kine leaves its WAL behind when it is stopped.
fn copy_database(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let beside = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        fs::copy(beside(from), beside(to)).unwrap();
    }
}

fn apply(cluster: &Cluster, manifest: &str) {
    let file = cluster.dir().join("manifest.yaml");
    fs::write(&file, manifest).unwrap();
    cluster.kubectl(&["create", "-f", file.to_str().unwrap()]);
}

fn objects() -> String {
    let mut manifest = String::new();
    for number in 0..20 {
        manifest += &format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{number}}}\ndata: {{n: \"{number}\"}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: s{number}}}\nstringData: {{n: \"{number}\"}}\n---\n\
             apiVersion: example.com/v1\nkind: Widget\nmetadata: {{name: w{number}}}\nspec: {{n: {number}}}\n---\n"
        );
    }
    manifest
        + "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: l}\nspec: {holderIdentity: me}\n---\n"
        + &event("before")
}

/// An object that kube-apiserver stores with a lease.
fn event(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Event\nmetadata: {{name: {name}}}\n\
         involvedObject: {{kind: ConfigMap, name: c0, namespace: default}}\nreason: Tested\ntype: Normal\n"
    )
}

fn known(cluster: &Cluster) -> Known {
    let list = cluster.kubectl_json(&["get", KINDS]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let items = list["items"].as_array().unwrap().iter().map(|item| {
        let metadata = &item["metadata"];
        let name = format!("{} {}", text(&item["kind"]), text(&metadata["name"]));
        (name, (text(&metadata["uid"]), text(&metadata["resourceVersion"])))
    });
    items.collect()
}

fn list_version(cluster: &Cluster) -> String {
    let list = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/default/configmaps?limit=1"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

fn watch_path(from: &str) -> String {
    format!("/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={from}")
}

/// What a watch has delivered: type and name of every event, and its resource version.
fn delivered(output: &str) -> Vec<(String, u64)> {
    // The last line may be half written.
    let lines = output.rsplit_once('\n').map_or("", |(whole, _)| whole).lines();
    let events = lines.map(|line| {
        let event: Value = serde_json::from_str(line).unwrap();
        let metadata = &event["object"]["metadata"];
        let what =
            format!("{} {}", event["type"].as_str().unwrap(), metadata["name"].as_str().unwrap_or(line));
        (what, metadata["resourceVersion"].as_str().unwrap_or("0").parse().unwrap())
    });
    events.collect()
}

fn etcdctl(socket: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(bin_dir().join("etcdctl"));
    let output =
        command.arg(format!("--endpoints=unix://{}", socket.display())).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn kube_apiserver_goes_on_when_kine_is_replaced_by_ours() {
    let mut cluster = Cluster::new();
    let init = cluster.controller(&["--init-only"]).output().unwrap();
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    let (database, socket) = (cluster.dir().join("state.db"), cluster.dir().join("kine.sock"));
    let log = |name: &str| cluster.dir().join(format!("{name}.log"));
    // Otherwise the Go one compacts nothing before it has a thousand revisions.
    let mut theirs = kine(&bin_dir().join("kine"), &database, &socket, &["--compact-min-retain=0"]);
    let theirs = Process::start(&mut theirs, &log("go-kine"));
    until("the Go kine to listen", || socket.exists().then_some(()));
    let mut api_server = Process::start(&mut kube_apiserver(&cluster, &socket), &log("kube-apiserver"));
    until("kube-apiserver to be ready", || {
        assert!(api_server.runs(), "{}", fs::read_to_string(log("kube-apiserver")).unwrap());
        cluster.try_kubectl(&["get", "--raw", "/readyz"]).status.success().then_some(())
    });

    apply(&cluster, DEFINITION);
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/widgets.example.com", "--timeout=60s"]);
    until("widgets to be served", || cluster.try_kubectl(&["get", "widgets"]).status.success().then_some(()));
    apply(&cluster, &objects());
    cluster.kubectl(&["delete", "configmap", "c1", "c2"]);
    cluster.kubectl(&["create", "configmap", "c2", "--from-literal=n=again"]);
    cluster.kubectl(&["patch", "widget", "w3", "--type=merge", "-p", "{\"spec\":{\"n\":\"three\"}}"]);

    let version = list_version(&cluster);
    let mut watch =
        Process::start(&mut cluster.kubectl_command(&["get", "--raw", &watch_path(&version)]), &log("watch"));
    cluster.kubectl(&["create", "configmap", "under-kine"]);
    let watched = || delivered(&fs::read_to_string(log("watch")).unwrap());
    until("the first event", || (!watched().is_empty()).then_some(()));
    let before = known(&cluster);

    theirs.stop();
    let kept = cluster.dir().join("kept.db");
    copy_database(&database, &kept);
    let ours = Process::start(&mut kine(&our_kine(), &database, &socket, &[]), &log("kine"));
    // The first requests may still meet connections to the one that is gone.
    until("kube-apiserver to write again", || {
        cluster.try_kubectl(&["create", "configmap", "under-ours"]).status.success().then_some(())
    });
    let mut after = known(&cluster);
    assert!(after.remove("ConfigMap under-ours").is_some());
    assert_eq!(after, before);
    cluster.kubectl(&["patch", "configmap", "c3", "--type=merge", "-p", "{\"data\":{\"n\":\"three\"}}"]);
    cluster.kubectl(&["patch", "widget", "w4", "--type=merge", "-p", "{\"spec\":{\"n\":\"four\"}}"]);
    cluster.kubectl(&["delete", "configmap", "c4"]);
    apply(&cluster, &event("after"));
    cluster.kubectl(&["create", "configmap", "last"]);
    until("the last event", || watched().iter().any(|(what, _)| what == "ADDED last").then_some(()));
    let events = watched();
    let what: Vec<&str> = events.iter().map(|(what, _)| what.as_str()).collect();
    let wanted = ["ADDED under-kine", "ADDED under-ours", "MODIFIED c3", "DELETED c4", "ADDED last"];
    assert_eq!(what, wanted);
    assert!(events.is_sorted_by(|a, b| a.1 < b.1), "{events:?}");
    assert!(watch.runs() && api_server.runs(), "nobody had to start again");
    // Whoever comes back with what it knew from before the change is told the same.
    let again = format!("{}&timeoutSeconds=1", watch_path(&version));
    assert_eq!(delivered(&cluster.kubectl(&["get", "--raw", &again])), events);

    let (answered, leases) = etcdctl(&socket, &["lease", "list"]);
    assert!(answered && leases.contains("found"), "{leases}");
    until("kube-apiserver to compact what kine wrote", || {
        let (answered, said) = etcdctl(&socket, &["get", "/registry/none", "--rev", &version]);
        (!answered && said.contains("has been compacted")).then_some(())
    });
    drop(watch);
    api_server.stop();
    ours.stop();
    a_data_directory_of_upstream_is_taken_over(&mut cluster, &kept, &before);
}

/// `<data>/db/state.db` is where upstream's k0s has kine's database: in kube-apiserver's directory, readable by all.
fn a_data_directory_of_upstream_is_taken_over(cluster: &mut Cluster, database: &Path, before: &Known) {
    let directory = cluster.data_dir().join("db");
    let file = directory.join("state.db");
    fs::create_dir(&directory).unwrap();
    copy_database(database, &file);
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let me = rustix::process::geteuid().as_raw();
    if me == 0 {
        chown(&directory, Some(NOBODY), Some(0)).unwrap();
        chown(&file, Some(NOBODY), Some(0)).unwrap();
    }
    cluster.use_storage_of_config("kine");
    cluster.start();
    cluster.wait_until_up();
    assert!(cluster.log().contains("took over a database of kine"), "{}", cluster.log());
    assert_eq!(known(cluster), *before);
    let access = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.uid(), metadata.mode() & MODE)
    };
    assert_eq!(access(&directory), (me, 0o700));
    for suffix in ["", "-wal"] {
        assert_eq!(access(&directory.join(format!("state.db{suffix}"))).1, 0o600, "{suffix}");
    }
    cluster.kubectl(&["create", "configmap", "under-k0s"]);
    cluster.signal("TERM");
    assert!(cluster.wait_until_ended().0.success());
}
