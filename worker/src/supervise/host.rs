//! What all components of a node share: the thread that forks, the state directory, the place for cgroups.
//!
//! Assembly code opens one per process. It knows no component by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cgroup::Cgroups;
use super::orphan::{OrphanError, reclaim};
use super::spawn::{Launch, Launched, SpawnError, Spawner};
use super::spec::ComponentSpec;
use super::state_file::{self, StateFile};

#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Where the state files of processes go; made with mode 0700. Must belong to this k0s alone, and outlive its kill.
    pub state_dir: PathBuf,
    pub cgroups: CgroupUse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupUse {
    /// Where the machine lets us. Otherwise says so once and uses process groups.
    WherePossible,
    Never,
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot make the state directory {dir} (or give it mode 0700)")]
    StateDir {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the thread that starts processes")]
    Thread(#[source] io::Error),
}

/// When the last clone is dropped, and every supervisor with it, the processes that still run are killed by the kernel.
#[derive(Clone, Debug)]
pub struct Host(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    spawner: Spawner,
    state_dir: PathBuf,
    cgroups: Option<Cgroups>,
}

impl Host {
    /// Must be called in a runtime with I/O and time enabled; the components belong to it.
    ///
    /// # Errors
    /// When the state directory cannot be made or no thread can be started.
    pub fn open(config: HostConfig) -> Result<Host, HostError> {
        let HostConfig { state_dir, cgroups } = config;
        state_file::create_dir(&state_dir)
            .map_err(|source| HostError::StateDir { dir: state_dir.clone(), source })?;
        let cgroups = match cgroups {
            CgroupUse::WherePossible => find_cgroups(&state_dir),
            CgroupUse::Never => None,
        };
        let spawner = Spawner::start().map_err(HostError::Thread)?;
        Ok(Host(Arc::new(Shared { spawner, state_dir, cgroups })))
    }

    pub(super) fn state_file(&self, component: &str) -> StateFile {
        StateFile::new(&self.0.state_dir, component)
    }

    /// Ends what an earlier k0s left of this component. A start does so by itself; to do it before is for those who want
    /// to look at what the leftover holds, such as a port.
    ///
    /// # Errors
    /// When it does not end, or nobody can tell whether it is ours.
    pub async fn reclaim(&self, spec: &ComponentSpec) -> Result<(), OrphanError> {
        reclaim(&spec.name, &self.state_file(&spec.name), spec.stop).await
    }

    pub(super) async fn launch(&self, spec: &Arc<ComponentSpec>) -> Result<Launched, SpawnError> {
        let cgroup = self.0.cgroups.as_ref().map(|cgroups| cgroups.component(&spec.name));
        let launch = Launch { spec: Arc::clone(spec), cgroup, state_file: self.state_file(&spec.name) };
        self.0.spawner.spawn(launch).await
    }
}

fn find_cgroups(state_dir: &Path) -> Option<Cgroups> {
    match Cgroups::find(state_dir) {
        Ok(cgroups) => Some(cgroups),
        Err(why) => {
            tracing::info!(
                "no cgroups for components ({why}): processes are told apart by process group only"
            );
            None
        }
    }
}
