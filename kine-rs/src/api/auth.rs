//! Auth: users, roles, permissions and logins.
//!
//! Changes are ordered commands; what is asked is answered from a view. Passwords are hashed before a change is ordered and
//! compared before a login is: both on a blocking thread, few at a time.

use super::Api;
use super::error::{PASSWORD_TOO_LONG, VERIFY_ONLY};
use super::kv::blocking;
use crate::apply::{ApplyError, Command, Reply};
use crate::auth::password::{self, HashError};
use crate::auth::{Caller, Change, ROOT, Refusal};
use crate::store::ProposeError;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use proto::authpb::Permission;
use proto::authpb::permission::Type;
use proto::etcdserverpb::auth_server::Auth;
use proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse, AuthRoleAddRequest,
    AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest,
    AuthRoleGetResponse, AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse,
    AuthRoleListRequest, AuthRoleListResponse, AuthRoleRevokePermissionRequest,
    AuthRoleRevokePermissionResponse, AuthStatusRequest, AuthStatusResponse, AuthUserAddRequest,
    AuthUserAddResponse, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
    AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest, AuthUserGetResponse,
    AuthUserGrantRoleRequest, AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse,
    AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse,
    ResponseHeader,
};
use rand::Rng;
use rand::distr::Alphabetic;
use tonic::{Request, Response, Status};

/// Letters of a simple token, as etcd's.
const TOKEN_LETTERS: usize = 16;

#[tonic::async_trait]
impl Auth for Api {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let header = self.change_accounts(caller, Change::Enable).await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let header = self.change_accounts(caller, Change::Disable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        self.caller(&request)?;
        let view = self.store.view();
        let header = Some(self.store.identity().header(view.revision));
        let (enabled, auth_revision) = (view.auth.enabled, view.auth.revision);
        Ok(Response::new(AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let AuthenticateRequest { name, password } = request.into_inner();
        loop {
            let auth_revision = self.compare_password(&name, password.clone()).await?;
            match self.log_in(name.clone(), auth_revision).await {
                // Users or roles changed meanwhile, perhaps the password: compare again.
                Err(LoginError::Propose(ProposeError::Apply(ApplyError::Refused(Refusal::OldRevision)))) => {}
                Err(LoginError::Propose(error)) => return Err(error.into()),
                Err(LoginError::Status(status)) => return Err(status),
                Ok(response) => return Ok(Response::new(response)),
            }
        }
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthUserAddRequest { name, password, options, .. } = request.into_inner();
        let no_password = options.is_some_and(|options| options.no_password);
        let password_hash = match no_password {
            true => None,
            // Not worth the time of hashing.
            false if name.is_empty() => Some(Bytes::new()),
            false => Some(self.hash_password(password).await?),
        };
        let header = self.change_accounts(caller, Change::AddUser { name, password_hash }).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let caller = self.caller(&request)?;
        let AuthUserGetRequest { name } = request.into_inner();
        let view = self.store.view();
        view.auth.check_root(&caller).or_else(|refusal| match &caller {
            Caller::User { name: own, .. } if **own == *name => Ok(()),
            _ => Err(refusal),
        })?;
        let user = view.auth.user(&name).ok_or(Refusal::UserNotFound)?;
        let header = Some(self.store.identity().header(view.revision));
        Ok(Response::new(AuthUserGetResponse { header, roles: user.roles.clone() }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        self.root_caller(&request)?;
        let view = self.store.view();
        let header = Some(self.store.identity().header(view.revision));
        let users = view.auth.user_names().map(str::to_owned).collect();
        Ok(Response::new(AuthUserListResponse { header, users }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthUserDeleteRequest { name } = request.into_inner();
        let header = self.change_accounts(caller, Change::DeleteUser { name }).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthUserChangePasswordRequest { name, password, hashed_password } = request.into_inner();
        let password_hash = if password.is_empty() {
            BASE64_STANDARD.decode(hashed_password).map_err(|_| Refusal::PasswordOfNoPasswordUser)?.into()
        } else {
            self.hash_password(password).await?
        };
        let header = self.change_accounts(caller, Change::ChangePassword { name, password_hash }).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthUserGrantRoleRequest { user, role } = request.into_inner();
        let header = self.change_accounts(caller, Change::GrantRole { user, role }).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthUserRevokeRoleRequest { name: user, role } = request.into_inner();
        let header = self.change_accounts(caller, Change::RevokeRole { user, role }).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthRoleAddRequest { name } = request.into_inner();
        let header = self.change_accounts(caller, Change::AddRole { name }).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let caller = self.caller(&request)?;
        let AuthRoleGetRequest { role: name } = request.into_inner();
        let view = self.store.view();
        view.auth.check_root(&caller).or_else(|refusal| match &caller {
            Caller::User { name: user, .. } if view.auth.has_role(user, &name) => Ok(()),
            _ => Err(refusal),
        })?;
        let role = view.auth.role(&name).ok_or(Refusal::RoleNotFound)?;
        let perm = if name == ROOT { vec![everything()] } else { role.key_permission.clone() };
        let header = Some(self.store.identity().header(view.revision));
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        self.root_caller(&request)?;
        let view = self.store.view();
        let header = Some(self.store.identity().header(view.revision));
        let roles = view.auth.role_names().map(str::to_owned).collect();
        Ok(Response::new(AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthRoleDeleteRequest { role: name } = request.into_inner();
        let header = self.change_accounts(caller, Change::DeleteRole { name }).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthRoleGrantPermissionRequest { name: role, perm } = request.into_inner();
        let permission = perm.ok_or(Refusal::NoPermission)?;
        let header = self.change_accounts(caller, Change::GrantPermission { role, permission }).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let AuthRoleRevokePermissionRequest { role, key, range_end } = request.into_inner();
        let change = Change::RevokePermission { role, key, range_end };
        let header = self.change_accounts(caller, change).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}

/// What the role root permits, as etcd shows it.
fn everything() -> Permission {
    Permission { perm_type: Type::Readwrite as i32, key: Bytes::new(), range_end: Bytes::from_static(&[0]) }
}

enum LoginError {
    Propose(ProposeError),
    Status(Status),
}

impl Api {
    async fn change_accounts(
        &self,
        caller: Caller,
        change: Change,
    ) -> Result<Option<ResponseHeader>, Status> {
        match self.store.propose(caller, Command::Accounts(change)).await? {
            Reply::Accounts(header) => Ok(Some(header)),
            other => unreachable!("a change of accounts is answered with one, not {other:?}"),
        }
    }

    /// The revision of the accounts at which this was the user's password.
    async fn compare_password(&self, name: &str, password: String) -> Result<u64, Status> {
        let view = self.store.view();
        let hash = view.auth.login(name)?.password.clone();
        if self.hash_slot(move || Ok(password::matches(&password, &hash))).await? {
            Ok(view.auth.revision)
        } else {
            Err(Refusal::WrongPassword.into())
        }
    }

    async fn log_in(&self, user: String, auth_revision: u64) -> Result<AuthenticateResponse, LoginError> {
        if let Some(signed) = self.auth.sign(&user, auth_revision) {
            let token = signed.map_err(|_| LoginError::Status(Status::unknown(VERIFY_ONLY)))?;
            let header = Some(self.store.identity().header(self.store.view().revision));
            return Ok(AuthenticateResponse { header, token });
        }
        let token_prefix = rand::rng().sample_iter(Alphabetic).take(TOKEN_LETTERS).map(char::from).collect();
        let command = Command::Authenticate { user, token_prefix, auth_revision };
        match self.store.propose(Caller::Nobody, command).await.map_err(LoginError::Propose)? {
            Reply::Authenticate(response) => Ok(response),
            other => unreachable!("a login is answered with a login, not {other:?}"),
        }
    }

    async fn hash_password(&self, password: String) -> Result<Bytes, Status> {
        let cost = self.auth.bcrypt_cost;
        self.hash_slot(move || match password::hash(&password, cost) {
            Ok(hash) => Ok(Bytes::from(hash)),
            Err(HashError::TooLong) => Err(Status::unknown(PASSWORD_TOO_LONG)),
            Err(error) => Err(Status::internal(error.to_string())),
        })
        .await
    }

    async fn hash_slot<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let _slot = self.auth.hashing.acquire().await.expect("the semaphore is never closed");
        blocking(work).await
    }
}
