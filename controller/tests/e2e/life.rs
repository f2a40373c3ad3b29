//! The life of one cluster: start, work, accidents, restart, stop.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, PATIENCE, bin_dir, send, until};

const NAMESPACE: &str = "e2e";
const COMPONENTS: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];

#[test]
fn a_cluster_serves_kubectl_survives_kills_and_stops_in_order() {
    let mut cluster = Cluster::new();
    let service_manager = service_manager(&mut cluster);
    cluster.start();
    cluster.wait_until_up();
    assert_eq!(notification(&service_manager), "READY=1");
    the_next_command_is_announced(&cluster);
    status_tells_what_k0sctl_reads(&cluster);
    another_k0s_is_refused(&cluster);
    its_objects_are_those_of_upstream_but_for_the_documented_ones(&cluster);

    three_hundred_objects_are_applied(&cluster);
    a_watch_delivers_changes(&cluster);
    a_deployment_gets_its_pods(&cluster);
    kubeconfigs_work_from_outside(&cluster);

    a_killed_api_server_is_started_again(&cluster);
    let before = everything(&cluster);
    // As an operator's `kill -9`, or the kernel's when memory runs out.
    cluster.kill();
    until("the components to die with k0s", || cluster.processes().is_empty().then_some(()));
    cluster.start();
    cluster.wait_until_up();
    assert_eq!(notification(&service_manager), "READY=1");
    assert_eq!(everything(&cluster), before);
    assert_eq!(cluster.process_names(), COMPONENTS);
    a_watch_delivers_changes(&cluster);

    cluster.signal("TERM");
    let (status, took) = cluster.wait_until_ended();
    assert!(status.success(), "{status}\n{}", cluster.log());
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(notification(&service_manager), "STOPPING=1");
    assert_eq!(cluster.process_names(), [""; 0]);
    for gone in ["k0s.yaml", "status.sock"] {
        assert!(!cluster.run_dir().join(gone).exists(), "{gone}");
    }
    they_stopped_in_order(&cluster.log());
    eprintln!("stopped in {took:?}; {}", ready_line(&cluster));
}

/// What systemd does: listens for notifications.
fn service_manager(cluster: &mut Cluster) -> UnixDatagram {
    let path = cluster.dir().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    cluster.set_variable("NOTIFY_SOCKET", path.to_str().unwrap());
    socket
}

fn notification(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let read = socket.recv(&mut buffer).unwrap();
    std::str::from_utf8(&buffer[..read]).unwrap().trim().to_owned()
}

fn ready_line(cluster: &Cluster) -> String {
    let log = cluster.log();
    log.lines().find(|line| line.contains("the Kubernetes API is ready after")).unwrap().to_owned()
}

fn the_next_command_is_announced(cluster: &Cluster) {
    let line = ready_line(cluster);
    let (_, typed) = line.split_once("type: ").unwrap();
    let output = Command::new("sh").args(["-c", typed]).output().unwrap();
    let namespaces = String::from_utf8_lossy(&output.stdout);
    assert!(namespaces.contains("kube-system"), "{typed}: {output:?}");
}

fn status_tells_what_k0sctl_reads(cluster: &Cluster) {
    let status: Value = serde_json::from_str(&cluster.k0s(&["status", "-o", "json"])).unwrap();
    assert_eq!(status["Pid"], json!(cluster.pid()));
    assert_eq!(status["Role"], "controller");
    assert_eq!(status["K0sVars"]["DataDir"], json!(cluster.data_dir()));
    assert_eq!(status["ClusterConfig"]["spec"]["api"]["port"], json!(cluster.port));
    assert!(cluster.k0s(&["status"]).starts_with("Version: v1."));
    for name in COMPONENTS {
        let (_, restarts, state) = cluster.component(name).unwrap();
        assert_eq!((restarts, state.as_str()), (0, "ready"), "{name}");
    }
}

fn another_k0s_is_refused(cluster: &Cluster) {
    let output = cluster.controller(&[]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("Error: another k0s process is still running"), "{error}");
}

/// Both lists have kind, namespace and name; `*` stands for a part that differs from machine to machine.
fn its_objects_are_those_of_upstream_but_for_the_documented_ones(cluster: &Cluster) {
    let lines = |text: &'static str| text.lines().filter(|line| !line.starts_with('#'));
    let mut expected: BTreeSet<&str> = lines(include_str!("objects/observed.txt")).collect();
    for absent in lines(include_str!("objects/absent.txt")) {
        assert!(expected.remove(absent), "upstream has no {absent}");
    }
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"]).replace('\n', ",");
    let columns = "custom-columns=K:.kind,S:.metadata.namespace,N:.metadata.name";
    let listed = || -> BTreeSet<String> {
        let objects =
            cluster.kubectl(&["get", kinds.trim_end_matches(','), "-A", "--no-headers", "-o", columns]);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        // They come and go, and say what happened, not what is there.
        objects.lines().map(words).filter(|line| !line.starts_with("Event ")).map(of_any_machine).collect()
    };
    // Controllers make them one by one.
    until("the objects of a fresh cluster", || {
        let found = listed();
        let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
        let (missing, more) = (expected.difference(&found), found.difference(&expected));
        let (missing, more): (Vec<_>, Vec<_>) = (missing.collect(), more.collect());
        eprintln!("missing {missing:?}, more {more:?}");
        (missing.is_empty() && more.is_empty()).then_some(())
    });
}

fn of_any_machine(object: String) -> String {
    const API_SERVER_LEASE: &str = "Lease kube-system apiserver-";
    match object.starts_with(API_SERVER_LEASE) {
        true => format!("{API_SERVER_LEASE}*"),
        false => object,
    }
}

fn three_hundred_objects_are_applied(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", NAMESPACE]);
    let mut items = Vec::new();
    for n in 0..50 {
        items.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": name("c", n), "data": {"n": n.to_string()}}));
        items.push(json!({"apiVersion": "v1", "kind": "Secret", "metadata": name("s", n), "data": {"n": "eHh4".repeat(100)}}));
        items.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name("a", n)}));
        items.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": name("v", n), "spec": {"ports": [{"port": 80}]}}));
        items.push(
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": name("r", n),
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        );
        items.push(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": name("b", n),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": format!("r{n}")},
            "subjects": [{"kind": "ServiceAccount", "name": format!("a{n}"), "namespace": NAMESPACE}]}));
    }
    assert_eq!(items.len(), 300);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let file = cluster.dir().join("objects.json");
    std::fs::write(&file, list.to_string()).unwrap();
    let applied = cluster.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    assert_eq!(applied.lines().filter(|line| line.ends_with(" created")).count(), 300, "{applied}");
    let again = cluster.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    assert_eq!(again.lines().filter(|line| line.ends_with(" unchanged")).count(), 300, "{again}");
}

fn name(prefix: &str, n: u32) -> Value {
    json!({"name": format!("{prefix}{n}"), "namespace": NAMESPACE})
}

/// Name, kind and uid of every object that outlives its controllers' work.
fn everything(cluster: &Cluster) -> Vec<String> {
    let kinds = "configmaps,secrets,serviceaccounts,services,roles,rolebindings,deployments,replicasets,pods";
    let columns = "custom-columns=K:.kind,N:.metadata.name,U:.metadata.uid";
    let listed = cluster.kubectl(&["get", kinds, "-n", NAMESPACE, "--no-headers", "-o", columns]);
    let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
    lines.sort();
    assert!(lines.len() > 300, "{}", lines.len());
    lines
}

/// A line such as `MODIFIED  watched  0  3s`.
fn is_event(line: &str, kind: &str) -> bool {
    line.split_whitespace().take(2).eq([kind, "watched"])
}

fn a_watch_delivers_changes(cluster: &Cluster) {
    let mut watch = cluster
        .kubectl_command(&[
            "get",
            "configmaps",
            "-n",
            NAMESPACE,
            "--watch-only",
            "--output-watch-events",
            "--no-headers",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (lines, seen) = std::sync::mpsc::channel();
    let output = BufReader::new(watch.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in output.lines() {
            if lines.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    // A watch has no first line to wait for: the object changes until it is seen to.
    cluster.kubectl(&["create", "configmap", "watched", "-n", NAMESPACE]);
    let mut n = 0;
    until("the watch to deliver a change", || {
        n += 1;
        let label = format!("n={n}");
        cluster.kubectl(&["label", "configmap", "watched", "-n", NAMESPACE, "--overwrite", &label]);
        seen.recv_timeout(Duration::from_millis(200)).ok().filter(|line| is_event(line, "MODIFIED"))
    });
    cluster.kubectl(&["delete", "configmap", "watched", "-n", NAMESPACE]);
    until("the watch to end with the deletion", || {
        seen.recv_timeout(Duration::from_millis(200)).ok().filter(|line| is_event(line, "DELETED"))
    });
    watch.kill().unwrap();
    watch.wait().unwrap();
    reader.join().unwrap();
}

fn a_deployment_gets_its_pods(cluster: &Cluster) {
    let create =
        ["create", "deployment", "web", "-n", NAMESPACE, "--image=example.com/web:1", "--replicas=3"];
    cluster.kubectl(&create);
    let pods = until("the deployment's pods", || {
        let pods = cluster.kubectl_json(&["get", "pods", "-n", NAMESPACE, "-l", "app=web"]);
        let pods = pods["items"].as_array().unwrap().clone();
        // The scheduler says why a pod has no node.
        let judged = |pod: &Value| pod["status"]["conditions"][0]["reason"] == "Unschedulable";
        (pods.len() == 3 && pods.iter().all(judged)).then_some(pods)
    });
    for pod in pods {
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "ReplicaSet");
    }
}

fn kubeconfigs_work_from_outside(cluster: &Cluster) {
    let jane = ["kubeconfig", "create", "jane", "--groups", "system:masters", "--context-name", "mine"];
    for (arguments, user) in [(&["kubeconfig", "admin"][..], "kubernetes-admin"), (&jane[..], "jane")] {
        let file = cluster.dir().join(format!("{user}.conf"));
        std::fs::write(&file, cluster.k0s(arguments)).unwrap();
        let output = Command::new(bin_dir().join("kubectl"))
            .arg("--kubeconfig")
            .arg(&file)
            .args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), user, "{output:?}");
    }
}

fn a_killed_api_server_is_started_again(cluster: &Cluster) {
    let (pid, restarts, _) = cluster.component("kube-apiserver").unwrap();
    assert_eq!(restarts, 0);
    send("KILL", pid);
    until("kube-apiserver to be ready again", || {
        let (new_pid, restarts, state) = cluster.component("kube-apiserver")?;
        (new_pid != pid && restarts == 1 && state == "ready").then_some(())
    });
    cluster.kubectl(&["get", "configmap", "c0", "-n", NAMESPACE]);
    assert_eq!(cluster.process_names(), COMPONENTS);
}

fn they_stopped_in_order(log: &str) {
    let position = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text} is not in the log:\n{log}"));
    let api_server_stops = position("kube-apiserver: stopping");
    for client in ["kube-controller-manager: stopped", "kube-scheduler: stopped"] {
        assert!(position(client) < api_server_stops, "{client}");
    }
    assert!(
        position("kube-apiserver: stopped: exited with code 0") < position("k0s: everything has stopped")
    );
}
