//! Replies that are written in pieces say what the whole would, whatever happens to their keys meanwhile.

use crate::http2::{Client, DATA};
use crate::keys::everything;
use crate::servers::Inside;
use bytes::Bytes;
use kine_rs::config::Config;
use prost::Message;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response as Answer;
use proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};
use proto::mvccpb::KeyValue;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Together several pieces; values differ in length and content, one is larger than a piece.
const KEYS: usize = 3_000;
const LARGE_VALUE: usize = 300 << 10;

fn value(key: usize, round: u8) -> Bytes {
    let length = if key == 7 { LARGE_VALUE } else { 500 + (key * 37) % 2_000 };
    vec![round.wrapping_add(key as u8); length].into()
}

fn put(key: usize, round: u8) -> PutRequest {
    PutRequest { key: format!("k{key:05}").into(), value: value(key, round), ..Default::default() }
}

/// Puts all keys; the key-values as they are then.
async fn fill(kv: &mut KvClient<Channel>, round: u8, before: &[KeyValue]) -> Vec<KeyValue> {
    let mut all = Vec::new();
    for key in 0..KEYS {
        let PutRequest { key: name, value, .. } = put(key, round);
        let revision =
            kv.put(put(key, round)).await.expect("put").into_inner().header.expect("a header").revision;
        let old = before.get(key);
        all.push(KeyValue {
            key: name,
            value,
            create_revision: old.map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.map_or(0, |old| old.version) + 1,
            lease: 0,
        });
    }
    all
}

async fn connect(server: &Inside) -> KvClient<Channel> {
    let client = KvClient::connect(server.url()).await.expect("connected");
    client.max_decoding_message_size(usize::MAX)
}

async fn range(kv: &mut KvClient<Channel>, request: RangeRequest) -> RangeResponse {
    kv.range(request).await.expect("answered").into_inner()
}

async fn replies_are_whole(server: &Inside) {
    let mut kv = connect(server).await;
    let old = fill(&mut kv, 1, &[]).await;
    let new = fill(&mut kv, 2, &old).await;
    let newest = new[KEYS - 1].mod_revision;
    let count = KEYS as i64;

    let all = range(&mut kv, everything()).await;
    assert!(all.kvs == new && (all.count, all.more) == (count, false));
    assert_eq!(all.header.expect("a header").revision, newest);
    let past = range(&mut kv, RangeRequest { revision: old[KEYS - 1].mod_revision, ..everything() }).await;
    assert!(past.kvs == old && (past.count, past.more) == (count, false));

    let limited = range(&mut kv, RangeRequest { limit: 2_500, ..everything() }).await;
    assert!(limited.kvs == new[..2_500] && (limited.count, limited.more) == (count, true));
    let filtered = RangeRequest { min_mod_revision: new[500].mod_revision, limit: 2_000, ..everything() };
    let filtered = range(&mut kv, filtered).await;
    assert!(filtered.kvs == new[500..2_500] && (filtered.count, filtered.more) == (count, true));
    let keys = range(&mut kv, RangeRequest { keys_only: true, ..everything() }).await;
    let without = |kv: &KeyValue| KeyValue { value: Bytes::new(), ..kv.clone() };
    assert!(keys.kvs == new.iter().map(without).collect::<Vec<_>>() && keys.count == count);

    let sorted = |target: SortTarget| RangeRequest {
        sort_order: SortOrder::Descend as i32,
        sort_target: target as i32,
        ..everything()
    };
    let mut reversed = new.clone();
    reversed.reverse();
    assert!(range(&mut kv, sorted(SortTarget::Mod)).await.kvs == reversed);
    let mut by_value = new.clone();
    by_value.sort_by(|a, b| b.value.cmp(&a.value));
    let answer = range(&mut kv, RangeRequest { limit: 2_500, ..sorted(SortTarget::Value) }).await;
    assert!(answer.kvs == by_value[..2_500] && answer.more);

    let op = |request| RequestOp { request: Some(Op::RequestRange(request)) };
    let some = RangeRequest { key: "k00001".into(), ..Default::default() };
    let success = vec![op(everything()), op(some), op(RangeRequest { limit: 1_500, ..everything() })];
    let txn = kv.txn(TxnRequest { success, ..Default::default() }).await.expect("answered").into_inner();
    let ranges: Vec<&RangeResponse> = txn
        .responses
        .iter()
        .map(|op| match &op.response {
            Some(Answer::ResponseRange(range)) => range,
            other => panic!("a range is answered with a range, not {other:?}"),
        })
        .collect();
    assert!(txn.succeeded && txn.header.expect("a header").revision == newest);
    assert!(ranges[0].kvs == new && ranges[1].kvs == new[1..2] && ranges[2].kvs == new[..1_500]);
    assert_eq!(
        (ranges[2].more, ranges[2].count, ranges[0].header.expect("a header").revision),
        (true, count, newest)
    );

    let mut stream = kv.range_stream(everything()).await.expect("answered").into_inner();
    let (mut streamed, mut last) = (Vec::new(), None);
    while let Some(message) = stream.message().await.expect("no error") {
        let chunk = message.range_response.expect("a response");
        streamed.extend(chunk.kvs.iter().cloned());
        last = Some(chunk);
    }
    let last = last.expect("a message");
    assert!(streamed == new && (last.count, last.more) == (count, false));
    assert_eq!(last.header.expect("in the last one").revision, newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_in_pieces_is_the_whole_reply() {
    let server = Inside::start(Config::default());
    replies_are_whole(&server).await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_in_pieces_from_disk_is_the_whole_reply() {
    let server = Inside::on_disk(Config::default());
    replies_are_whole(&server).await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_reply_in_json_is_that_of_grpc() {
    let server = Inside::start(Config::default());
    let mut kv = connect(&server).await;
    let all = fill(&mut kv, 1, &[]).await;
    // {"key":"k","range_end":"l"}
    let answer = post(server.address(), "/v3/kv/range", r#"{"key":"aw==","range_end":"bA=="}"#);
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!((&answer["count"], answer.get("more")), (&KEYS.to_string().into(), None));
    assert_eq!(answer["header"]["revision"], all[KEYS - 1].mod_revision.to_string());
    let kvs = answer["kvs"].as_array().expect("a list");
    assert_eq!(kvs.len(), KEYS);
    for (found, kv) in kvs.iter().zip(&all) {
        use base64::prelude::{BASE64_STANDARD, Engine};
        assert_eq!(found["key"], BASE64_STANDARD.encode(&kv.key));
        assert!(found["value"] == BASE64_STANDARD.encode(&kv.value), "{}", found["key"]);
        assert_eq!(found["mod_revision"], kv.mod_revision.to_string());
    }
    server.stop();
}

/// The body of an answer that ends with its connection; it may come in chunks.
fn post(address: SocketAddr, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    body.to_owned()
}

/// Begins to read a list, overwrites everything and compacts, and reads on.
async fn compacted_under_a_reader(server: &Inside, request: RangeRequest, expected: &[KeyValue]) {
    let mut kv = connect(server).await;
    let mut reader = Client::connect(server.address());
    let stream = reader.call("/etcdserverpb.KV/Range", &request);
    let first = reader.until(|frame| frame.kind == DATA && frame.stream == stream).expect("it begins");
    let newest = fill(&mut kv, 9, &[]).await[KEYS - 1].mod_revision;
    kv.compact(CompactionRequest { revision: newest, physical: false }).await.expect("compacted");
    // Each of these lets the writer drop some of what was compacted, if it may.
    for key in 0..100 {
        kv.put(put(key, 10)).await.expect("put");
    }
    let stale = kv.range(RangeRequest { revision: newest - 1, ..everything() }).await;
    assert_eq!(stale.expect_err("compacted").code(), Code::OutOfRange);
    reader.allow(0, first.payload.len() as u32);
    reader.allow(stream, first.payload.len() as u32);
    let (rest, complete) = reader.read_to_end(stream);
    let body = [first.payload, rest].concat();
    let length = u32::from_be_bytes(body[1..5].try_into().expect("four bytes")) as usize;
    assert!(complete && body.len() == 5 + length, "{} of {length}", body.len());
    let response = RangeResponse::decode(&body[5..]).expect("a response");
    assert!(response.kvs == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reply_has_begun_with_is_not_compacted_away() {
    let server = Inside::on_disk(Config::default());
    let mut kv = connect(&server).await;
    let first = fill(&mut kv, 1, &[]).await;
    compacted_under_a_reader(&server, everything(), &first).await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reply_at_an_old_revision_has_begun_with_is_not_compacted_away() {
    let server = Inside::on_disk(Config::default());
    let mut kv = connect(&server).await;
    let first = fill(&mut kv, 1, &[]).await;
    fill(&mut kv, 2, &first).await;
    let request = RangeRequest { revision: first[KEYS - 1].mod_revision, ..everything() };
    compacted_under_a_reader(&server, request, &first).await;
    server.stop();
}

/// What one transaction that writes may return.
const WRITTEN_REPLY_BYTES_MAX: usize = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_writes_returns_only_what_fits_in_memory() {
    const VALUE: usize = 1 << 20;
    let server = Inside::start(Config::default());
    let mut kv = connect(&server).await;
    let put = |n: usize| PutRequest {
        key: format!("k{n:03}").into(),
        value: vec![7; VALUE].into(),
        ..Default::default()
    };
    let fitting = (WRITTEN_REPLY_BYTES_MAX - (1 << 10)) / VALUE;
    for n in 0..fitting {
        kv.put(put(n)).await.expect("put");
    }
    let write_and_read = || {
        let mark = PutRequest { key: "mark".into(), ..Default::default() };
        let success = [Op::RequestPut(mark), Op::RequestRange(everything())];
        let success = success.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
        TxnRequest { success, ..Default::default() }
    };
    let returned = kv.txn(write_and_read()).await.expect("it fits").into_inner();
    let Some(Answer::ResponseRange(range)) = &returned.responses[1].response else { panic!("{returned:?}") };
    assert_eq!(range.kvs.len(), fitting);
    let newest = returned.header.expect("a header").revision;

    kv.put(put(fitting)).await.expect("put");
    kv.put(put(fitting + 1)).await.expect("put");
    let refused = |status: Status| {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("the reply would be larger than 64 MiB"), "{status}");
    };
    refused(kv.txn(write_and_read()).await.expect_err("it does not fit"));
    let delete = DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: true };
    refused(kv.delete_range(delete.clone()).await.expect_err("it does not fit"));
    // Nothing has changed, and what needs not be returned is no problem.
    let after =
        kv.range(RangeRequest { key: "mark".into(), ..Default::default() }).await.expect("read").into_inner();
    assert_eq!((after.header.expect("a header").revision, after.kvs[0].mod_revision), (newest + 2, newest));
    let deleted = kv.delete_range(DeleteRangeRequest { prev_kv: false, ..delete }).await.expect("deleted");
    assert_eq!(deleted.into_inner().deleted, fitting as i64 + 2);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_revision_is_compacted_does_not_hold_that_up_and_ends_as_from_etcd() {
    const BYTES: usize = 10 << 10;
    let server = Inside::on_disk(Config::default());
    let mut kv = connect(&server).await;
    let put = |n: usize| {
        let put = PutRequest {
            key: format!("k{n:05}").into(),
            value: vec![n as u8; BYTES].into(),
            ..Default::default()
        };
        RequestOp { request: Some(Op::RequestPut(put)) }
    };
    for first in (0..1_000).step_by(100) {
        let success = (first..first + 100).map(put).collect();
        kv.txn(TxnRequest { success, ..Default::default() }).await.expect("put");
    }
    let mut stream = kv.range_stream(everything()).await.expect("answered").into_inner();
    stream.message().await.expect("no error").expect("it has begun");
    let other = PutRequest { key: "other".into(), ..Default::default() };
    let revision = kv.put(other).await.expect("put").into_inner().header.expect("a header").revision;
    kv.compact(CompactionRequest { revision, physical: true }).await.expect("it waits for nobody");
    let refused = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "the stream has come to its end"),
            Err(status) => break status,
        }
    };
    let expected = (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
    assert_eq!((refused.code(), refused.message()), expected);
    server.stop();
}
