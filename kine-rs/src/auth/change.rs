//! Changes of users and roles, each checked and made at its place in the order.
//!
//! A change that is refused leaves the accounts as they were.

use super::accounts::{Accounts, ENABLED, REVISION, holds, no_password};
use super::sessions::Ended;
use super::{ROOT, Refusal};
use crate::rows::{Bucket, RecordWrite};
use bytes::Bytes;
use prost::Message;
use proto::authpb::permission::Type;
use proto::authpb::{Permission, Role, User, UserAddOptions};

#[derive(Clone, Debug)]
pub enum Change {
    Enable,
    Disable,
    AddUser {
        name: String,
        /// Its bcrypt hash; `None`: the user can't log in with a password.
        password_hash: Option<Bytes>,
    },
    DeleteUser {
        name: String,
    },
    ChangePassword {
        name: String,
        password_hash: Bytes,
    },
    GrantRole {
        user: String,
        role: String,
    },
    RevokeRole {
        user: String,
        role: String,
    },
    AddRole {
        name: String,
    },
    DeleteRole {
        name: String,
    },
    GrantPermission {
        role: String,
        permission: Permission,
    },
    RevokePermission {
        role: String,
        key: Bytes,
        range_end: Bytes,
    },
}

/// What a change touched.
#[derive(Debug, Default)]
pub struct Touched {
    pub records: Vec<RecordWrite>,
    /// Logins that are over.
    pub ended: Option<Ended>,
}

impl Touched {
    fn write(&mut self, bucket: Bucket, key: impl Into<Vec<u8>>, value: Option<Vec<u8>>) {
        self.records.push(RecordWrite { bucket, key: key.into(), value });
    }
}

impl Accounts {
    pub fn apply(&mut self, change: Change) -> Result<Touched, Refusal> {
        let mut touched = Touched::default();
        match change {
            Change::Enable => return self.enable(),
            Change::Disable => {
                if !self.enabled {
                    return Ok(touched);
                }
                self.enabled = false;
                touched.write(Bucket::Auth, ENABLED, Some(vec![0]));
                touched.ended = Some(Ended::All);
            }
            Change::AddUser { name, password_hash } => self.add_user(&name, password_hash, &mut touched)?,
            Change::DeleteUser { name } => {
                if self.enabled && name == ROOT {
                    return Err(Refusal::InvalidManagement);
                }
                self.users.remove(&name).ok_or(Refusal::UserNotFound)?;
                touched.write(Bucket::User, name.as_str(), None);
                touched.ended = Some(Ended::Of(name));
            }
            Change::ChangePassword { name, password_hash } => {
                let mut user = self.user(&name).ok_or(Refusal::UserNotFound)?.clone();
                user.password = if no_password(&user) { Bytes::new() } else { password_hash };
                self.store_user(&name, user, &mut touched);
                touched.ended = Some(Ended::Of(name));
            }
            Change::GrantRole { user, role } => {
                let mut granted = self.user(&user).ok_or(Refusal::UserNotFound)?.clone();
                if role != ROOT && !self.roles.contains_key(&role) {
                    return Err(Refusal::RoleNotFound);
                }
                let Err(at) = granted.roles.binary_search(&role) else { return Ok(touched) };
                granted.roles.insert(at, role);
                self.store_user(&user, granted, &mut touched);
            }
            Change::RevokeRole { user, role } => {
                if self.enabled && user == ROOT && role == ROOT {
                    return Err(Refusal::InvalidManagement);
                }
                let mut revoked = self.user(&user).ok_or(Refusal::UserNotFound)?.clone();
                if !holds(&revoked, &role) {
                    return Err(Refusal::RoleNotGranted);
                }
                revoked.roles.retain(|held| *held != role);
                self.store_user(&user, revoked, &mut touched);
            }
            Change::AddRole { name } => {
                if name.is_empty() {
                    return Err(Refusal::NoRoleName);
                }
                if self.roles.contains_key(&name) {
                    return Err(Refusal::RoleExists);
                }
                let role = Role { name: name.clone().into(), key_permission: Vec::new() };
                self.store_role(&name, role, &mut touched);
            }
            Change::DeleteRole { name } => self.delete_role(&name, &mut touched)?,
            Change::GrantPermission { role, permission } => {
                self.grant(&role, permission, &mut touched)?;
            }
            Change::RevokePermission { role: name, key, range_end } => {
                let mut role = self.role(&name).ok_or(Refusal::RoleNotFound)?.clone();
                let before = role.key_permission.len();
                role.key_permission.retain(|held| held.key != key || held.range_end != range_end);
                if role.key_permission.len() == before {
                    return Err(Refusal::PermissionNotGranted);
                }
                self.store_role(&name, role, &mut touched);
            }
        }
        self.revision += 1;
        touched.write(Bucket::Auth, REVISION, Some(self.revision.to_be_bytes().to_vec()));
        Ok(touched)
    }

    /// As etcd: the revision stays.
    fn enable(&mut self) -> Result<Touched, Refusal> {
        let mut touched = Touched::default();
        if self.enabled {
            return Ok(touched);
        }
        let root = self.user(ROOT).ok_or(Refusal::NoRootUser)?;
        if !holds(root, ROOT) {
            return Err(Refusal::NoRootRole);
        }
        self.enabled = true;
        touched.write(Bucket::Auth, ENABLED, Some(vec![1]));
        Ok(touched)
    }

    fn add_user(&mut self, name: &str, hash: Option<Bytes>, touched: &mut Touched) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(Refusal::NoUserName);
        }
        if self.users.contains_key(name) {
            return Err(Refusal::UserExists);
        }
        let user = User {
            name: Bytes::copy_from_slice(name.as_bytes()),
            options: Some(UserAddOptions { no_password: hash.is_none() }),
            password: hash.unwrap_or_default(),
            roles: Vec::new(),
        };
        self.store_user(name, user, touched);
        Ok(())
    }

    fn delete_role(&mut self, name: &str, touched: &mut Touched) -> Result<(), Refusal> {
        if self.enabled && name == ROOT {
            return Err(Refusal::InvalidManagement);
        }
        self.roles.remove(name).ok_or(Refusal::RoleNotFound)?;
        touched.write(Bucket::Role, name, None);
        let holders: Vec<(String, User)> = self
            .users
            .iter()
            .filter(|(_, account)| holds(&account.user, name))
            .map(|(user, account)| (user.clone(), account.user.clone()))
            .collect();
        for (user, mut holder) in holders {
            holder.roles.retain(|held| held != name);
            self.store_user(&user, holder, touched);
        }
        Ok(())
    }

    fn grant(&mut self, role: &str, permission: Permission, touched: &mut Touched) -> Result<(), Refusal> {
        if !is_valid_range(&permission) {
            return Err(Refusal::InvalidManagement);
        }
        let mut granted = self.role(role).ok_or(Refusal::RoleNotFound)?.clone();
        let held = granted
            .key_permission
            .iter_mut()
            .find(|held| held.key == permission.key && held.range_end == permission.range_end);
        match held {
            Some(held) => held.perm_type = permission.perm_type,
            None => {
                let at = granted.key_permission.partition_point(|held| held.key <= permission.key);
                granted.key_permission.insert(at, permission);
            }
        }
        self.store_role(role, granted, touched);
        Ok(())
    }

    fn store_user(&mut self, name: &str, user: User, touched: &mut Touched) {
        touched.write(Bucket::User, name, Some(user.encode_to_vec()));
        self.put_user(name, user);
    }

    fn store_role(&mut self, name: &str, role: Role, touched: &mut Touched) {
        touched.write(Bucket::Role, name, Some(role.encode_to_vec()));
        self.roles.insert(name.to_owned(), role);
        self.settle_role(name);
    }
}

/// One key, a range that is not empty, or one with an open end; and a type we know.
fn is_valid_range(permission: &Permission) -> bool {
    let Permission { key, range_end, perm_type } = permission;
    let ranges = range_end.is_empty() || key < range_end || range_end.as_ref() == [0];
    !key.is_empty() && ranges && Type::try_from(*perm_type).is_ok()
}
