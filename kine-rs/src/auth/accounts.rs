//! Users and roles, and whether they are enforced.
//!
//! Invariants: `reach` of an account is the union of what its roles permit; role names of a user are sorted and each is
//! there once; `revision` grows with every change but turning auth on. Records are etcd's own messages, so snapshots carry
//! them as they are.

use super::intervals::Intervals;
use super::{Access, Caller, ROOT, Refusal};
use crate::rows::Bucket;
use bytes::Bytes;
use prost::Message;
use proto::authpb::permission::Type;
use proto::authpb::{Permission, Role, User};
use std::collections::BTreeMap;

/// Keys of `Bucket::Auth`.
pub const ENABLED: &[u8] = b"enabled";
pub const REVISION: &[u8] = b"revision";

#[derive(Clone, Debug)]
pub struct Accounts {
    pub enabled: bool,
    /// From 1.
    pub revision: u64,
    pub(super) users: BTreeMap<String, Account>,
    pub(super) roles: BTreeMap<String, Role>,
}

#[derive(Clone, Debug)]
pub(super) struct Account {
    pub user: User,
    reach: Reach,
}

/// What the roles of a user permit.
#[derive(Clone, Debug)]
enum Reach {
    Everything,
    Keys { readable: Intervals, writable: Intervals },
}

impl Default for Accounts {
    fn default() -> Self {
        Accounts { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl Accounts {
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values().map(|account| &account.user)
    }

    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|account| &account.user)
    }

    pub fn roles(&self) -> impl Iterator<Item = &Role> {
        self.roles.values()
    }

    pub fn role_names(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.user(user).is_some_and(|user| holds(user, role))
    }

    /// The user whose password is to be compared.
    pub fn login(&self, name: &str) -> Result<&User, Refusal> {
        if !self.enabled {
            return Err(Refusal::NotEnabled);
        }
        let user = self.user(name).ok_or(Refusal::WrongPassword)?;
        if no_password(user) { Err(Refusal::PasswordOfNoPasswordUser) } else { Ok(user) }
    }

    /// Whether the caller has said who they are. As etcd: the user need not exist any more.
    pub fn check_known(&self, caller: &Caller) -> Result<(), Refusal> {
        if self.enabled && *caller == Caller::Nobody { Err(Refusal::NoUserName) } else { Ok(()) }
    }

    pub fn check_root(&self, caller: &Caller) -> Result<(), Refusal> {
        if !self.enabled {
            return Ok(());
        }
        match caller {
            Caller::Server => Ok(()),
            Caller::Nobody => Err(Refusal::NoUserName),
            Caller::User { name, .. } if name.is_empty() => Err(Refusal::NoUserName),
            Caller::User { name, .. } => match self.users.get(name.as_ref()) {
                None => Err(Refusal::UserNotFound),
                Some(Account { reach: Reach::Everything, .. }) => Ok(()),
                Some(_) => Err(Refusal::Denied),
            },
        }
    }

    /// Whether the caller may do `access` to every key of the range.
    pub fn check_keys(
        &self,
        caller: &Caller,
        access: Access,
        key: &Bytes,
        range_end: &Bytes,
    ) -> Result<(), Refusal> {
        if !self.enabled {
            return Ok(());
        }
        let (name, auth_revision) = match caller {
            Caller::Server => return Ok(()),
            Caller::Nobody | Caller::User { auth_revision: 0, .. } => return Err(Refusal::NoUserName),
            Caller::User { name, auth_revision } => (name.as_ref(), *auth_revision),
        };
        if auth_revision < self.revision {
            return Err(Refusal::OldRevision);
        }
        let permitted = match self.users.get(name).map(|account| &account.reach) {
            None => false,
            Some(Reach::Everything) => true,
            Some(Reach::Keys { readable, writable }) => match access {
                Access::Read => readable.cover(key, range_end),
                Access::Write => writable.cover(key, range_end),
            },
        };
        if permitted { Ok(()) } else { Err(Refusal::Denied) }
    }

    pub(super) fn put_user(&mut self, name: &str, user: User) {
        let reach = self.reach(&user);
        self.users.insert(name.to_owned(), Account { user, reach });
    }

    /// After a change of a role: what its users may do.
    pub(super) fn settle_role(&mut self, role: &str) {
        let mut users = std::mem::take(&mut self.users);
        for account in users.values_mut().filter(|account| holds(&account.user, role)) {
            account.reach = self.reach(&account.user);
        }
        self.users = users;
    }

    fn reach(&self, user: &User) -> Reach {
        if holds(user, ROOT) {
            return Reach::Everything;
        }
        let permissions = || {
            let roles = user.roles.iter().filter_map(|name| self.roles.get(name));
            roles.flat_map(|role| &role.key_permission)
        };
        let union = |denied: Type| {
            let wanted = permissions().filter(|permission| permission.perm_type() != denied);
            Intervals::union(wanted.map(|permission: &Permission| (&permission.key, &permission.range_end)))
        };
        Reach::Keys { readable: union(Type::Write), writable: union(Type::Read) }
    }
}

pub(super) fn holds(user: &User, role: &str) -> bool {
    user.roles.iter().any(|held| held == role)
}

pub(super) fn no_password(user: &User) -> bool {
    user.options.as_ref().is_some_and(|options| options.no_password)
}

/// Accounts being read back from records, which come in any order.
#[derive(Default)]
pub struct Load {
    accounts: Accounts,
}

#[derive(Debug, thiserror::Error)]
#[error("the record {key:?} of the accounts can't be read")]
pub struct LoadError {
    key: String,
}

impl Load {
    /// Takes in a record if it is one of the accounts'.
    pub fn record(&mut self, bucket: i64, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let failed = || LoadError { key: String::from_utf8_lossy(key).into_owned() };
        let name = || String::from_utf8(key.to_vec()).map_err(|_| failed());
        let accounts = &mut self.accounts;
        if bucket == Bucket::User as i64 {
            let user = User::decode(value).map_err(|_| failed())?;
            accounts.put_user(&name()?, user);
        } else if bucket == Bucket::Role as i64 {
            accounts.roles.insert(name()?, Role::decode(value).map_err(|_| failed())?);
        } else if bucket == Bucket::Auth as i64 && key == ENABLED {
            accounts.enabled = value == [1];
        } else if bucket == Bucket::Auth as i64 && key == REVISION {
            accounts.revision = u64::from_be_bytes(value.try_into().map_err(|_| failed())?);
        }
        Ok(())
    }

    pub fn finish(mut self) -> Accounts {
        let roles: Vec<String> = self.accounts.roles.keys().cloned().collect();
        for role in roles {
            self.accounts.settle_role(&role);
        }
        self.accounts
    }
}
