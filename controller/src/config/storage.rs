//! `spec.storage`: where the cluster's state is kept.
//!
//! The file knows upstream's types `etcd` and `kine`, and ours, which name a kind of datastore directly:
//!
//! | type | datastore |
//! |---|---|
//! | `etcd` | ours, replicated by raft; with `etcd.externalCluster`, the etcd it names |
//! | `raft` | ours, replicated by raft |
//! | `kine` | by the scheme of `kine.dataSource`; SQLite if there is none |
//! | `sqlite`, `postgres`, `mysql` | that one; `kine.dataSource` must agree |
//!
//! `--storage=TYPE` is short for `spec.storage.type`. [`Storage::datastore`] is the one place where all this becomes a
//! [`Datastore`]; nothing else looks at types or schemes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::address::is_host;
use super::api::CertificateAuthority;
use super::field::{choice, section};
use super::problem::{FieldError, FieldPath, Report, quoted};
use super::secret::{HIDDEN, Secret};

section! {
    pub struct Storage: rules {
        kind "type" (zero_is_default): StorageType = StorageType::Etcd,
        etcd "etcd": Etcd = Etcd::default(),
        kine "kine": Option<Kine> = None,
    }
}

choice! {
    pub enum StorageType {
        Etcd = "etcd",
        Kine = "kine",
        Sqlite = "sqlite",
        Postgres = "postgres",
        Mysql = "mysql",
        Raft = "raft",
    }
}

section! {
    pub struct Etcd: rules {
        /// By default the host's first public address.
        peer_address "peerAddress" (zero_is_default): String = "127.0.0.1".to_owned(),
        extra_args "extraArgs": BTreeMap<String, String> = BTreeMap::new(),
        raw_args "rawArgs": Vec<String> = Vec::new(),
        ca "ca": CertificateAuthority = CertificateAuthority::default(),
        external_cluster "externalCluster": Option<ExternalCluster> = None,
    }
}

section! {
    pub struct ExternalCluster: rules {
        endpoints "endpoints": Vec<String> = Vec::new(),
        etcd_prefix "etcdPrefix": String = String::new(),
        /// All three or none; none means no TLS.
        ca_file "caFile": String = String::new(),
        client_cert_file "clientCertFile": String = String::new(),
        client_key_file "clientKeyFile": String = String::new(),
    }
}

section! {
    pub struct Kine {
        /// `sqlite://…`, `postgres://…`, `mysql://…`, …; empty: SQLite in the data directory.
        data_source "dataSource": Secret = Secret::default(),
        extra_args "extraArgs": BTreeMap<String, String> = BTreeMap::new(),
        raw_args "rawArgs": Vec<String> = Vec::new(),
    }
}

/// What `spec.storage` means.
#[derive(Clone, Debug, PartialEq)]
pub enum Datastore {
    Sqlite { file: PathBuf },
    Postgres { data_source: Secret },
    Mysql { data_source: Secret },
    Raft,
    ExternalEtcd(ExternalCluster),
}

/// A kind of [`Datastore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatastoreKind {
    Sqlite,
    Postgres,
    Mysql,
    Raft,
    ExternalEtcd,
}

impl Datastore {
    pub fn kind(&self) -> DatastoreKind {
        match self {
            Self::Sqlite { .. } => DatastoreKind::Sqlite,
            Self::Postgres { .. } => DatastoreKind::Postgres,
            Self::Mysql { .. } => DatastoreKind::Mysql,
            Self::Raft => DatastoreKind::Raft,
            Self::ExternalEtcd(_) => DatastoreKind::ExternalEtcd,
        }
    }
}

impl fmt::Display for DatastoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
            Self::Mysql => "MySQL",
            Self::Raft => "raft",
            Self::ExternalEtcd => "external etcd",
        })
    }
}

/// Not the name of a storage type.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown storage {0:?}: must be one of sqlite, postgres, mysql, raft, etcd, kine")]
pub struct UnknownStorage(String);

/// As in `--storage=sqlite`.
impl FromStr for StorageType {
    type Err = UnknownStorage;

    fn from_str(name: &str) -> Result<Self, UnknownStorage> {
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| UnknownStorage(name.to_owned()))
    }
}

impl Storage {
    /// Applies `--storage`. A file that only carries the defaults, as `config create` writes them, gives way; one that
    /// chose something else does not.
    pub fn choose(&mut self, flag: StorageType, at: &FieldPath, report: &mut Report) {
        let chosen_by_file = self.kind != StorageType::Etcd || !self.etcd.is_plain();
        if chosen_by_file && self.kind != flag && !self.is_kine_for(flag) {
            let detail =
                format!("the file says {:?} but --storage says {:?}", self.kind.as_str(), flag.as_str());
            report.forbidden(&at.child("type"), detail);
            return;
        }
        self.kind = flag;
    }

    fn is_kine_for(&self, flag: StorageType) -> bool {
        let scheme = scheme_of(self.data_source());
        self.kind == StorageType::Kine && scheme_matches(flag, scheme.unwrap_or("sqlite"))
    }

    fn data_source(&self) -> &str {
        self.kine.as_ref().map_or("", |kine| kine.data_source.reveal())
    }

    /// What all this means.
    ///
    /// # Errors
    /// If the data source cannot be understood or does not fit the type.
    pub fn datastore(&self, data_dir: &Path) -> Result<Datastore, FieldError> {
        match (self.kind, &self.etcd.external_cluster) {
            (StorageType::Etcd, Some(external)) => Ok(Datastore::ExternalEtcd(external.clone())),
            (StorageType::Etcd | StorageType::Raft, _) => Ok(Datastore::Raft),
            (kind, _) => self.database(kind, data_dir),
        }
    }

    fn database(&self, kind: StorageType, data_dir: &Path) -> Result<Datastore, FieldError> {
        let source = self.data_source();
        let path = FieldPath::from("spec.storage.kine.dataSource");
        if source.is_empty() {
            return match kind {
                StorageType::Kine | StorageType::Sqlite => {
                    Ok(Datastore::Sqlite { file: data_dir.join("db").join("state.db") })
                }
                _ => Err(FieldError::Required {
                    path,
                    detail: format!("storage type {kind} needs a data source"),
                }),
            };
        }
        let Some(scheme) = scheme_of(source) else {
            let detail = "must start with a scheme such as sqlite://".to_owned();
            return Err(FieldError::Invalid { path, value: HIDDEN.to_owned(), detail });
        };
        if kind != StorageType::Kine && !scheme_matches(kind, scheme) {
            let detail = format!("does not fit storage type {kind}");
            return Err(FieldError::Invalid { path, value: quoted(&format!("{scheme}://…")), detail });
        }
        match scheme {
            "sqlite" => sqlite_file(&source["sqlite://".len()..], data_dir, path),
            "postgres" | "postgresql" => Ok(Datastore::Postgres { data_source: source.to_owned().into() }),
            "mysql" => Ok(Datastore::Mysql { data_source: source.to_owned().into() }),
            _ => {
                let supported = ["sqlite", "postgres", "mysql"].map(quoted).join(", ");
                Err(FieldError::Unsupported { path, value: quoted(scheme), supported })
            }
        }
    }

    /// What is set for another type has no effect, upstream neither; say so.
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        let etcd_is_used = matches!(self.kind, StorageType::Etcd | StorageType::Raft);
        let unused = [
            ("etcd", !etcd_is_used && !self.etcd.is_plain()),
            ("etcd.externalCluster", self.kind == StorageType::Raft && self.etcd.external_cluster.is_some()),
            ("kine", etcd_is_used && self.kine.as_ref().is_some_and(|kine| *kine != Kine::default())),
        ];
        for (name, _) in unused.into_iter().filter(|(_, is_unused)| *is_unused) {
            report.warn(format!("{at}.{name} is not used with storage type {}", self.kind));
        }
    }
}

fn scheme_of(data_source: &str) -> Option<&str> {
    data_source.split_once("://").map(|(scheme, _)| scheme)
}

fn scheme_matches(kind: StorageType, scheme: &str) -> bool {
    match kind {
        StorageType::Sqlite => scheme == "sqlite",
        StorageType::Postgres => matches!(scheme, "postgres" | "postgresql"),
        StorageType::Mysql => scheme == "mysql",
        StorageType::Kine => true,
        StorageType::Etcd | StorageType::Raft => false,
    }
}

/// Settings of kine's SQLite driver that ask for what our backend does anyway, or that only tune that driver.
fn is_harmless_setting(name: &str, value: &str) -> bool {
    match name {
        "mode" => value == "rwc" || value == "rw",
        "_journal" | "_journal_mode" => value.eq_ignore_ascii_case("WAL"),
        "_synchronous" | "_sync" => {
            ["FULL", "2", "NORMAL", "1"].iter().any(|level| value.eq_ignore_ascii_case(level))
        }
        "cache" | "_busy_timeout" | "_timeout" | "_txlock" => true,
        _ => false,
    }
}

/// The file of a SQLite data source: a path or a `file:` URI, relative to the data directory, with settings after `?`.
fn sqlite_file(source: &str, data_dir: &Path, path: FieldPath) -> Result<Datastore, FieldError> {
    let (file, settings) = source.split_once('?').unwrap_or((source, ""));
    // The settings may contain a password.
    let shown = quoted(&format!("sqlite://{file}"));
    let invalid = |detail: String| FieldError::Invalid { path: path.clone(), value: shown.clone(), detail };
    let is_uri = file.starts_with("file:");
    let file = match file.strip_prefix("file:") {
        // `file:///path` and `file://localhost/path` are absolute, `file:path` is not.
        Some(uri) => uri.strip_prefix("//localhost").or_else(|| uri.strip_prefix("//")).unwrap_or(uri),
        None => file,
    };
    for setting in settings.split('&').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        if !is_harmless_setting(name, value) {
            return Err(invalid(format!("setting {} is not supported with this value", quoted(name))));
        }
    }
    if file.is_empty() || file == ":memory:" {
        return Err(invalid("must name a file".to_owned()));
    }
    if is_uri && file.contains('%') {
        return Err(invalid("percent escapes are not supported".to_owned()));
    }
    // A relative path is relative to the working directory of the datastore, which upstream sets to the data directory.
    Ok(Datastore::Sqlite { file: data_dir.join(file) })
}

impl Etcd {
    /// Whether it says no more than `config create` writes; the address in there is that of the host it ran on.
    fn is_plain(&self) -> bool {
        *self == Self { peer_address: self.peer_address.clone(), ..Self::default() }
    }

    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if !is_host(&self.peer_address) {
            report.invalid(
                &at.child("peerAddress"),
                quoted(&self.peer_address),
                "invalid IP address / DNS name",
            );
        }
    }
}

impl ExternalCluster {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if self.endpoints.is_empty() {
            report.required(&at.child("endpoints"), "cannot be null or empty");
        }
        for (n, _) in self.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.is_empty()) {
            report.required(&at.child("endpoints").index(n), "cannot be empty");
        }
        if self.etcd_prefix.is_empty() {
            report.required(&at.child("etcdPrefix"), "cannot be empty");
        }
        let files = [&self.ca_file, &self.client_cert_file, &self.client_key_file];
        let given = files.iter().filter(|file| !file.is_empty()).count();
        if given != 0 && given != files.len() {
            report.forbidden(
                at,
                "caFile, clientCertFile and clientKeyFile must be given together or not at all",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(kind: StorageType, data_source: &str) -> Storage {
        let kine = (!data_source.is_empty())
            .then(|| Kine { data_source: data_source.to_owned().into(), ..Kine::default() });
        Storage { kind, kine, ..Storage::default() }
    }

    fn datastore(kind: StorageType, data_source: &str) -> Result<Datastore, String> {
        storage(kind, data_source).datastore(Path::new("/data")).map_err(|error| error.to_string())
    }

    fn sqlite(file: &str) -> Result<Datastore, String> {
        Ok(Datastore::Sqlite { file: file.into() })
    }

    #[test]
    fn sqlite_is_what_kine_means_without_a_data_source() {
        assert_eq!(datastore(StorageType::Kine, ""), sqlite("/data/db/state.db"));
        assert_eq!(datastore(StorageType::Sqlite, ""), sqlite("/data/db/state.db"));
    }

    #[test]
    fn sqlite_data_sources_name_a_file() {
        let kine = |source: &str| datastore(StorageType::Kine, source);
        let upstream = "sqlite://file:/var/lib/k0s/db/state.db?mode=rwc&_journal=WAL";
        assert_eq!(kine(upstream), sqlite("/var/lib/k0s/db/state.db"));
        assert_eq!(kine("sqlite:///tmp/x.db?cache=shared"), sqlite("/tmp/x.db"));
        assert_eq!(kine("sqlite://file:///tmp/x.db"), sqlite("/tmp/x.db"));
        assert_eq!(kine("sqlite://db/x.db"), sqlite("/data/db/x.db"));
        for bad in [
            "sqlite://",
            "sqlite://file:",
            "sqlite://:memory:",
            "sqlite://x?mode=memory",
            "sqlite://x?_foo=1",
        ] {
            assert!(kine(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_data_source_must_fit_the_type() {
        assert!(matches!(datastore(StorageType::Kine, "mysql://u:p@tcp(db)/k"), Ok(Datastore::Mysql { .. })));
        assert!(matches!(
            datastore(StorageType::Postgres, "postgres://u:p@db/k"),
            Ok(Datastore::Postgres { .. })
        ));
        let error = datastore(StorageType::Sqlite, "mysql://u:hunter2@tcp(db)/k").unwrap_err();
        assert_eq!(
            error,
            "spec.storage.kine.dataSource: Invalid value: \"mysql://…\": does not fit storage type sqlite"
        );
        let error = datastore(StorageType::Postgres, "").unwrap_err();
        assert_eq!(
            error,
            "spec.storage.kine.dataSource: Required value: storage type postgres needs a data source"
        );
    }

    #[test]
    fn errors_about_a_data_source_do_not_show_its_password() {
        for source in ["hunter2", "nats://u:hunter2@db", "redis://u:hunter2@db"] {
            let error = datastore(StorageType::Kine, source).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", storage(StorageType::Kine, "mysql://u:hunter2@db"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    fn choose(mut storage: Storage, flag: &str) -> Result<StorageType, String> {
        let mut report = Report::default();
        storage.choose(flag.parse().unwrap(), &FieldPath::from("spec.storage"), &mut report);
        report.finish().map(|_| storage.kind).map_err(|problems| problems.to_string())
    }

    #[test]
    fn the_flag_wins_over_a_file_that_only_carries_the_defaults() {
        let etcd = Etcd { peer_address: "192.0.2.7".to_owned(), ..Etcd::default() };
        let created_elsewhere = Storage { etcd, ..Storage::default() };
        assert_eq!(choose(created_elsewhere, "sqlite"), Ok(StorageType::Sqlite));
        assert_eq!(choose(storage(StorageType::Kine, ""), "sqlite"), Ok(StorageType::Sqlite));
        assert_eq!(choose(storage(StorageType::Kine, "mysql://x"), "mysql"), Ok(StorageType::Mysql));
    }

    #[test]
    fn the_flag_does_not_overrule_what_the_file_chose() {
        assert_eq!(
            choose(storage(StorageType::Kine, "mysql://x"), "sqlite").unwrap_err(),
            "spec.storage.type: Forbidden: the file says \"kine\" but --storage says \"sqlite\""
        );
        let etcd = Etcd { external_cluster: Some(ExternalCluster::default()), ..Etcd::default() };
        assert!(choose(Storage { etcd, ..Storage::default() }, "raft").is_err());
        assert!("redis".parse::<StorageType>().is_err());
    }
}
