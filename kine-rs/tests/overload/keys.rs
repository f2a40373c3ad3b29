//! Keys that tests write in numbers and list as a whole.

use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use tonic::transport::Channel;

/// Fewer than a transaction may have.
const KEYS_PER_TXN: usize = 100;

/// All keys that start with `k`.
pub fn everything() -> RangeRequest {
    RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
}

/// Writes keys in their order, many with one transaction.
pub async fn put_all(kv: &mut KvClient<Channel>, puts: impl Iterator<Item = PutRequest>) {
    let mut puts = puts.map(|put| RequestOp { request: Some(Op::RequestPut(put)) }).peekable();
    while puts.peek().is_some() {
        let success = puts.by_ref().take(KEYS_PER_TXN).collect();
        kv.txn(TxnRequest { success, ..Default::default() }).await.expect("put");
    }
}
