//! kube-apiserver: its arguments, its port, how long it may take to stop.

use std::path::Path;
use std::time::Duration;

use super::arguments::{Arguments, Overridden};
use super::{Facts, PlanError, Process};
use crate::config::{ClusterConfig, GoDuration};
use crate::ports::PortClaim;

pub const NAME: &str = "kube-apiserver";

/// What upstream k0s restricts every TLS server to.
const CIPHER_SUITES: &str = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,\
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,\
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256";
const ISSUER: &str = "https://kubernetes.default.svc";

/// Bounds of the stop time that is derived from the arguments.
const STOP_TIMEOUT_MIN: Duration = Duration::from_secs(5);
const STOP_TIMEOUT_MAX: Duration = Duration::from_secs(20);
/// kube-apiserver's own default of `request-timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// What is left of the stop time after the watches were given theirs.
const STOP_MARGIN: Duration = Duration::from_secs(2);

pub(super) fn process(
    config: &ClusterConfig,
    facts: &Facts<'_>,
    overridden: &mut Vec<Overridden>,
) -> Result<Process, PlanError> {
    let api = &config.spec.api;
    // Everything else (certificates, kubeconfigs, the readiness probe) goes by the configuration's port.
    for (argument, instead) in [
        ("secure-port", "spec.api.port"),
        ("etcd-servers", "spec.storage"),
        ("bind-address", "spec.api.onlyBindToAddress"),
    ] {
        if api.extra_args.contains_key(argument) {
            return Err(PlanError::Reserved { path: format!("spec.api.extraArgs[{argument}]"), instead });
        }
    }
    let mut arguments = arguments(config, facts);
    overridden.extend(arguments.override_with(NAME, &api.extra_args, "spec.api.extraArgs"));
    arguments.set_feature_gates(NAME, &config.spec);
    let stop_timeout = facts.api_server_stop_timeout.unwrap_or_else(|| derived_stop_timeout(&arguments));
    let watch_grace = stop_timeout.saturating_sub(STOP_MARGIN);
    arguments.set_default("shutdown-watch-termination-grace-period", format!("{}s", watch_grace.as_secs()));

    Ok(Process {
        name: NAME,
        argv: arguments.into_argv(&api.raw_args),
        stop_grace: stop_timeout,
        port: PortClaim {
            component: NAME,
            address: api.only_bind_to_address.then_some(api.address),
            port: api.port.get(),
            configured_by: "spec.api.port",
        },
    })
}

fn arguments(config: &ClusterConfig, facts: &Facts<'_>) -> Arguments {
    let api = &config.spec.api;
    let pki = |file: &str| facts.paths.pki(file).display().to_string();
    let mut set = Arguments::default();
    set.set("advertise-address", api.address);
    set.set("secure-port", api.port);
    if api.only_bind_to_address {
        set.set("bind-address", api.address);
    }
    set.set("authorization-mode", "Node,RBAC");
    set.set("enable-admission-plugins", "NodeRestriction");
    set.set("enable-bootstrap-token-auth", true);
    set.set("allow-privileged", true);
    set.set("profiling", false);
    // A structured authentication configuration may say itself who is anonymous; both at once are refused.
    if !api.extra_args.contains_key("authentication-config") {
        set.set("anonymous-auth", false);
    }

    set.set("client-ca-file", pki("ca.crt"));
    set.set("tls-cert-file", pki("server.crt"));
    set.set("tls-private-key-file", pki("server.key"));
    set.set("tls-min-version", "VersionTLS12");
    set.set("tls-cipher-suites", CIPHER_SUITES);

    set.set("kubelet-certificate-authority", pki("ca.crt"));
    set.set("kubelet-client-certificate", pki("apiserver-kubelet-client.crt"));
    set.set("kubelet-client-key", pki("apiserver-kubelet-client.key"));
    set.set("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname");

    set.set("proxy-client-cert-file", pki("front-proxy-client.crt"));
    set.set("proxy-client-key-file", pki("front-proxy-client.key"));
    set.set("requestheader-client-ca-file", pki("front-proxy-ca.crt"));
    set.set("requestheader-allowed-names", "front-proxy-client");
    set.set("requestheader-extra-headers-prefix", "X-Remote-Extra-");
    set.set("requestheader-group-headers", "X-Remote-Group");
    set.set("requestheader-username-headers", "X-Remote-User");

    set.set("service-account-key-file", pki("sa.pub"));
    set.set("service-account-signing-key-file", pki("sa.key"));
    set.set("service-account-issuer", ISSUER);
    set.set("service-account-jwks-uri", format!("{ISSUER}/openid/v1/jwks"));
    set.set("api-audiences", ISSUER);

    set.set("service-cluster-ip-range", super::joined(&config.spec.service_cidrs()));
    set.set("etcd-servers", unix_url(&facts.paths.datastore_socket()));
    set.set("v", facts.log_levels.of(NAME));
    set
}

/// As one item of a comma-separated list, and as a URL.
fn unix_url(path: &Path) -> String {
    let mut url = "unix://".to_owned();
    for &byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => {
                url.push(byte.into())
            }
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

fn derived_stop_timeout(arguments: &Arguments) -> Duration {
    let duration = |name: &str| arguments.value(name)?.parse::<GoDuration>().ok()?.to_std();
    let requests = duration("request-timeout").unwrap_or(REQUEST_TIMEOUT);
    let watches = duration("shutdown-watch-termination-grace-period").unwrap_or_default();
    (requests.max(watches) + STOP_MARGIN).clamp(STOP_TIMEOUT_MIN, STOP_TIMEOUT_MAX)
}
