//! `k0s kubeconfig admin` and `k0s kubeconfig create`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::instance::{self, Located};
use super::{LogFlags, PathFlags};
use crate::config::{GoDuration, Source};
use crate::kubeconfig::Kubeconfig as Document;
use crate::pki::{self, certificate::CertifiedKey};

#[derive(Debug, Args)]
pub struct Kubeconfig {
    #[command(flatten)]
    paths: PathFlags,
    #[command(flatten)]
    logs: LogFlags,
    #[command(subcommand)]
    command: KubeconfigCommand,
}

#[derive(Debug, Subcommand)]
enum KubeconfigCommand {
    /// Print the administrator's kubeconfig, for use from other machines
    Admin,
    /// Issue a certificate for a user and print a kubeconfig with it
    Create(Create),
}

#[derive(Debug, Args)]
struct Create {
    /// The user's name in Kubernetes
    user: String,
    /// Configuration file; - is standard input
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The user's group in Kubernetes, put into the certificate as it is
    #[arg(long, default_value = "", hide_default_value = true)]
    groups: String,
    /// How long the certificate is valid
    #[arg(long, value_name = "DURATION", default_value = "8760h")]
    certificate_expires_after: GoDuration,
    /// Name of the cluster and the context in the kubeconfig
    #[arg(long, value_name = "NAME", default_value = "k0s")]
    context_name: String,
}

impl Kubeconfig {
    pub fn run(self) -> anyhow::Result<()> {
        self.logs.install();
        let located = instance::locate(self.paths.choices())?;
        match self.command {
            KubeconfigCommand::Admin => admin(&located),
            KubeconfigCommand::Create(create) => create.run(&located),
        }
    }
}

impl Create {
    fn run(self, located: &Located) -> anyhow::Result<()> {
        let Create { user, config, groups, certificate_expires_after, context_name } = self;
        let server = located.config(&Source::from_flag(config.as_deref()))?.spec.api.url();
        let lifetime = certificate_expires_after
            .to_std()
            .filter(|lifetime| !lifetime.is_zero())
            .context("--certificate-expires-after must be greater than 0")?;
        let pki = located.paths.pki_dir();
        let (client, ca) =
            pki::issue_client(&pki, &user, Some(&groups), lifetime, OffsetDateTime::now_utc())?;
        let document = Document {
            server: &server,
            ca_certificate: &ca,
            client: &client,
            cluster: &context_name,
            context: &context_name,
            user: &user,
        };
        super::print(&document.to_string())
    }
}

fn admin(located: &Located) -> anyhow::Result<()> {
    let server = located.config(&Source::Default)?.spec.api.url();
    let read = |file: &str| {
        let path = located.paths.pki(file);
        fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}: is this the data directory of a controller (--data-dir)?",
                path.display()
            )
        })
    };
    let ca = read("ca.crt")?;
    let client = CertifiedKey { certificate: read("admin.crt")?, key: read("admin.key")? };
    super::print(&Document::local(&server, &ca, &client).to_string())
}
