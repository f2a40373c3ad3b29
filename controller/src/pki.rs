//! The cluster's certificates, keys and kubeconfigs below `<data>/pki`.
//!
//! Invariant: everything new is made in memory first, then written key before certificate, each file atomically. A crash at
//! any point leaves pairs that the next start recognises as incomplete and completes: a CA from its key, a leaf by issuing
//! it again. What a user put there (a CA, a service-account key) is used and never replaced. Called by `run` and `cli`;
//! calls `certificate`, `kubeconfig`, `durable_file`. It starts nothing and reads no configuration.

pub mod certificate;
pub mod names;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{KeyPair, PublicKeyData};
use time::OffsetDateTime;

use crate::durable_file::{self, Access, FileError, Owner};
use crate::kubeconfig::Kubeconfig;
use certificate::{Authority, CertificateError, CertifiedKey, Defect, LeafWish, Subject};
use names::Name;

const DIRECTORY_MODE: u32 = 0o751;
const CERTIFICATE_MODE: u32 = 0o644;
const KEY_MODE: u32 = 0o640;
const KUBECONFIG_MODE: u32 = 0o600;

/// An authority is not renewed by itself (everything that trusts it would have to change), so its end is announced early.
const AUTHORITY_END_ANNOUNCED: Duration = Duration::from_secs(180 * 24 * 3600);

/// Whom files belong to; all `None` when an ordinary user runs k0s.
#[derive(Debug, Clone, Copy, Default)]
pub struct Owners {
    pub root: Option<Owner>,
    pub kube_apiserver: Option<Owner>,
    pub kube_scheduler: Option<Owner>,
}

/// What this node's PKI must provide.
#[derive(Debug, Clone)]
pub struct Request {
    pub server_names: BTreeSet<Name>,
    pub authority_lifetime: Duration,
    pub leaf_lifetime: Duration,
    pub owners: Owners,
    /// How this node's own components reach the API server.
    pub local_api_url: String,
}

/// One line for the log: what was made, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    AuthorityCreated { name: &'static str },
    AuthorityEnds { name: &'static str, on: OffsetDateTime },
    LeafIssued { name: &'static str, because: Defect },
    ServiceAccountKeyCreated,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::AuthorityCreated { name } => write!(f, "created the CA {name}"),
            Change::AuthorityEnds { name, on } => {
                write!(f, "the CA {name}.crt expires on {on} and must be replaced before")
            }
            Change::LeafIssued { name, because } => write!(f, "issued certificate {name}: {because}"),
            Change::ServiceAccountKeyCreated => f.write_str("created the service-account key"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} cannot be used")]
    Unusable { path: PathBuf, source: CertificateError },
    #[error(
        "{certificate} is there, its key {key} is not: put the key beside it, or remove the certificate to have a new CA made"
    )]
    AuthorityWithoutKey { certificate: PathBuf, key: PathBuf },
    #[error(
        "{certificate} and {key} are not both there: is this the data directory of a controller (--data-dir)?"
    )]
    NoAuthority { certificate: PathBuf, key: PathBuf },
    #[error("the name {name:?} cannot be used for a client certificate: {reason}")]
    UserName { name: String, reason: &'static str },
    #[error("cannot make certificates")]
    Generate(#[from] CertificateError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Root,
    KubeApiserver,
    KubeScheduler,
}

impl Owners {
    fn of(&self, holder: Holder) -> Option<Owner> {
        match holder {
            Holder::Root => self.root,
            Holder::KubeApiserver => self.kube_apiserver,
            Holder::KubeScheduler => self.kube_scheduler,
        }
    }
}

struct AuthorityFile {
    name: &'static str,
    common_name: &'static str,
    key_owner: Holder,
}

/// kube-controller-manager signs with the cluster CA's key and runs as kube-apiserver's user.
const CLUSTER_CA: AuthorityFile =
    AuthorityFile { name: "ca", common_name: "kubernetes-ca", key_owner: Holder::KubeApiserver };
const FRONT_PROXY_CA: AuthorityFile = AuthorityFile {
    name: "front-proxy-ca",
    common_name: "kubernetes-front-proxy-ca",
    key_owner: Holder::Root,
};
const AUTHORITIES: [AuthorityFile; 2] = [CLUSTER_CA, FRONT_PROXY_CA];

struct LeafFile {
    name: &'static str,
    /// Index into `AUTHORITIES`.
    authority: usize,
    common_name: &'static str,
    organization: &'static str,
    /// Whether it carries the API server's names.
    serves: bool,
    owner: Holder,
    /// The kubeconfig that embeds it.
    kubeconfig: Option<&'static str>,
}

const LEAVES: [LeafFile; 6] = [
    LeafFile {
        name: "front-proxy-client",
        authority: 1,
        common_name: "front-proxy-client",
        organization: "front-proxy-client",
        serves: false,
        owner: Holder::KubeApiserver,
        kubeconfig: None,
    },
    LeafFile {
        name: "apiserver-kubelet-client",
        authority: 0,
        common_name: "apiserver-kubelet-client",
        organization: "system:masters",
        serves: false,
        owner: Holder::KubeApiserver,
        kubeconfig: None,
    },
    LeafFile {
        name: "server",
        authority: 0,
        common_name: "kubernetes",
        organization: "kubernetes",
        serves: true,
        owner: Holder::KubeApiserver,
        kubeconfig: None,
    },
    LeafFile {
        name: "admin",
        authority: 0,
        common_name: "kubernetes-admin",
        organization: "system:masters",
        serves: false,
        owner: Holder::Root,
        kubeconfig: Some("admin.conf"),
    },
    LeafFile {
        name: "ccm",
        authority: 0,
        common_name: "system:kube-controller-manager",
        organization: "system:kube-controller-manager",
        serves: false,
        owner: Holder::KubeApiserver,
        kubeconfig: Some("ccm.conf"),
    },
    LeafFile {
        name: "scheduler",
        authority: 0,
        common_name: "system:kube-scheduler",
        organization: "system:kube-scheduler",
        serves: false,
        owner: Holder::KubeScheduler,
        kubeconfig: Some("scheduler.conf"),
    },
];

const SERVICE_ACCOUNT_KEY: &str = "sa.key";
const SERVICE_ACCOUNT_PUBLIC_KEY: &str = "sa.pub";

/// Creates what is missing, renews what nears its end, corrects modes and owners.
pub fn reconcile(dir: &Path, request: &Request, now: OffsetDateTime) -> Result<Vec<Change>, PkiError> {
    durable_file::ensure_directory(dir, Access::owned_by(DIRECTORY_MODE, request.owners.root))?;
    let mut changes = Vec::new();

    let found: Vec<FoundAuthority> =
        AUTHORITIES.iter().map(|file| FoundAuthority::read(dir, file)).collect::<Result<_, _>>()?;
    let service_account = read(&dir.join(SERVICE_ACCOUNT_KEY))?;
    // Keys take nearly all the time a first start needs here, so all that may be wanted are made at once.
    let mut keys = generate_keys(keys_wanted(&found, dir, service_account.is_none())?)?.into_iter();
    let mut next_key = || match keys.next() {
        Some(key) => Ok(key),
        None => certificate::generate_key(),
    };

    let mut authorities = Vec::new();
    let mut writes = Vec::new();
    for (file, found) in AUTHORITIES.iter().zip(found) {
        let (authority, created) = found.into_authority(dir, file, request, now, &mut next_key)?;
        if created {
            changes.push(Change::AuthorityCreated { name: file.name });
        }
        if authority.not_after() < now + AUTHORITY_END_ANNOUNCED {
            changes.push(Change::AuthorityEnds { name: file.name, on: authority.not_after() });
        }
        writes.push(Pair {
            name: file.name,
            pem: authority.pem.clone(),
            key_owner: file.key_owner,
            certificate_owner: Holder::Root,
        });
        authorities.push(authority);
    }
    for file in &LEAVES {
        let authority = &authorities[file.authority];
        let wish = file.wish(request);
        let found = read_pair(dir, file.name)?;
        let defect = match &found {
            Some(pem) => authority.defect(pem, &wish, now),
            None => Some(Defect::Missing),
        };
        let pem = match (found, defect) {
            (Some(pem), None) => pem,
            (_, defect) => {
                let because = defect.unwrap_or(Defect::Missing);
                changes.push(Change::LeafIssued { name: file.name, because });
                authority.issue(&wish, &next_key()?, now)?
            }
        };
        writes.push(Pair { name: file.name, pem, key_owner: file.owner, certificate_owner: file.owner });
    }
    let service_account = match service_account {
        Some(pem) => pem,
        None => {
            changes.push(Change::ServiceAccountKeyCreated);
            next_key()?.serialize_pem()
        }
    };

    write_service_account(dir, &service_account, request)?;
    for pair in &writes {
        pair.write(dir, &request.owners)?;
    }
    write_kubeconfigs(dir, &authorities[0].pem.certificate, &writes, request)?;
    Ok(changes)
}

/// Issues a client certificate for a person or a program and keeps it as `<pki>/<user>.{crt,key}`.
pub fn issue_client(
    dir: &Path,
    user: &str,
    groups: Option<&str>,
    lifetime: Duration,
    now: OffsetDateTime,
) -> Result<(CertifiedKey, String), PkiError> {
    check_user_name(user)?;
    let (ca_certificate, ca_key) = pair_paths(dir, CLUSTER_CA.name);
    let Some(ca) = read_pair(dir, CLUSTER_CA.name)? else {
        return Err(PkiError::NoAuthority { certificate: ca_certificate, key: ca_key });
    };
    let ca =
        Authority::load(ca, now).map_err(|source| PkiError::Unusable { path: ca_certificate, source })?;
    let wish = LeafWish {
        subject: Subject {
            common_name: user.to_owned(),
            organization: groups.filter(|g| !g.is_empty()).map(str::to_owned),
        },
        names: BTreeSet::new(),
        lifetime,
    };
    let pem = ca.issue(&wish, &certificate::generate_key()?, now)?;
    durable_file::replace(&dir.join(format!("{user}.key")), pem.key.as_bytes(), Access::new(KEY_MODE))?;
    durable_file::replace(
        &dir.join(format!("{user}.crt")),
        pem.certificate.as_bytes(),
        Access::new(CERTIFICATE_MODE),
    )?;
    Ok((pem, ca.pem.certificate))
}

/// The name becomes a file name, and must not become one of ours.
fn check_user_name(user: &str) -> Result<(), PkiError> {
    let taken = AUTHORITIES.iter().map(|a| a.name).chain(LEAVES.iter().map(|l| l.name)).chain([
        "sa",
        "k0s-api",
        "konnectivity",
        "apiserver-etcd-client",
    ]);
    let reason = if user.is_empty() || user.starts_with('.') {
        "it is empty or begins with a dot"
    } else if user.contains(['/', '\0']) {
        "it contains a character that a file name cannot have"
    } else if taken.into_iter().any(|name| name == user) {
        "k0s keeps a certificate of its own under this name"
    } else {
        return Ok(());
    };
    Err(PkiError::UserName { name: user.to_owned(), reason })
}

impl LeafFile {
    fn wish(&self, request: &Request) -> LeafWish {
        LeafWish {
            subject: Subject {
                common_name: self.common_name.to_owned(),
                organization: Some(self.organization.to_owned()),
            },
            names: if self.serves { request.server_names.clone() } else { BTreeSet::new() },
            lifetime: request.leaf_lifetime,
        }
    }
}

enum FoundAuthority {
    Nothing,
    /// The certificate never reached the disk: it is made again from the key.
    Key(String),
    Pair(CertifiedKey),
}

impl FoundAuthority {
    fn read(dir: &Path, file: &AuthorityFile) -> Result<FoundAuthority, PkiError> {
        let (certificate, key) = pair_paths(dir, file.name);
        match (read(&certificate)?, read(&key)?) {
            (None, None) => Ok(FoundAuthority::Nothing),
            (None, Some(key)) => Ok(FoundAuthority::Key(key)),
            (Some(certificate), Some(key)) => Ok(FoundAuthority::Pair(CertifiedKey { certificate, key })),
            (Some(_), None) => Err(PkiError::AuthorityWithoutKey { certificate, key }),
        }
    }

    /// The second value tells whether it is new.
    fn into_authority(
        self,
        dir: &Path,
        file: &AuthorityFile,
        request: &Request,
        now: OffsetDateTime,
        next_key: &mut impl FnMut() -> Result<KeyPair, CertificateError>,
    ) -> Result<(Authority, bool), PkiError> {
        let (certificate_path, key_path) = pair_paths(dir, file.name);
        let create = |key_pem| Authority::create(file.common_name, key_pem, request.authority_lifetime, now);
        match self {
            FoundAuthority::Nothing => Ok((create(next_key()?.serialize_pem())?, true)),
            FoundAuthority::Key(pem) => {
                let created = create(pem).map_err(|source| PkiError::Unusable { path: key_path, source })?;
                Ok((created, true))
            }
            FoundAuthority::Pair(pem) => {
                let authority = Authority::load(pem, now)
                    .map_err(|source| PkiError::Unusable { path: certificate_path, source })?;
                Ok((authority, false))
            }
        }
    }
}

/// A certificate and key on their way to disk.
struct Pair {
    name: &'static str,
    pem: CertifiedKey,
    key_owner: Holder,
    certificate_owner: Holder,
}

impl Pair {
    fn write(&self, dir: &Path, owners: &Owners) -> Result<(), FileError> {
        let (certificate, key) = pair_paths(dir, self.name);
        let key_access = Access::owned_by(KEY_MODE, owners.of(self.key_owner));
        durable_file::ensure(&key, self.pem.key.as_bytes(), key_access)?;
        let access = Access::owned_by(CERTIFICATE_MODE, owners.of(self.certificate_owner));
        durable_file::ensure(&certificate, self.pem.certificate.as_bytes(), access)
    }
}

fn write_service_account(dir: &Path, pem: &str, request: &Request) -> Result<(), PkiError> {
    let path = dir.join(SERVICE_ACCOUNT_KEY);
    let public =
        certificate::read_key(pem).map_err(|source| PkiError::Unusable { path: path.clone(), source })?;
    let owner = request.owners.kube_apiserver;
    durable_file::ensure(&path, pem.as_bytes(), Access::owned_by(KEY_MODE, owner))?;
    let public_pem = pem_block("PUBLIC KEY", &public.subject_public_key_info());
    let public_path = dir.join(SERVICE_ACCOUNT_PUBLIC_KEY);
    let access = Access::owned_by(CERTIFICATE_MODE, owner);
    match read(&public_path)? {
        // It may hold older keys, too, so that the tokens they signed stay valid.
        Some(found) if without_blanks(&found).contains(&without_blanks(&public_pem)) => {
            durable_file::set_access(&public_path, access)?;
        }
        _ => durable_file::ensure(&public_path, public_pem.as_bytes(), access)?,
    }
    Ok(())
}

fn without_blanks(pem: &str) -> String {
    pem.split_whitespace().collect()
}

fn write_kubeconfigs(dir: &Path, ca: &str, pairs: &[Pair], request: &Request) -> Result<(), PkiError> {
    for file in &LEAVES {
        let Some(name) = file.kubeconfig else { continue };
        let pair = pairs
            .iter()
            .find(|pair| pair.name == file.name)
            .expect("a pair was made for every entry of the table");
        let text = Kubeconfig::local(&request.local_api_url, ca, &pair.pem).to_string();
        let access = Access::owned_by(KUBECONFIG_MODE, request.owners.of(file.owner));
        durable_file::ensure(&dir.join(name), text.as_bytes(), access)?;
    }
    Ok(())
}

/// How many keys a start surely needs: those of pairs that are not there. Renewals make theirs one by one.
fn keys_wanted(found: &[FoundAuthority], dir: &Path, service_account: bool) -> Result<usize, PkiError> {
    let mut wanted = usize::from(service_account);
    wanted += found.iter().filter(|f| matches!(f, FoundAuthority::Nothing)).count();
    for file in &LEAVES {
        wanted += usize::from(read_pair(dir, file.name)?.is_none());
    }
    Ok(wanted)
}

fn generate_keys(count: usize) -> Result<Vec<KeyPair>, CertificateError> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(certificate::generate_key)).collect();
        threads.into_iter().map(|thread| thread.join().expect("key generation does not panic")).collect()
    })
}

fn pair_paths(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")))
}

fn read_pair(dir: &Path, name: &str) -> Result<Option<CertifiedKey>, PkiError> {
    let (certificate, key) = pair_paths(dir, name);
    Ok(match (read(&certificate)?, read(&key)?) {
        (Some(certificate), Some(key)) => Some(CertifiedKey { certificate, key }),
        _ => None,
    })
}

/// Bytes that are no text are as bad as text that is no PEM, and that is judged elsewhere.
fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::on("read", path)(error)),
    }
}

fn pem_block(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests;
