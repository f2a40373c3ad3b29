//! Every etcd error text and its gRPC code: clients match on the text.

use crate::apply::ApplyError;
use crate::auth::Refusal;
use crate::backend::HashError;
use crate::budget::Exhausted;
use crate::mvcc::range::RangeError;
use crate::rows::ReadError;
use crate::snapshot::SnapshotError;
use crate::store::ProposeError;
use crate::txn::{EvaluateError, RequestError};
use tonic::{Code, Status};

pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
pub const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
pub const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
pub const CORRUPT: &str = "etcdserver: corrupt cluster";
pub const EMPTY_KEY: &str = "etcdserver: key is not provided";
pub const KEY_NOT_FOUND: &str = "etcdserver: key not found";
pub const VALUE_PROVIDED: &str = "etcdserver: value is provided";
pub const LEASE_PROVIDED: &str = "etcdserver: lease is provided";
pub const TOO_MANY_OPS: &str = "etcdserver: too many operations in txn request";
pub const DUPLICATE_KEY: &str = "etcdserver: duplicate key given in txn request";
pub const INVALID_SORT_OPTION: &str = "etcdserver: invalid sort option";
pub const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";
pub const LEASE_EXISTS: &str = "etcdserver: lease already exists";
const LEASE_TTL_TOO_LARGE: &str = "etcdserver: too large lease TTL";
pub const REQUEST_TOO_LARGE: &str = "etcdserver: request is too large";
pub const TOO_MANY_REQUESTS: &str = "etcdserver: too many requests";
/// etcd has no such limit.
const REPLY_TOO_LARGE: &str =
    "etcdserver: the reply would be larger than 64 MiB; read less, or outside of a transaction that writes";
pub const BAD_LEADER_TRANSFEREE: &str = "etcdserver: bad leader transferee";
pub const WRONG_DOWNGRADE_VERSION: &str = "etcdserver: wrong downgrade target version format";
pub const INVALID_DOWNGRADE_VERSION: &str = "etcdserver: invalid downgrade target version";
pub const DOWNGRADE_IN_PROGRESS: &str = "etcdserver: cluster has a downgrade job in progress";
pub const UNKNOWN_METHOD: &str = "etcdserver: unknown method";
pub const MEMBER_NOT_FOUND: &str = "etcdserver: member not found";
pub const MEMBER_URLS_INVALID: &str = "etcdserver: given member URLs are invalid";
pub const MEMBER_URL_EXISTS: &str = "etcdserver: Peer URLs already exists";
pub const NOT_ENOUGH_STARTED: &str = "etcdserver: re-configuration failed due to not enough started members";
pub const NO_LEARNER: &str = "etcdserver: can only promote a learner member";
pub const STOPPED: &str = "etcdserver: server stopped";

pub const ROOT_USER_MISSING: &str = "etcdserver: root user does not exist";
pub const ROOT_ROLE_MISSING: &str = "etcdserver: root user does not have root role";
pub const USER_EXISTS: &str = "etcdserver: user name already exists";
pub const USER_EMPTY: &str = "etcdserver: user name is empty";
pub const USER_NOT_FOUND: &str = "etcdserver: user name not found";
pub const ROLE_EXISTS: &str = "etcdserver: role name already exists";
pub const ROLE_EMPTY: &str = "etcdserver: role name is empty";
pub const ROLE_NOT_FOUND: &str = "etcdserver: role name not found";
pub const PERMISSION_NOT_GIVEN: &str = "etcdserver: permission not given";
pub const AUTH_FAILED: &str = "etcdserver: authentication failed, invalid user ID or password";
/// etcd has no status for this one: the text of its store comes through.
pub const NO_PASSWORD_USER: &str = "auth: authentication failed, password was given for no password user";
pub const PASSWORD_TOO_LONG: &str = "bcrypt: password length exceeds 72 bytes";
pub const VERIFY_ONLY: &str = "auth: token signing attempted with verify-only key";
pub const PERMISSION_DENIED: &str = "etcdserver: permission denied";
pub const ROLE_NOT_GRANTED: &str = "etcdserver: role is not granted to the user";
pub const PERMISSION_NOT_GRANTED: &str = "etcdserver: permission is not granted to the role";
pub const AUTH_NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
pub const AUTH_OLD_REVISION: &str = "etcdserver: revision of auth store is old";
pub const INVALID_AUTH_TOKEN: &str = "etcdserver: invalid auth token";
pub const INVALID_AUTH_MANAGEMENT: &str = "etcdserver: invalid auth management";

pub const SESSION_EXPIRED: &str = "mutex: session is expired";
pub const NO_LEADER: &str = "election: no leader";
pub const NOT_LEADER: &str = "election: not leader";
pub const LEADER_MISSING: &str = "\"leader\" field must be provided";

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        Status::invalid_argument(match error {
            RequestError::EmptyKey => EMPTY_KEY,
            RequestError::ValueProvided => VALUE_PROVIDED,
            RequestError::LeaseProvided => LEASE_PROVIDED,
            RequestError::InvalidSortOption => INVALID_SORT_OPTION,
            RequestError::EmptyOperation => KEY_NOT_FOUND,
            RequestError::TooManyOperations => TOO_MANY_OPS,
            RequestError::DuplicateKey => DUPLICATE_KEY,
        })
    }
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Self {
        let (code, text) = match error {
            ApplyError::Compacted { .. } => (Code::OutOfRange, COMPACTED),
            ApplyError::Future { .. } => (Code::OutOfRange, FUTURE),
            ApplyError::LeaseNotFound(_) => (Code::NotFound, LEASE_NOT_FOUND),
            ApplyError::LeaseExists(_) => (Code::FailedPrecondition, LEASE_EXISTS),
            ApplyError::LeaseTtlTooLarge(_) => (Code::OutOfRange, LEASE_TTL_TOO_LARGE),
            ApplyError::KeyNotFound => (Code::InvalidArgument, KEY_NOT_FOUND),
            ApplyError::DowngradeInProgress => (Code::FailedPrecondition, DOWNGRADE_IN_PROGRESS),
            ApplyError::NoSpace => (Code::ResourceExhausted, NO_SPACE),
            ApplyError::Corrupt => (Code::DataLoss, CORRUPT),
            ApplyError::ReplyTooLarge => (Code::ResourceExhausted, REPLY_TOO_LARGE),
            ApplyError::Busy => (Code::ResourceExhausted, TOO_MANY_REQUESTS),
            ApplyError::Refused(refusal) => return refusal.into(),
            ApplyError::Read(error) => return error.into(),
        };
        Status::new(code, text)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, text) = match refusal {
            Refusal::NoRootUser => (Code::FailedPrecondition, ROOT_USER_MISSING),
            Refusal::NoRootRole => (Code::FailedPrecondition, ROOT_ROLE_MISSING),
            Refusal::UserExists => (Code::FailedPrecondition, USER_EXISTS),
            Refusal::NoUserName => (Code::InvalidArgument, USER_EMPTY),
            Refusal::UserNotFound => (Code::FailedPrecondition, USER_NOT_FOUND),
            Refusal::RoleExists => (Code::FailedPrecondition, ROLE_EXISTS),
            Refusal::NoRoleName => (Code::InvalidArgument, ROLE_EMPTY),
            Refusal::RoleNotFound => (Code::FailedPrecondition, ROLE_NOT_FOUND),
            Refusal::NoPermission => (Code::InvalidArgument, PERMISSION_NOT_GIVEN),
            Refusal::WrongPassword => (Code::InvalidArgument, AUTH_FAILED),
            Refusal::PasswordOfNoPasswordUser => (Code::Unknown, NO_PASSWORD_USER),
            Refusal::Denied => (Code::PermissionDenied, PERMISSION_DENIED),
            Refusal::RoleNotGranted => (Code::FailedPrecondition, ROLE_NOT_GRANTED),
            Refusal::PermissionNotGranted => (Code::FailedPrecondition, PERMISSION_NOT_GRANTED),
            Refusal::NotEnabled => (Code::FailedPrecondition, AUTH_NOT_ENABLED),
            Refusal::OldRevision => (Code::InvalidArgument, AUTH_OLD_REVISION),
            Refusal::InvalidToken => (Code::Unauthenticated, INVALID_AUTH_TOKEN),
            Refusal::InvalidManagement => (Code::InvalidArgument, INVALID_AUTH_MANAGEMENT),
        };
        Status::new(code, text)
    }
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        match error {
            // The row went with a compaction that passed the revision this read was pinned to.
            ReadError::Gone(_) => Status::out_of_range(COMPACTED),
            ReadError::Io(detail) => Status::internal(format!("etcdserver: {detail}")),
        }
    }
}

impl From<HashError> for Status {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Read(error) => error.into(),
            HashError::Lost(error) => Status::aborted(format!("etcdserver: {error}")),
        }
    }
}

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Read(error) => error.into(),
            SnapshotError::Abandoned(_) => Status::aborted(format!("etcdserver: {error}")),
            SnapshotError::Write(error) => Status::internal(format!("etcdserver: {error}")),
        }
    }
}

impl From<ProposeError> for Status {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Apply(error) => error.into(),
            ProposeError::TooMany => Status::resource_exhausted(TOO_MANY_REQUESTS),
            ProposeError::Stopped => Status::unavailable(STOPPED),
        }
    }
}

impl From<Exhausted> for Status {
    fn from(_: Exhausted) -> Self {
        Status::resource_exhausted(TOO_MANY_REQUESTS)
    }
}

impl<E: Into<Status>> From<RangeError<E>> for Status {
    fn from(error: RangeError<E>) -> Self {
        match error {
            RangeError::Compacted { .. } => Status::out_of_range(COMPACTED),
            RangeError::Future { .. } => Status::out_of_range(FUTURE),
            RangeError::Load(error) => error.into(),
        }
    }
}

impl From<EvaluateError<ReadError>> for Status {
    fn from(error: EvaluateError<ReadError>) -> Self {
        ApplyError::from(error).into()
    }
}
