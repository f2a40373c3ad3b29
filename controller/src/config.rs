//! The cluster configuration: `ClusterConfig` of `k0s.k0sproject.io/v1beta1`, as upstream k0s reads and writes it.
//!
//! Invariant: a [`ClusterConfig`] that came out of [`load`] keeps every rule upstream has for it and asks for nothing
//! that this release does not do; whatever is wrong is reported at once, with the path of each field. Called by the
//! command line; the plan, the certificates and the kubeconfigs read the result. Nothing here touches the system except
//! [`Source::read`] and [`Host::detect`]: what the defaults depend on comes in as a [`Host`].
//!
//! One file per section below `config/`; `field` says how sections are read and written, `document` turns bytes into
//! values, `support` lists what is not built yet.

mod address;
mod api;
mod cni;
mod components;
mod document;
mod duration;
mod extensions;
mod feature_gates;
mod field;
mod host;
mod images;
mod kube_proxy;
mod load_balancing;
mod network;
mod patches;
mod problem;
mod secret;
mod source;
mod storage;
mod support;
mod worker_profiles;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::Value;

pub use address::{Cidr, HostPort, Port, join_host_port};
pub use api::{Api, CertificateAuthority};
pub use cni::{Calico, CalicoMode, Hairpin, KubeRouter, Overlay, Provider};
pub use components::{
    ControllerManager, InstallConfig, Konnectivity, MetricsServer, Scheduler, SystemUsers, Telemetry,
};
pub use document::DocumentError;
pub use duration::{DurationOrNanos, GoDuration};
pub use extensions::{Chart, Extensions, Helm, Repository, StorageExtension, StorageExtensionType};
pub use feature_gates::FeatureGate;
pub use host::{Host, HostError, Interface, InterfaceAddress};
pub use images::{Image, Images, PullPolicy};
pub use kube_proxy::KubeProxy;
pub use load_balancing::{
    ControlPlaneLoadBalancing, Keepalived, NodeLocalLoadBalancing, VirtualServer, VrrpInstance,
};
pub use network::{AddressFamily, CoreDns, DualStack, Network, ServiceCidrTooSmall};
pub use patches::{Patch, PatchSpec, PatchTarget, PatchType};
pub use problem::{FieldError, FieldPath, Problems};
pub use secret::Secret;
pub use source::{DEFAULT_FILE, Source};
pub use storage::{
    Datastore, DatastoreKind, Etcd, ExternalCluster, Kine, Storage, StorageType, UnknownStorage,
};
pub use worker_profiles::WorkerProfile;

use field::{Field, choice, section};
use problem::{Report, rendered};

section! {
    pub struct ClusterConfig: rules {
        api_version "apiVersion" (zero_is_default): ApiVersion = ApiVersion::V1Beta1,
        kind "kind" (zero_is_default): Kind = Kind::ClusterConfig,
        metadata "metadata": Metadata = Metadata::default(),
        spec "spec": Spec = Spec::default(),
        /// Present in objects read back from the API; means nothing in a file.
        status "status": Value = Value::Null,
    }
}

choice! {
    pub enum ApiVersion {
        V1Beta1 = "k0s.k0sproject.io/v1beta1",
    }
}

choice! {
    pub enum Kind {
        ClusterConfig = "ClusterConfig",
        /// What the first releases of k0s called it.
        Cluster = "Cluster",
    }
}

section! {
    /// Object metadata. Only the name and the namespace mean anything, and only in the API; the rest is accepted because
    /// files exported from the API carry it.
    pub struct Metadata {
        name "name": String = "k0s".to_owned(),
        namespace "namespace": String = "kube-system".to_owned(),
        labels "labels": BTreeMap<String, String> = BTreeMap::new(),
        annotations "annotations": BTreeMap<String, String> = BTreeMap::new(),
        generate_name "generateName": Value = Value::Null,
        self_link "selfLink": Value = Value::Null,
        uid "uid": Value = Value::Null,
        resource_version "resourceVersion": Value = Value::Null,
        generation "generation": Value = Value::Null,
        creation_timestamp "creationTimestamp": Value = Value::Null,
        deletion_timestamp "deletionTimestamp": Value = Value::Null,
        deletion_grace_period_seconds "deletionGracePeriodSeconds": Value = Value::Null,
        owner_references "ownerReferences": Value = Value::Null,
        finalizers "finalizers": Value = Value::Null,
        managed_fields "managedFields": Value = Value::Null,
    }
}

section! {
    pub struct Spec: rules {
        api "api": Api = Api::default(),
        controller_manager "controllerManager": ControllerManager = ControllerManager::default(),
        scheduler "scheduler": Scheduler = Scheduler::default(),
        storage "storage": Storage = Storage::default(),
        network "network": Network = Network::default(),
        worker_profiles "workerProfiles": Vec<WorkerProfile> = Vec::new(),
        telemetry "telemetry": Telemetry = Telemetry::default(),
        install_config "installConfig": InstallConfig = InstallConfig::default(),
        images "images": Images = Images::default(),
        extensions "extensions": Extensions = Extensions::default(),
        konnectivity "konnectivity": Konnectivity = Konnectivity::default(),
        feature_gates "featureGates": Vec<FeatureGate> = Vec::new(),
        metrics_server "metricsServer": Option<MetricsServer> = None,
    }
}

/// What the command line decides about the configuration.
#[derive(Clone, Debug)]
pub struct Overrides<'a> {
    /// `--storage`.
    pub storage: Option<StorageType>,
    /// `--data-dir`.
    pub data_dir: &'a Path,
}

/// A configuration that is fit to run.
#[derive(Debug)]
pub struct Loaded {
    pub config: ClusterConfig,
    /// Worth a line in the log each.
    pub warnings: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read the configuration from {origin}")]
    Read { origin: Source, source: io::Error },
    #[error("the configuration from {origin}")]
    Document { origin: Source, source: DocumentError },
    #[error("the configuration from {origin} is not valid")]
    Invalid { origin: Source, source: Problems },
    /// There is no file, so it is the command line's.
    #[error("the command line asks for what cannot be")]
    Flags { source: Problems },
}

/// Reads, merges over the defaults, and checks.
///
/// # Errors
/// If the source cannot be read, is no YAML, breaks a rule, or asks for what is not built yet.
pub fn load(source: &Source, overrides: &Overrides<'_>, host: &Host) -> Result<Loaded, LoadError> {
    let text = source.read().map_err(|error| LoadError::Read { origin: source.clone(), source: error })?;
    let is_file = text.is_some();
    parse(&text.unwrap_or_default(), overrides, host).map_err(|error| match error {
        ParseError::Document(error) => LoadError::Document { origin: source.clone(), source: error },
        ParseError::Invalid(problems) if is_file => {
            LoadError::Invalid { origin: source.clone(), source: problems }
        }
        ParseError::Invalid(problems) => LoadError::Flags { source: problems },
    })
}

#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// [`load`] without the file.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &[u8], overrides: &Overrides<'_>, host: &Host) -> Result<Loaded, ParseError> {
    let document = document::parse(text)?;
    let default = ClusterConfig::default_on(host);
    let mut config = default.clone();
    let mut report = Report::default();
    if document.is_followed {
        report.warn("only the first YAML document was read; what follows the second `---` was not");
    }
    let root = FieldPath::root();
    config.read(document.root, &root, &mut report);
    config.spec.network.settle();
    if let Some(storage) = overrides.storage {
        config.spec.storage.choose(storage, &FieldPath::from("spec.storage"), &mut report);
    }
    config.check(&root, &mut report);
    support::check(&config, &default, overrides.data_dir, &mut report);
    let warnings = report.finish()?;
    Ok(Loaded { config, warnings })
}

/// Whether `config create` lists the images (`--include-images`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShowImages {
    No,
    Yes,
}

/// What `config create` prints: the defaults on this host.
pub fn create(host: &Host, images: ShowImages) -> String {
    ClusterConfig::default_on(host).to_yaml(images)
}

impl ClusterConfig {
    /// The configuration of a host without a configuration file.
    pub fn default_on(host: &Host) -> Self {
        let mut config = Self::default();
        config.spec.api.address = host.address;
        config.spec.storage.etcd.peer_address = host.address.to_string();
        config
    }

    /// As a JSON document with every default filled in. Contains secrets if the configuration does.
    pub fn to_document(&self) -> Value {
        self.write()
    }

    /// As a file, keys in alphabetical order as upstream prints them. Contains secrets if the configuration does.
    pub fn to_yaml(&self, images: ShowImages) -> String {
        let mut config = self.write();
        if images == ShowImages::No {
            images::without_images(&mut config);
        }
        document::write(config.as_object().expect("a section is written as a mapping"))
    }

    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if !matches!(self.status, Value::Null | Value::Object(_)) {
            report.invalid(&at.child("status"), rendered(&self.status), "must be a mapping");
        }
    }
}

impl Spec {
    /// The datastore to run.
    ///
    /// # Errors
    /// If it is not built yet, as upstream's default (a replicated datastore) is not.
    pub fn datastore(&self, data_dir: &Path) -> Result<Datastore, FieldError> {
        support::datastore(&self.storage, data_dir)
    }

    /// The address family that comes first wherever both are listed.
    pub fn primary_address_family(&self) -> AddressFamily {
        let public_address = self.api.public_host().parse::<std::net::IpAddr>();
        let detected = if public_address.is_ok_and(|address| address.is_ipv6()) {
            AddressFamily::Ipv6
        } else {
            AddressFamily::Ipv4
        };
        self.network.primary_address_family.unwrap_or(detected)
    }

    /// Service ranges, the primary family first.
    pub fn service_cidrs(&self) -> Vec<Cidr> {
        self.network.service_cidrs(self.primary_address_family())
    }

    /// Pod ranges, the primary family first.
    pub fn pod_cidrs(&self) -> Vec<Cidr> {
        self.network.pod_cidrs(self.primary_address_family())
    }

    /// The value of `--feature-gates` for a component, after what its `extraArgs` already have; `None` if there is none.
    pub fn feature_gates_argument(&self, component: &str, given: Option<&str>) -> Option<String> {
        feature_gates::argument(&self.feature_gates, component, given)
    }

    fn rules(&self, at: &FieldPath, report: &mut Report) {
        let enabled = self.network.node_local_load_balancing.enabled;
        if enabled && self.api.external_address.is_some() {
            let path = at.child("network").child("nodeLocalLoadBalancing").child("enabled");
            report.forbidden(&path, "cannot be used together with spec.api.externalAddress");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str) -> Host {
        let address = address.parse().unwrap();
        Host { address, addresses: vec![address] }
    }

    fn loaded(text: &str) -> Result<ClusterConfig, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("k0s.yaml");
        std::fs::write(&file, text).unwrap();
        let overrides = Overrides { storage: Some(StorageType::Sqlite), data_dir: Path::new("/data") };
        let shown = |error: LoadError| {
            let source = std::error::Error::source(&error).expect("every error of loading has a source");
            format!("{error}: {source}").replace(&file.display().to_string(), "FILE")
        };
        load(&Source::File(file.clone()), &overrides, &host("192.0.2.10"))
            .map(|loaded| loaded.config)
            .map_err(shown)
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        assert_eq!(
            loaded("spec: {api: {port: 0.5, prot: 1}}").unwrap_err(),
            "the configuration from FILE is not valid: spec.api.prot: unknown field, did you mean \"port\"?\n\
             spec.api.port: Invalid value: 0.5: must be a whole number"
        );
        assert_eq!(
            loaded("a: 1\na: 2").unwrap_err(),
            "the configuration from FILE: line 2, column 1: field \"a\" is given twice"
        );
        let missing = Source::File("/nonexistent/k0s.yaml".into());
        let overrides = Overrides { storage: None, data_dir: Path::new("/data") };
        let error = load(&missing, &overrides, &host("192.0.2.10")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the configuration from /nonexistent/k0s.yaml");
    }

    #[test]
    fn the_datastore_comes_from_the_flag_and_the_data_directory() {
        let config = loaded("").unwrap();
        let sqlite = Datastore::Sqlite { file: "/data/db/state.db".into() };
        assert_eq!(config.spec.datastore(Path::new("/data")), Ok(sqlite));
        assert!(ClusterConfig::default().spec.datastore(Path::new("/data")).is_err());
    }

    #[test]
    fn the_primary_family_is_that_of_the_address_the_api_is_known_by() {
        let family = |address: &str, external: Option<&str>| {
            let mut config = ClusterConfig::default_on(&host(address));
            config.spec.api.external_address = external.map(|external| external.parse().unwrap());
            config.spec.primary_address_family()
        };
        assert_eq!(family("192.0.2.1", None), AddressFamily::Ipv4);
        assert_eq!(family("2001:db8::1", None), AddressFamily::Ipv6);
        assert_eq!(family("2001:db8::1", Some("lb.example.com")), AddressFamily::Ipv4);
        assert_eq!(family("192.0.2.1", Some("[2001:db8::1]:443")), AddressFamily::Ipv6);
    }
}
