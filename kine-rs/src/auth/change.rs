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

#[cfg(test)]
mod tests {
    use super::super::{Access, Caller, Load};
    use super::*;
    use std::collections::BTreeMap;

    fn name(name: &str) -> String {
        name.to_owned()
    }

    fn permission(perm_type: Type, key: &'static str, range_end: &'static str) -> Permission {
        Permission { perm_type: perm_type as i32, key: key.into(), range_end: range_end.into() }
    }

    fn grant(role: &str, permission: Permission) -> Change {
        Change::GrantPermission { role: name(role), permission }
    }

    fn add_user(user: &str) -> Change {
        Change::AddUser { name: name(user), password_hash: Some("hash".into()) }
    }

    fn grant_role(user: &str, role: &str) -> Change {
        Change::GrantRole { user: name(user), role: name(role) }
    }

    /// Root, and alice with a role that may read `a..c`.
    fn accounts() -> Accounts {
        stored_accounts().0
    }

    /// The same, and all that was written on the way.
    fn stored_accounts() -> (Accounts, Vec<RecordWrite>) {
        let (mut accounts, mut records) = (Accounts::default(), Vec::new());
        for change in [
            add_user("root"),
            grant_role("root", "root"),
            add_user("alice"),
            Change::AddRole { name: name("reader") },
            grant("reader", permission(Type::Read, "a", "c")),
            grant_role("alice", "reader"),
            Change::Enable,
        ] {
            records.extend(accounts.apply(change).unwrap().records);
        }
        (accounts, records)
    }

    fn may(accounts: &Accounts, user: &str, access: Access, key: &'static str) -> Result<(), Refusal> {
        let caller = Caller::User { name: user.into(), auth_revision: accounts.revision };
        accounts.check_keys(&caller, access, &key.into(), &Bytes::new())
    }

    #[test]
    fn every_change_but_turning_auth_on_is_a_revision() {
        let mut accounts = accounts();
        assert_eq!(accounts.revision, 7);
        let unchanged = accounts.apply(grant_role("alice", "reader")).unwrap();
        assert!(unchanged.records.is_empty(), "a role that is held already");
        assert_eq!(accounts.revision, 7);
        accounts.apply(Change::Disable).unwrap();
        accounts.apply(Change::Disable).unwrap();
        assert_eq!(accounts.revision, 8);
    }

    #[test]
    fn permissions_follow_roles_and_their_changes() {
        let mut accounts = accounts();
        assert_eq!(may(&accounts, "alice", Access::Read, "b"), Ok(()));
        assert_eq!(may(&accounts, "alice", Access::Write, "b"), Err(Refusal::Denied));
        assert_eq!(may(&accounts, "nobody", Access::Read, "b"), Err(Refusal::Denied));
        assert_eq!(may(&accounts, "root", Access::Write, "z"), Ok(()));
        accounts.apply(grant("reader", permission(Type::Write, "a", "c"))).unwrap();
        assert_eq!(may(&accounts, "alice", Access::Read, "b"), Err(Refusal::Denied));
        assert_eq!(may(&accounts, "alice", Access::Write, "b"), Ok(()));
        accounts.apply(Change::DeleteRole { name: name("reader") }).unwrap();
        assert_eq!(may(&accounts, "alice", Access::Write, "b"), Err(Refusal::Denied));
        assert!(accounts.user("alice").unwrap().roles.is_empty());
    }

    #[test]
    fn a_permission_replaces_the_one_of_the_same_range_wherever_it_stands() {
        let mut accounts = accounts();
        accounts.apply(grant("reader", permission(Type::Readwrite, "a", "b"))).unwrap();
        accounts.apply(grant("reader", permission(Type::Readwrite, "a", "c"))).unwrap();
        accounts.apply(grant("reader", permission(Type::Read, "a", "b"))).unwrap();
        accounts.apply(grant("reader", permission(Type::Read, "a", "c"))).unwrap();
        assert_eq!(accounts.role("reader").unwrap().key_permission.len(), 2);
        assert_eq!(may(&accounts, "alice", Access::Write, "a"), Err(Refusal::Denied));
    }

    #[test]
    fn a_login_from_before_a_change_is_old() {
        let mut accounts = accounts();
        let caller = Caller::User { name: "alice".into(), auth_revision: accounts.revision };
        accounts.apply(Change::AddRole { name: name("other") }).unwrap();
        let read = accounts.check_keys(&caller, Access::Read, &"a".into(), &Bytes::new());
        assert_eq!(read, Err(Refusal::OldRevision));
    }

    #[test]
    fn root_keeps_its_power_while_auth_is_on() {
        let mut accounts = accounts();
        let revoke = Change::RevokeRole { user: name(ROOT), role: name(ROOT) };
        for change in
            [revoke.clone(), Change::DeleteUser { name: name(ROOT) }, Change::DeleteRole { name: name(ROOT) }]
        {
            assert_eq!(accounts.apply(change).unwrap_err(), Refusal::InvalidManagement);
        }
        accounts.apply(Change::Disable).unwrap();
        accounts.apply(revoke).unwrap();
        assert_eq!(accounts.apply(Change::Enable).unwrap_err(), Refusal::NoRootRole);
        accounts.apply(Change::DeleteUser { name: name(ROOT) }).unwrap();
        assert_eq!(accounts.apply(Change::Enable).unwrap_err(), Refusal::NoRootUser);
    }

    #[test]
    fn the_logins_of_a_user_end_with_the_password_or_the_user() {
        let mut accounts = accounts();
        let change = Change::ChangePassword { name: name("alice"), password_hash: "new".into() };
        assert_eq!(accounts.apply(change).unwrap().ended, Some(Ended::Of(name("alice"))));
        let change = Change::DeleteUser { name: name("alice") };
        assert_eq!(accounts.apply(change).unwrap().ended, Some(Ended::Of(name("alice"))));
        assert_eq!(accounts.apply(Change::Disable).unwrap().ended, Some(Ended::All));
    }

    #[test]
    fn ranges_that_permit_nothing_are_refused() {
        let mut accounts = accounts();
        for (key, end) in [("", ""), ("b", "a"), ("b", "b")] {
            let refused = accounts.apply(grant("reader", permission(Type::Read, key, end)));
            assert_eq!(refused.unwrap_err(), Refusal::InvalidManagement, "{key:?}..{end:?}");
        }
        accounts.apply(grant("reader", permission(Type::Read, "b", "\0"))).unwrap();
        assert_eq!(may(&accounts, "alice", Access::Read, "zz"), Ok(()));
    }

    #[test]
    fn records_bring_the_same_accounts_back_in_any_order() {
        let (accounts, records) = stored_accounts();
        // The store keeps the last of a key; a backend gives them in the order of its own.
        let last: BTreeMap<_, _> =
            records.iter().map(|record| ((record.bucket as i64, &record.key), &record.value)).collect();
        let mut load = Load::default();
        for ((bucket, key), value) in last.into_iter().rev() {
            load.record(bucket, key, value.as_ref().unwrap()).unwrap();
        }
        let loaded = load.finish();
        assert_eq!((loaded.enabled, loaded.revision), (true, accounts.revision));
        assert_eq!(loaded.users().collect::<Vec<_>>(), accounts.users().collect::<Vec<_>>());
        assert_eq!(loaded.roles().collect::<Vec<_>>(), accounts.roles().collect::<Vec<_>>());
        assert_eq!(may(&loaded, "alice", Access::Read, "b"), Ok(()));
    }
}
