//! Users, roles and who this session is.

use proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
    AuthRoleGrantPermissionRequest, AuthRoleListRequest, AuthRoleRevokePermissionRequest, AuthStatusRequest,
    AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest, AuthUserGrantRoleRequest,
    AuthUserListRequest, AuthUserRevokeRoleRequest, AuthenticateRequest,
};
use tonic::Status;

use super::Session;
use crate::command::AuthCommand;
use crate::render;

impl Session {
    pub(super) async fn auth(&mut self, command: &AuthCommand) -> Result<String, Status> {
        // One answer to show per call; the header is all that most of them have.
        macro_rules! header {
            ($method:ident, $message:expr) => {{
                let request = self.request($message);
                let response = self.auth.$method(request).await?.into_inner();
                Ok(self.names.header(response.header.as_ref()))
            }};
        }
        macro_rules! listing {
            ($method:ident, $message:expr, $field:ident) => {{
                let request = self.request($message);
                let response = self.auth.$method(request).await?.into_inner();
                let names: String = response.$field.iter().map(|name| format!(" {name}")).collect();
                Ok(format!("{}:{names}", self.names.header(response.header.as_ref())))
            }};
        }
        match command.clone() {
            AuthCommand::Enable => header!(auth_enable, AuthEnableRequest {}),
            AuthCommand::Disable => header!(auth_disable, AuthDisableRequest {}),
            AuthCommand::Status => {
                let request = self.request(AuthStatusRequest {});
                let response = self.auth.auth_status(request).await?.into_inner();
                let header = self.names.header(response.header.as_ref());
                Ok(format!("{header} enabled={} auth_revision={}", response.enabled, response.auth_revision))
            }
            AuthCommand::Login { name, password } => self.login(name, password).await,
            AuthCommand::Logout => {
                self.forget_token();
                Ok("logged out".into())
            }
            AuthCommand::UserAdd(request) => header!(user_add, request),
            AuthCommand::UserGet(name) => listing!(user_get, AuthUserGetRequest { name }, roles),
            AuthCommand::UserList => listing!(user_list, AuthUserListRequest {}, users),
            AuthCommand::UserDelete(name) => header!(user_delete, AuthUserDeleteRequest { name }),
            AuthCommand::UserPassword { name, password } => {
                let hashed_password = String::new();
                header!(
                    user_change_password,
                    AuthUserChangePasswordRequest { name, password, hashed_password }
                )
            }
            AuthCommand::UserGrant { user, role } => {
                header!(user_grant_role, AuthUserGrantRoleRequest { user, role })
            }
            AuthCommand::UserRevoke { user, role } => {
                header!(user_revoke_role, AuthUserRevokeRoleRequest { name: user, role })
            }
            AuthCommand::RoleAdd(name) => header!(role_add, AuthRoleAddRequest { name }),
            AuthCommand::RoleGet(role) => self.role(role).await,
            AuthCommand::RoleList => listing!(role_list, AuthRoleListRequest {}, roles),
            AuthCommand::RoleDelete(role) => header!(role_delete, AuthRoleDeleteRequest { role }),
            AuthCommand::RoleGrant { role, permission } => {
                header!(
                    role_grant_permission,
                    AuthRoleGrantPermissionRequest { name: role, perm: permission }
                )
            }
            AuthCommand::RoleRevoke { role, key, range_end } => {
                header!(role_revoke_permission, AuthRoleRevokePermissionRequest { role, key, range_end })
            }
        }
    }

    async fn login(&mut self, name: String, password: String) -> Result<String, Status> {
        let response = self.auth.authenticate(AuthenticateRequest { name, password }).await?.into_inner();
        let token = response.token.parse().map_err(|_| Status::internal("the token is no header value"))?;
        self.forget_token();
        self.token = Some(token);
        Ok(format!("{} logged in", self.names.header(response.header.as_ref())))
    }

    /// A keepalive stream carries the token it was opened with, so it ends with it.
    fn forget_token(&mut self) {
        self.token = None;
        self.keepalives = None;
    }

    async fn role(&mut self, role: String) -> Result<String, Status> {
        let request = self.request(AuthRoleGetRequest { role });
        let response = self.auth.role_get(request).await?.into_inner();
        let mut text = self.names.header(response.header.as_ref());
        for permission in &response.perm {
            text.push_str(&format!("\n  {}", render::permission(permission)));
        }
        Ok(text)
    }
}
