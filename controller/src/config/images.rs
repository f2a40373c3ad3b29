//! `spec.images`: where the images of the cluster's own workloads come from.
//!
//! Holds what the user wrote, `repository` apart from the images, so that what is written back reads the same again.

use serde_json::Value;

use super::field::{choice, section};
use super::problem::{FieldPath, Report, quoted};
use crate::release;

const CALICO_TAG: &str = "v3.32.1-2";

section! {
    pub struct Images {
        konnectivity "konnectivity": Image =
            Image::new("quay.io/k0sproject/apiserver-network-proxy-agent", "v0.36.0-k0s.0"),
        pushgateway "pushgateway": Image = Image::new("quay.io/k0sproject/pushgateway-ttl", "1.4.0-k0s.2"),
        metrics_server "metricsserver": Image = Image::new("quay.io/k0sproject/metrics-server", "v0.9.0-k0s.0"),
        kube_proxy "kubeproxy": Image = Image::new("quay.io/k0sproject/kube-proxy", &kubernetes_tag()),
        coredns "coredns": Image = Image::new("quay.io/k0sproject/coredns", "1.14.6-k0s.0"),
        pause "pause": Image = Image::new("quay.io/k0sproject/pause", "3.10.2-0"),
        calico "calico": CalicoImages = CalicoImages::default(),
        kube_router "kuberouter": KubeRouterImages = KubeRouterImages::default(),
        windows "windows": WindowsImages = WindowsImages::default(),
        /// Host (and path) that replaces the host of every image.
        repository "repository": String = String::new(),
        default_pull_policy "default_pull_policy" (zero_is_default): PullPolicy = PullPolicy::IfNotPresent,
    }
}

section! {
    pub struct CalicoImages {
        cni "cni": Image = Image::new("quay.io/k0sproject/calico-cni", CALICO_TAG),
        node "node": Image = Image::new("quay.io/k0sproject/calico-node", CALICO_TAG),
        kube_controllers "kubecontrollers": Image =
            Image::new("quay.io/k0sproject/calico-kube-controllers", CALICO_TAG),
        windows "windows": CalicoWindowsImages = CalicoWindowsImages::default(),
    }
}

section! {
    pub struct CalicoWindowsImages {
        cni "cni": Image = Image::new("docker.io/calico/cni-windows", "v3.32.1"),
        node "node": Image = Image::new("docker.io/calico/node-windows", "v3.32.1"),
    }
}

section! {
    pub struct KubeRouterImages {
        cni "cni": Image = Image::new("quay.io/k0sproject/kube-router", "v2.10.0-iptables1.8.13-k0s.1"),
        cni_installer "cniInstaller": Image = Image::new("quay.io/k0sproject/cni-node", "v1.9.1-k0s.1-mac-pinning"),
    }
}

section! {
    pub struct WindowsImages {
        pause "pause": Image = Image::new("registry.k8s.io/pause", "3.10.2"),
        kube_proxy "kubeproxy": Image =
            Image::new("docker.io/sigwindowstools/kube-proxy", &format!("{}-calico-hostprocess", kubernetes_tag())),
    }
}

choice! {
    pub enum PullPolicy {
        IfNotPresent = "IfNotPresent",
        Always = "Always",
        Never = "Never",
    }
}

section! {
    pub struct Image: rules {
        image "image": String = String::new(),
        /// Tag, optionally followed by `@` and a digest.
        version "version": String = String::new(),
    }
}

impl Image {
    pub fn new(image: &str, version: &str) -> Self {
        Self { image: image.to_owned(), version: version.to_owned() }
    }

    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if self.image.is_empty() {
            report.required(&at.child("image"), "must be specified");
        } else if self.image.trim() != self.image {
            let detail = "must not have leading or trailing whitespace";
            report.invalid(&at.child("image"), quoted(&self.image), detail);
        }
        if !is_version(&self.version) {
            let detail = "must be a tag, optionally followed by @ and a digest";
            report.invalid(&at.child("version"), quoted(&self.version), detail);
        }
    }
}

/// Tag of the kube-proxy images: the Kubernetes release this build runs.
fn kubernetes_tag() -> String {
    format!("v{}", release::KUBERNETES)
}

/// A tag (`[\w][\w.-]{0,127}`), optionally with `@algorithm:hex`.
fn is_version(version: &str) -> bool {
    const TAG_MAX: usize = 128;
    let (tag, digest) = version.split_once('@').map_or((version, None), |(tag, digest)| (tag, Some(digest)));
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.starts_with(word)
        && tag.len() <= TAG_MAX
        && tag.chars().all(|c| word(c) || c == '.' || c == '-')
        && digest.is_none_or(is_digest)
}

fn is_digest(digest: &str) -> bool {
    const HEX_MIN: usize = 32;
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let part_ok = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.chars().all(|c| c.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(part_ok)
        && hex.len() >= HEX_MIN
        && hex.bytes().all(|c| c.is_ascii_hexdigit())
}

/// Takes images out of a written configuration, as `config create` shows it by default.
pub fn without_images(config: &mut Value) {
    if let Some(spec) = config.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("images");
    }
    for proxy in ["envoyProxy", "traefik"] {
        let path = format!("/spec/network/nodeLocalLoadBalancing/{proxy}");
        if let Some(proxy) = config.pointer_mut(&path).and_then(Value::as_object_mut) {
            proxy.remove("image");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_tags_with_an_optional_digest() {
        let digest = format!("v1@sha256:{}", "0a".repeat(32));
        for good in ["v1.2.3", "1", "_x", "v2.10.0-iptables1.8.13-k0s.1", &digest] {
            assert!(is_version(good), "{good:?}");
        }
        let long = "a".repeat(129);
        for bad in ["", "-1", ".1", "a b", "a:b", "v1@", "v1@sha256:", "v1@sha256:00", "@sha256:00", &long] {
            assert!(!is_version(bad), "{bad:?}");
        }
    }
}
