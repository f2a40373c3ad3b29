//! The paths of a running k0s as its status and its runtime configuration publish them: upstream's `K0sVars`.
//!
//! Invariant: the keys are upstream's, all of them, because k0sctl and scripts read them; paths of parts that this build does
//! not have are where those parts will be. Made from `paths`; read back by commands that look for the running instance.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::paths::Paths;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct K0sVars {
    #[serde(rename = "InvocationID")]
    pub invocation_id: String,
    pub admin_kube_config_path: PathBuf,
    pub bin_dir: PathBuf,
    pub cert_root_dir: PathBuf,
    pub data_dir: PathBuf,
    pub kubelet_root_dir: PathBuf,
    pub etcd_cert_dir: PathBuf,
    pub etcd_data_dir: PathBuf,
    pub kine_socket_path: PathBuf,
    pub konnectivity_socket_dir: PathBuf,
    pub kubelet_auth_config_path: PathBuf,
    pub manifests_dir: PathBuf,
    pub run_dir: PathBuf,
    pub konnectivity_kube_config_path: PathBuf,
    #[serde(rename = "OCIBundleDir")]
    pub oci_bundle_dir: PathBuf,
    pub default_storage_type: String,
    pub runtime_config_path: PathBuf,
    pub status_socket_path: PathBuf,
    pub startup_config_path: PathBuf,
    pub helm_home: PathBuf,
    pub helm_repository_cache: PathBuf,
    pub helm_repository_config: PathBuf,
    /// Ours: where the executables really come from when it is not `BinDir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_bin_dir: Option<PathBuf>,
}

impl K0sVars {
    pub fn new(paths: &Paths, invocation_id: String, startup_config: &Path) -> K0sVars {
        let data = |name: &str| paths.data_dir.join(name);
        let helm_home = data("helmhome");
        K0sVars {
            invocation_id,
            admin_kube_config_path: paths.admin_kubeconfig(),
            bin_dir: paths.staged_bin_dir(),
            cert_root_dir: paths.pki_dir(),
            data_dir: paths.data_dir.clone(),
            kubelet_root_dir: data("kubelet"),
            etcd_cert_dir: paths.pki("etcd"),
            etcd_data_dir: data("etcd"),
            kine_socket_path: paths.datastore_socket(),
            konnectivity_socket_dir: paths.run_dir.join("konnectivity-server"),
            kubelet_auth_config_path: data("kubelet.conf"),
            manifests_dir: paths.manifests_dir(),
            run_dir: paths.run_dir.clone(),
            konnectivity_kube_config_path: paths.pki("konnectivity.conf"),
            oci_bundle_dir: data("images"),
            default_storage_type: "etcd".to_owned(),
            runtime_config_path: paths.runtime_config(),
            status_socket_path: paths.status_socket.clone(),
            startup_config_path: startup_config.to_owned(),
            helm_repository_cache: helm_home.join("cache"),
            helm_repository_config: helm_home.join("repositories.yaml"),
            helm_home,
            external_bin_dir: paths.bin_dir.clone(),
        }
    }

    pub fn paths(&self) -> Paths {
        Paths {
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            status_socket: self.status_socket_path.clone(),
            bin_dir: self.external_bin_dir.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::PathChoices;

    #[test]
    fn keys_are_upstreams_and_paths_survive_the_way_through_them() {
        let paths = Paths::resolve(PathChoices::default(), true).unwrap();
        let vars = K0sVars::new(&paths, "id".into(), Path::new("/etc/k0s/k0s.yaml"));
        assert_eq!(vars.paths(), paths);
        let json = serde_json::to_value(&vars).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys.join(" "),
            "AdminKubeConfigPath BinDir CertRootDir DataDir DefaultStorageType EtcdCertDir EtcdDataDir HelmHome \
             HelmRepositoryCache HelmRepositoryConfig InvocationID KineSocketPath KonnectivityKubeConfigPath \
             KonnectivitySocketDir KubeletAuthConfigPath KubeletRootDir ManifestsDir OCIBundleDir RunDir \
             RuntimeConfigPath StartupConfigPath StatusSocketPath"
        );
    }
}
