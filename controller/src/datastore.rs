//! The cluster's datastore: a part of this process, on a Unix socket that only kube-apiserver can reach.
//!
//! Invariant: the socket's directory belongs to kube-apiserver's user and nobody else may enter it. A datastore that cannot
//! go on (a failed fsync) ends the whole process, and the components die with it: nothing is answered that is not durable.
//! Started before and stopped after every component by `run`; which store it is comes from the configuration.

use std::time::Duration;

use kine_rs::backend::Endpoint;
use kine_rs::config::{Config, Listen};
use kine_rs::embed;
use kine_rs::server::StartError;

use crate::config;
use crate::durable_file::{self, Access, FileError, Owner};
use crate::paths::Paths;

const SOCKET_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

pub struct Datastore(embed::Datastore);

#[derive(Debug, thiserror::Error)]
pub enum DatastoreError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Datastore {
    /// On return kube-apiserver, running as `client`, can connect.
    ///
    /// # Panics
    /// For a kind of datastore that the configuration refuses as not built.
    pub async fn start(
        datastore: &config::Datastore,
        paths: &Paths,
        client: Option<Owner>,
    ) -> Result<Datastore, DatastoreError> {
        let config::Datastore::Sqlite { file } = datastore else {
            unreachable!("{} was refused with the configuration", datastore.kind());
        };
        durable_file::ensure_directory(
            &paths.datastore_socket_dir(),
            Access::owned_by(DIRECTORY_MODE, client),
        )?;
        // Upstream's kine runs as kube-apiserver's user and leaves a directory of that user. Other directories than our own
        // are the business of whoever chose them.
        if file.parent() == Some(&paths.database_dir()) {
            let owner = client.map(|_| Owner::ROOT);
            durable_file::ensure_directory(&paths.database_dir(), Access::owned_by(DIRECTORY_MODE, owner))?;
        }
        let socket = paths.datastore_socket();
        let config = Config {
            endpoint: Endpoint::sqlite(file),
            listen: vec![Listen::Unix(socket.clone())],
            ..Config::default()
        };
        let started = blocking(|| embed::Datastore::start(config)).await?;
        durable_file::set_access(&socket, Access::owned_by(SOCKET_MODE, client))?;
        Ok(Datastore(started))
    }

    /// Lets requests under way finish for at most `grace`, then closes the database.
    pub async fn stop(self, grace: Duration) {
        blocking(move || self.0.stop(grace)).await;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
