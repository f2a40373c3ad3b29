//! Every etcd error text and its gRPC code: clients match on the text.

use crate::apply::ApplyError;
use crate::mvcc::range::RangeError;
use crate::rows::ReadError;
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
pub const LEASE_TTL_TOO_LARGE: &str = "etcdserver: too large lease TTL";
pub const REQUEST_TOO_LARGE: &str = "etcdserver: request is too large";
pub const TOO_MANY_REQUESTS: &str = "etcdserver: too many requests";
pub const STOPPED: &str = "etcdserver: server stopped";

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
            ApplyError::KeyNotFound => (Code::InvalidArgument, KEY_NOT_FOUND),
            ApplyError::NoSpace => (Code::ResourceExhausted, NO_SPACE),
            ApplyError::Corrupt => (Code::DataLoss, CORRUPT),
            ApplyError::Read(error) => return error.into(),
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

impl From<ProposeError> for Status {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Apply(error) => error.into(),
            ProposeError::TooMany => Status::resource_exhausted(TOO_MANY_REQUESTS),
            ProposeError::Stopped => Status::unavailable(STOPPED),
        }
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
