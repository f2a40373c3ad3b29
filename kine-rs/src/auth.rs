//! Users, roles and permissions as etcd has them: who is asking, and what they may do.
//!
//! `Accounts` (users, roles, whether they are enforced) is part of the state machine: changed only by ordered commands,
//! read through a view like everything else. A write is checked where it is applied, a read on the view it reads from, so
//! no permission is used after it was taken away. Passwords are hashed and tokens are made before anything is ordered:
//! nothing here is random. While auth is off nothing is checked.
//!
//! Called by `apply` (changes, permissions of writes) and `api` (tokens, permissions of reads). Texts and codes are `api`'s.

mod accounts;
mod change;
mod intervals;
pub mod jwt;
mod options;
pub mod password;
pub mod permit;
pub mod sessions;

pub use accounts::{Accounts, ENABLED, Load, LoadError, REVISION};
pub use change::{Change, Touched};
pub use options::{Options, OptionsError, Tokens};

use std::sync::Arc;

/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// On whose behalf something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The server itself, such as when a lease expires. May do everything.
    Server,
    /// Whoever it is has not said so; may do everything while auth is off.
    Nobody,
    User {
        name: Arc<str>,
        /// The state of the accounts that the login stands for.
        auth_revision: u64,
    },
}

/// What is wanted of a range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// Why a caller or a change of the accounts is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("auth can't be enabled without a user root")]
    NoRootUser,
    #[error("auth can't be enabled while the user root does not have the role root")]
    NoRootRole,
    #[error("the user exists")]
    UserExists,
    #[error("no user is named")]
    NoUserName,
    #[error("the user does not exist")]
    UserNotFound,
    #[error("the role exists")]
    RoleExists,
    #[error("no role is named")]
    NoRoleName,
    #[error("the role does not exist")]
    RoleNotFound,
    #[error("no permission is given")]
    NoPermission,
    #[error("wrong user or password")]
    WrongPassword,
    #[error("the user can't log in with a password")]
    PasswordOfNoPasswordUser,
    #[error("permission denied")]
    Denied,
    #[error("the user does not have the role")]
    RoleNotGranted,
    #[error("the role does not have the permission")]
    PermissionNotGranted,
    #[error("auth is not enabled")]
    NotEnabled,
    #[error("the login is older than the last change of users and roles")]
    OldRevision,
    #[error("the token is not valid")]
    InvalidToken,
    #[error("the range is empty, or root would lose its power")]
    InvalidManagement,
}
