//! One thing a client can ask a server, in the words of the wire contract.
//!
//! The requests are etcd's own messages, so nothing a client can say is out of reach; their revisions and lease ids may
//! be symbols (see [`crate::symbol`]). Text in and out: [`crate::parse`], [`crate::print`].

use proto::authpb::Permission;
use proto::etcdserverpb::{
    AlarmRequest, AuthUserAddRequest, CompactionRequest, DeleteRangeRequest, DowngradeRequest,
    LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, TxnRequest, WatchCreateRequest,
};

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Range(RangeRequest),
    RangeStream(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(i64),
    LeaseKeepAlive(i64),
    LeaseTimeToLive(LeaseTimeToLiveRequest),
    LeaseList,
    Stream(StreamCommand),
    Status,
    Hash,
    HashKv(i64),
    Alarm(AlarmRequest),
    Defragment,
    MoveLeader(u64),
    Downgrade(DowngradeRequest),
    MemberList {
        linearizable: bool,
    },
    Auth(AuthCommand),
    /// Stop the server with SIGTERM and start it again on its data.
    Restart,
    /// Stop the server with SIGKILL and start it again on its data.
    Kill,
}

/// What is done with watch streams; each has a name, and is opened by the first watch on it.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamCommand {
    Watch {
        stream: String,
        request: WatchCreateRequest,
    },
    Cancel {
        stream: String,
        id: i64,
    },
    Progress {
        stream: String,
    },
    /// Show the next responses one by one, as they were sent.
    Expect {
        stream: String,
        responses: usize,
    },
    /// Show the next events per watch, however they were spread over responses.
    Events {
        stream: String,
        events: usize,
    },
    /// Wait until every stream has delivered all there is, then show it as `Events` does.
    Sync,
    /// Give the stream up. (Closing only the sending side ends nothing on etcd.)
    Close {
        stream: String,
    },
}

impl StreamCommand {
    /// The stream it is about; none when it is about all.
    pub fn stream(&self) -> Option<&str> {
        match self {
            Self::Watch { stream, .. }
            | Self::Cancel { stream, .. }
            | Self::Progress { stream }
            | Self::Expect { stream, .. }
            | Self::Events { stream, .. }
            | Self::Close { stream } => Some(stream),
            Self::Sync => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum AuthCommand {
    Enable,
    Disable,
    Status,
    /// Authenticate, and send the token with everything that follows.
    Login {
        name: String,
        password: String,
    },
    /// Send no token any more.
    Logout,
    UserAdd(AuthUserAddRequest),
    UserGet(String),
    UserList,
    UserDelete(String),
    UserPassword {
        name: String,
        password: String,
    },
    UserGrant {
        user: String,
        role: String,
    },
    UserRevoke {
        user: String,
        role: String,
    },
    RoleAdd(String),
    RoleGet(String),
    RoleList,
    RoleDelete(String),
    RoleGrant {
        role: String,
        permission: Option<Permission>,
    },
    RoleRevoke {
        role: String,
        key: bytes::Bytes,
        range_end: bytes::Bytes,
    },
}
