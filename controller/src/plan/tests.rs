//! The plan against what upstream k0s was observed to start (`observed/*.txt`), and what the configuration changes in it.

use std::net::IpAddr;
use std::path::Path;

use super::*;
use crate::config::{self, Host, Overrides};
use crate::paths::PathChoices;

const DATA_DIR: &str = "/data";

/// Arguments of upstream that we leave out or change, each with its reason.
const NOT_YET_RUN: &str = "konnectivity is not part of this release";
const OWN_DATASTORE: &str = "the datastore is in this process, on a Unix socket";
const ONE_CONTROLLER: &str =
    "SQLite cannot be shared, so there is nobody to elect (upstream does the same with kine)";
const DIFFERENCES: [(&str, &str, Option<&str>, &str); 8] = [
    (KUBE_APISERVER, "egress-selector-config-file", None, NOT_YET_RUN),
    (KUBE_APISERVER, "api-audiences", Some("https://kubernetes.default.svc"), NOT_YET_RUN),
    (KUBE_APISERVER, "etcd-cafile", None, OWN_DATASTORE),
    (KUBE_APISERVER, "etcd-certfile", None, OWN_DATASTORE),
    (KUBE_APISERVER, "etcd-keyfile", None, OWN_DATASTORE),
    (KUBE_APISERVER, "etcd-servers", Some("unix:///run/k0s/kine/kine.sock"), OWN_DATASTORE),
    (KUBE_CONTROLLER_MANAGER, "leader-elect", Some("false"), ONE_CONTROLLER),
    (KUBE_SCHEDULER, "leader-elect", Some("false"), ONE_CONTROLLER),
];

/// Plans for `config` on the machine that upstream was observed on, after `change` to the facts.
fn plan_with(config: &str, change: impl FnOnce(&mut Facts<'_>)) -> Result<Plan, PlanError> {
    let address: IpAddr = "10.199.0.2".parse().unwrap();
    let host = Host { address, addresses: vec![address] };
    let overrides = Overrides { storage: Some("sqlite".parse().unwrap()), data_dir: Path::new(DATA_DIR) };
    let loaded = config::parse(config.as_bytes(), &overrides, &host).unwrap();
    let choices = PathChoices { data_dir: Some(DATA_DIR.into()), ..Default::default() };
    let mut facts = Facts {
        paths: &Paths::resolve(choices, true).unwrap(),
        executables: &Executables {
            kube_apiserver: "/bin/kube-apiserver".into(),
            kube_controller_manager: "/bin/kube-controller-manager".into(),
            kube_scheduler: "/bin/kube-scheduler".into(),
        },
        users: &Users {
            kube_apiserver: Some(User { uid: 7, gid: 8, groups: Vec::new() }),
            kube_scheduler: None,
        },
        environment: vec![
            ("PATH".into(), "/usr/bin".into()),
            ("KUBE_SCHEDULER_HTTPS_PROXY".into(), "proxy".into()),
        ],
        log_levels: LogLevels::default(),
        disabled: BTreeSet::new(),
        controller_manager_extra_args: BTreeMap::new(),
        api_server_stop_timeout: None,
        many_controllers: false,
        api_server_readiness: Readiness::RunningFor(Duration::ZERO),
    };
    change(&mut facts);
    controller(&loaded.config, &facts)
}

fn plan(config: &str) -> Plan {
    plan_with(config, |_| {}).unwrap()
}

fn component<'a>(plan: &'a Plan, name: &str) -> Option<&'a ComponentSpec> {
    plan.stages.iter().flatten().find(|spec| spec.name == name)
}

fn value<'a>(plan: &'a Plan, name: &str, argument: &str) -> Option<&'a str> {
    let prefix = format!("--{argument}=");
    component(plan, name)?.args.iter().find_map(|a| a.strip_prefix(&prefix))
}

#[test]
fn arguments_are_those_of_upstream_but_for_the_documented_differences() {
    let plan = plan("");
    for (name, observed) in [
        (KUBE_APISERVER, include_str!("observed/kube-apiserver.txt")),
        (KUBE_CONTROLLER_MANAGER, include_str!("observed/kube-controller-manager.txt")),
        (KUBE_SCHEDULER, include_str!("observed/kube-scheduler.txt")),
    ] {
        let mut expected: BTreeMap<&str, &str> =
            observed.lines().map(|line| line.strip_prefix("--").unwrap().split_once('=').unwrap()).collect();
        for (_, argument, ours, _) in DIFFERENCES.iter().filter(|(component, ..)| *component == name) {
            match ours {
                Some(ours) => expected.insert(argument, ours),
                None => expected.remove(argument),
            };
        }
        let expected: Vec<String> = expected
            .into_iter()
            .map(|(name, value)| format!("--{name}={}", value.replace("<data>", DATA_DIR)))
            .collect();
        assert_eq!(component(&plan, name).unwrap().args, expected, "{name}");
    }
}

#[test]
fn api_server_comes_first_and_its_clients_together() {
    let plan = plan("");
    let names: Vec<Vec<&str>> =
        plan.stages.iter().map(|stage| stage.iter().map(|c| c.name.as_str()).collect()).collect();
    assert_eq!(names, [vec![KUBE_APISERVER], vec![KUBE_CONTROLLER_MANAGER, KUBE_SCHEDULER]]);
    let ports: Vec<_> = plan.ports.iter().map(|claim| (claim.component, claim.port, claim.address)).collect();
    let loopback = Some(IpAddr::from([127, 0, 0, 1]));
    assert_eq!(
        ports,
        [
            (KUBE_APISERVER, 6443, None),
            (KUBE_CONTROLLER_MANAGER, 10257, loopback),
            (KUBE_SCHEDULER, 10259, loopback)
        ]
    );
}

#[test]
fn components_run_as_their_users_with_their_environment_in_the_data_directory() {
    let plan = plan("");
    let uid = |name| component(&plan, name).unwrap().user.as_ref().map(|user| user.uid);
    assert_eq!(
        (uid(KUBE_APISERVER), uid(KUBE_CONTROLLER_MANAGER), uid(KUBE_SCHEDULER)),
        (Some(7), Some(7), None)
    );
    let scheduler = component(&plan, KUBE_SCHEDULER).unwrap();
    assert_eq!(scheduler.working_dir, Path::new(DATA_DIR));
    let expected = [("HTTPS_PROXY", "proxy"), ("PATH", "/data/bin:/usr/bin"), ("_K0S_MANAGED", "yes")];
    assert_eq!(scheduler.env, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
}

#[test]
fn configured_arguments_win_and_what_they_replace_is_told() {
    let config = r#"
spec:
  api:
    port: 7443
    onlyBindToAddress: true
    extraArgs: {profiling: "true", max-requests-inflight: "9"}
    rawArgs: [--raw]
  controllerManager: {extraArgs: {secure-port: "20257"}}
  scheduler: {extraArgs: {feature-gates: "X=true"}}
  featureGates: [{name: G, enabled: true}]
"#;
    let plan = plan_with(config, |facts| {
        facts.controller_manager_extra_args = arguments::parse_extra("--cluster-name mine").unwrap();
        facts.log_levels = LogLevels::with(vec!["kube-scheduler=5".parse().unwrap()]);
    })
    .unwrap();
    assert_eq!(value(&plan, KUBE_APISERVER, "secure-port"), Some("7443"));
    assert_eq!(value(&plan, KUBE_APISERVER, "bind-address"), Some("10.199.0.2"));
    assert_eq!(value(&plan, KUBE_APISERVER, "profiling"), Some("true"));
    assert_eq!(value(&plan, KUBE_APISERVER, "max-requests-inflight"), Some("9"));
    assert_eq!(value(&plan, KUBE_APISERVER, "feature-gates"), Some("G=true"));
    assert_eq!(component(&plan, KUBE_APISERVER).unwrap().args.last().unwrap(), "--raw");
    assert_eq!(value(&plan, KUBE_CONTROLLER_MANAGER, "cluster-name"), Some("mine"));
    assert_eq!(value(&plan, KUBE_SCHEDULER, "feature-gates"), Some("X=true,G=true"));
    assert_eq!(value(&plan, KUBE_SCHEDULER, "v"), Some("5"));
    assert_eq!(plan.ports[0].address, Some("10.199.0.2".parse().unwrap()));
    assert_eq!(plan.ports[1].port, 20257);
    let overridden: Vec<_> = plan.overridden.iter().map(|o| (o.component, o.argument.as_str())).collect();
    assert_eq!(overridden, [(KUBE_APISERVER, "profiling"), (KUBE_CONTROLLER_MANAGER, "cluster-name")]);
}

#[test]
fn arguments_that_everything_else_depends_on_are_refused() {
    let error = plan_with("spec: {api: {extraArgs: {secure-port: '1'}}}", |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "spec.api.extraArgs[secure-port]: cannot be set here, k0s depends on it: use spec.api.port"
    );
}

#[test]
fn the_datastores_socket_is_named_by_a_url_whatever_its_path_is() {
    let choices = PathChoices { run_dir: Some("/a b/c,d?e#f%20\"g".into()), ..Default::default() };
    let paths = Paths::resolve(choices, true).unwrap();
    let plan = plan_with("", |facts| facts.paths = Box::leak(Box::new(paths))).unwrap();
    let url = "unix:///a%20b/c%2Cd%3Fe%23f%2520%22g/kine/kine.sock";
    assert_eq!(value(&plan, KUBE_APISERVER, "etcd-servers"), Some(url));
}

#[test]
fn disabled_components_are_not_planned() {
    let plan = plan_with("", |facts| {
        facts.disabled = ["kube-scheduler", "coredns"].iter().map(|n| n.parse().unwrap()).collect();
    })
    .unwrap();
    assert!(component(&plan, KUBE_SCHEDULER).is_none());
    assert!(component(&plan, KUBE_CONTROLLER_MANAGER).is_some());
    assert!("kube-shceduler".parse::<Disableable>().is_err());
    assert!("worker-config".parse::<Disableable>().unwrap().is_obsolete());
}

#[test]
fn stop_time_follows_the_longest_request_within_bounds_unless_it_is_given() {
    let grace = |config: &str, timeout: Option<u64>| {
        let plan =
            plan_with(config, |facts| facts.api_server_stop_timeout = timeout.map(Duration::from_secs));
        let plan = plan.unwrap();
        let watches =
            value(&plan, KUBE_APISERVER, "shutdown-watch-termination-grace-period").unwrap().to_owned();
        (component(&plan, KUBE_APISERVER).unwrap().stop.grace.as_secs(), watches)
    };
    assert_eq!(grace("", None), (20, "18s".into()));
    assert_eq!(grace("spec: {api: {extraArgs: {request-timeout: 6s}}}", None), (8, "6s".into()));
    assert_eq!(grace("spec: {api: {extraArgs: {request-timeout: 1s}}}", None), (5, "3s".into()));
    assert_eq!(grace("", Some(40)), (40, "38s".into()));
}

#[test]
fn dual_stack_lists_both_ranges_and_both_masks() {
    let config = r#"
spec:
  network:
    dualStack: {enabled: true, IPv6podCIDR: "fd00::/108", IPv6serviceCIDR: "fd01::/108"}
"#;
    let plan = plan(config);
    assert_eq!(value(&plan, KUBE_APISERVER, "service-cluster-ip-range"), Some("10.96.0.0/12,fd01::/108"));
    assert_eq!(value(&plan, KUBE_CONTROLLER_MANAGER, "cluster-cidr"), Some("10.244.0.0/16,fd00::/108"));
    assert_eq!(value(&plan, KUBE_CONTROLLER_MANAGER, "node-cidr-mask-size-ipv4"), Some("24"));
    assert_eq!(value(&plan, KUBE_CONTROLLER_MANAGER, "node-cidr-mask-size-ipv6"), Some("117"));
    assert_eq!(value(&plan, KUBE_CONTROLLER_MANAGER, "node-cidr-mask-size"), None);
}
