//! Who sends a request: from its token, or from the certificate of its connection.
//!
//! While auth is off nothing is looked at: that costs one load and one branch. What the caller may do is decided later, on
//! the state the request is answered from; here only what etcd asks for at the door.

use super::Api;
use crate::auth::jwt::{Claims, Jwt, JwtError, VerifyOnly};
use crate::auth::{Caller, Options, Refusal, Tokens};
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tokio::sync::Semaphore;
use tonic::Request;
use tonic::metadata::MetadataMap;

/// Passwords hashed or compared at once: each takes a core for a tenth of a second, and reads need threads too.
const HASHING_MAX: usize = 2;

/// How callers prove who they are.
pub struct Authenticator {
    jwt: Option<Jwt>,
    certificate_names_user: bool,
    pub(super) bcrypt_cost: u32,
    pub(super) hashing: Semaphore,
}

impl Authenticator {
    /// Reads the keys of signed tokens.
    pub fn load(options: &Options) -> Result<Self, JwtError> {
        let jwt = match &options.tokens {
            Tokens::Simple { .. } => None,
            Tokens::Jwt(options) => Some(Jwt::load(options)?),
        };
        Ok(Authenticator {
            jwt,
            certificate_names_user: options.certificate_names_user,
            bcrypt_cost: options.bcrypt_cost,
            hashing: Semaphore::new(HASHING_MAX),
        })
    }

    /// Whether a client's certificate says who it is.
    pub fn certificate_names_user(&self) -> bool {
        self.certificate_names_user
    }

    /// A signed token; `None`: tokens are simple ones, which the store gives out.
    pub(super) fn sign(&self, user: &str, auth_revision: u64) -> Option<Result<String, VerifyOnly>> {
        let claims = Claims { user: user.to_owned(), auth_revision };
        self.jwt.as_ref().map(|jwt| jwt.sign(&claims, SystemTime::now()))
    }
}

/// The common name of the client's certificate, put into the request by the server.
#[derive(Clone, Debug)]
pub struct CertificateName(pub Arc<str>);

/// What a request says of its sender, not looked into yet. A stream keeps it: a token can end before the stream does.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    token: Option<String>,
    certificate_name: Option<Arc<str>>,
}

impl Credentials {
    pub fn of<T>(request: &Request<T>) -> Self {
        let metadata = request.metadata();
        // The gateway's own connection says nothing of whoever uses the gateway.
        let through_gateway = metadata.contains_key("grpcgateway-accept");
        let certificate_name = request
            .extensions()
            .get::<CertificateName>()
            .filter(|_| !through_gateway)
            .map(|CertificateName(name)| name.clone());
        Credentials { token: token(metadata), certificate_name }
    }
}

fn token(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get("token").or_else(|| metadata.get("authorization"))?;
    // What is no text is no token of ours, but it was meant to be one.
    let text = value.to_str().unwrap_or("");
    Some(text.strip_prefix("Bearer ").unwrap_or(text).to_owned())
}

impl Api {
    /// Who sends the request.
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Refusal> {
        if !self.store.sessions().enforced() {
            return Ok(Caller::Nobody);
        }
        self.identify(&Credentials::of(request))
    }

    /// The same, of any user.
    pub(super) fn known_caller<T>(&self, request: &Request<T>) -> Result<Caller, Refusal> {
        let caller = self.caller(request)?;
        if caller == Caller::Nobody {
            self.store.view().auth.check_known(&caller)?;
        }
        Ok(caller)
    }

    /// The same, of a user with the role root.
    pub(super) fn root_caller<T>(&self, request: &Request<T>) -> Result<Caller, Refusal> {
        let caller = self.caller(request)?;
        self.store.view().auth.check_root(&caller)?;
        Ok(caller)
    }

    pub(super) fn identify(&self, credentials: &Credentials) -> Result<Caller, Refusal> {
        if !self.store.sessions().enforced() {
            return Ok(Caller::Nobody);
        }
        let now = |name| Caller::User { name, auth_revision: self.store.view().auth.revision };
        match (&credentials.token, &self.auth.jwt) {
            (Some(token), Some(jwt)) => {
                let claims = jwt.verify(token, SystemTime::now()).ok_or(Refusal::InvalidToken)?;
                Ok(Caller::User { name: claims.user.into(), auth_revision: claims.auth_revision })
            }
            (Some(token), None) => {
                let user = self.store.sessions().user(token, Instant::now());
                user.map(now).ok_or(Refusal::InvalidToken)
            }
            (None, _) if self.auth.certificate_names_user => {
                Ok(credentials.certificate_name.clone().map_or(Caller::Nobody, now))
            }
            (None, _) => Ok(Caller::Nobody),
        }
    }
}
