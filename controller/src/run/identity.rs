//! Who k0s is and whom it may become for its components.
//!
//! Invariant: as root every component has its account if it exists; an ordinary user runs everything itself.

use std::path::Path;

use worker::supervise::{LookupError, User};

use crate::config::SystemUsers;
use crate::durable_file::Owner;
use crate::pki;
use crate::plan::Users;

#[derive(Debug)]
pub struct Identity {
    pub users: Users,
    pub owners: pki::Owners,
    /// Configured accounts that do not exist.
    missing: Vec<String>,
    is_root: bool,
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct IdentityError(#[from] LookupError);

impl Identity {
    pub fn of_process(names: &SystemUsers) -> Result<Identity, IdentityError> {
        if !rustix::process::geteuid().is_root() {
            let (users, owners) = (Users::default(), pki::Owners::default());
            return Ok(Identity { users, owners, missing: Vec::new(), is_root: false });
        }
        let mut missing = Vec::new();
        let mut find = |name: &str| -> Result<Option<User>, LookupError> {
            let user = User::lookup(name)?;
            if user.is_none() {
                missing.push(name.to_owned());
            }
            Ok(user)
        };
        let users = Users {
            kube_apiserver: find(&names.kube_apiserver)?,
            kube_scheduler: find(&names.kube_scheduler)?,
        };
        let owner = |user: &Option<User>| Some(user.as_ref().map_or(Owner::ROOT, Owner::from));
        let owners = pki::Owners {
            root: Some(Owner::ROOT),
            kube_apiserver: owner(&users.kube_apiserver),
            kube_scheduler: owner(&users.kube_scheduler),
        };
        Ok(Identity { users, owners, missing, is_root: true })
    }

    /// Says in the log what is not as on a properly installed node.
    pub fn announce(&self, data_dir: &Path) {
        if !self.is_root {
            let uid = rustix::process::geteuid().as_raw();
            let data_dir = data_dir.display();
            tracing::info!(
                "not root: every component runs as uid {uid}, and everything is kept below {data_dir}"
            );
        }
        if !self.missing.is_empty() {
            let names = self.missing.join(", ");
            tracing::warn!(
                "system users not found: {names}; their components run as root \
                 (to change that: useradd --system --shell /usr/sbin/nologin NAME)"
            );
        }
    }
}
