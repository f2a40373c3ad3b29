//! The components of a node in their order: started stage by stage, stopped in reverse.
//!
//! The invariant: a stage starts only when the one before it is ready, and stops only when the one after it is gone.
//! What may start together is one stage. Which stages there are is the caller's plan.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use tokio::time::Instant;

use super::host::Host;
use super::spec::ComponentSpec;
use super::status::ComponentStatus;
use super::supervisor::{StartError, StopError, Supervisor, Watched};

/// Owns the supervisors of a node. Dropping it kills all components; [`Group::stop`] is the orderly way.
#[derive(Debug)]
pub struct Group {
    host: Host,
    stages: Vec<Vec<Supervisor>>,
    board: StatusBoard,
}

impl Group {
    pub fn new(host: Host) -> Group {
        Group { host, stages: Vec::new(), board: StatusBoard::default() }
    }

    /// Starts a component and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started or does not become ready in its time. It and what was started before is then still
    /// to be stopped with [`Group::stop`]. The same holds when this future is dropped.
    pub async fn start(&mut self, spec: ComponentSpec) -> Result<(), StartError> {
        self.start_stage(vec![spec]).await
    }

    /// Starts components that do not need each other, and waits until all of them are ready.
    ///
    /// # Errors
    /// As [`Group::start`], for the first that fails.
    pub async fn start_stage(&mut self, specs: Vec<ComponentSpec>) -> Result<(), StartError> {
        self.stages.push(Vec::new());
        for spec in specs {
            let supervisor = Supervisor::start(spec, &self.host).await?;
            self.board.add(supervisor.watched());
            // Owned before it is waited for, so that a start that is given up can be stopped.
            self.stages.last_mut().expect("pushed above").push(supervisor);
        }
        let stage = self.stages.last().expect("pushed above");
        try_join_all(stage.iter().map(Supervisor::ready)).await?;
        Ok(())
    }

    /// A view of all components that lives beside the group.
    pub fn board(&self) -> StatusBoard {
        self.board.clone()
    }

    /// Stops everything, the last stage first. Returns after `within` at the latest, plus the few seconds the kernel
    /// may take to end what was killed: what has not stopped by then is killed.
    pub async fn stop(mut self, within: Duration) -> Vec<StopError> {
        let deadline = Instant::now() + within;
        let mut errors = Vec::new();
        while let Some(mut stage) = self.stages.pop() {
            let stops = stage.iter_mut().map(|supervisor| supervisor.stop(deadline));
            errors.extend(join_all(stops).await.into_iter().filter_map(Result::err));
        }
        errors
    }
}

/// The status of every component of a group, in the order of their start.
#[derive(Clone, Debug, Default)]
pub struct StatusBoard(Arc<Mutex<Vec<Watched>>>);

impl StatusBoard {
    pub fn snapshot(&self) -> Vec<ComponentStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Watched::snapshot).collect()
    }

    fn add(&self, component: Watched) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(component);
    }
}
