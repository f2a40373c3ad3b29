//! Gathers what the plan and the certificates depend on, and makes the directories.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::{self, ServiceCidrTooSmall, Spec};
use crate::durable_file::{self, Access};
use crate::executables::{MissingExecutable, SearchPath};
use crate::paths::Paths;
use crate::pki;
use crate::pki::names::{ServerNameFacts, server_names};
use crate::plan::{self, Disableable, Executables};

use super::RunError;

const DIRECTORY_MODE: u32 = 0o755;

/// Directories that are there already keep their mode: the user may have made them.
pub fn create_directories(paths: &Paths) -> Result<(), RunError> {
    let create = |path: &Path, flag| {
        let created = match path.is_dir() {
            true => durable_file::check_writable(path),
            false => durable_file::ensure_directory(path, Access::new(DIRECTORY_MODE)),
        };
        created.map_err(|source| RunError::Directory { path: path.to_owned(), flag, source })
    };
    create(&paths.data_dir, "--data-dir")?;
    create(&paths.staged_bin_dir(), "--data-dir")?;
    create(&paths.manifests_dir(), "--data-dir")?;
    create(&paths.run_dir, "--run-dir")
}

pub fn executables(
    paths: &Paths,
    disabled: &BTreeSet<Disableable>,
) -> Result<Executables, MissingExecutable> {
    let search = SearchPath::of(paths);
    let unless_disabled = |name: &'static str| match disabled.iter().any(|d| d.name() == name) {
        true => Ok(PathBuf::new()),
        false => search.find(name),
    };
    Ok(Executables {
        kube_apiserver: search.find(plan::KUBE_APISERVER)?,
        kube_controller_manager: unless_disabled(plan::KUBE_CONTROLLER_MANAGER)?,
        kube_scheduler: unless_disabled(plan::KUBE_SCHEDULER)?,
    })
}

pub fn pki_request(
    spec: &Spec,
    host: &config::Host,
    owners: pki::Owners,
) -> Result<pki::Request, ServiceCidrTooSmall> {
    let service_addresses = spec.network.api_service_addresses(spec.primary_address_family())?;
    let names = ServerNameFacts {
        cluster_domain: &spec.network.cluster_domain,
        configured: &spec.api.names(),
        service_addresses: &service_addresses,
        local_addresses: &host.addresses,
    };
    let lifetime = |duration: config::GoDuration| {
        duration.to_std().expect("a lifetime that is not positive is refused when the configuration is read")
    };
    Ok(pki::Request {
        server_names: server_names(&names),
        authority_lifetime: lifetime(spec.api.ca.expires_after),
        leaf_lifetime: lifetime(spec.api.ca.certificates_expire_after),
        owners,
        local_api_url: spec.api.local_url(),
    })
}

/// Variables that are not UTF-8 are not passed on.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// 32 hex digits, new for every run.
pub fn invocation_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
