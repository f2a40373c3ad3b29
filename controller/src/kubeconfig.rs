//! Kubeconfig files with embedded credentials, as k0s writes and prints them.
//!
//! Invariant: everything a client needs is inside; no path of this machine. Called by `pki` and `cli`; calls nobody.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::pki::certificate::CertifiedKey;

pub struct Kubeconfig<'a> {
    pub server: &'a str,
    pub ca_certificate: &'a str,
    pub client: &'a CertifiedKey,
    pub cluster: &'a str,
    pub context: &'a str,
    pub user: &'a str,
}

impl<'a> Kubeconfig<'a> {
    /// The names k0s gives the parts of its own kubeconfigs.
    pub fn local(server: &'a str, ca_certificate: &'a str, client: &'a CertifiedKey) -> Self {
        Kubeconfig { server, ca_certificate, client, cluster: "local", context: "Default", user: "user" }
    }
}

/// YAML whose strings are written as JSON strings, which YAML contains: no name can break out of its place.
impl fmt::Display for Kubeconfig<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let (cluster, context, user) = (quoted(self.cluster), quoted(self.context), quoted(self.user));
        write!(
            f,
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: {cluster}\n  \
               cluster:\n    \
                 server: {server}\n    \
                 certificate-authority-data: {ca}\n\
             contexts:\n\
             - name: {context}\n  \
               context:\n    \
                 cluster: {cluster}\n    \
                 user: {user}\n\
             current-context: {context}\n\
             users:\n\
             - name: {user}\n  \
               user:\n    \
                 client-certificate-data: {certificate}\n    \
                 client-key-data: {key}\n",
            server = quoted(self.server),
            ca = STANDARD.encode(self.ca_certificate),
            certificate = STANDARD.encode(&self.client.certificate),
            key = STANDARD.encode(&self.client.key),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeconfig_is_yaml_with_embedded_data() {
        let client = CertifiedKey { certificate: "cert".into(), key: "key".into() };
        let text = Kubeconfig {
            context: "it's \"odd\": #1",
            ..Kubeconfig::local("https://localhost:6443", "ca", &client)
        }
        .to_string();
        let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(value["current-context"], "it's \"odd\": #1");
        assert_eq!(value["clusters"][0]["cluster"]["server"], "https://localhost:6443");
        assert_eq!(value["contexts"][0]["context"]["user"], "user");
        assert_eq!(value["users"][0]["user"]["client-key-data"], "a2V5");
    }
}
