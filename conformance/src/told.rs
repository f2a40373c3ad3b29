//! Everything a kine tells about its database, as text: what is there now and at the compact revision, and every change
//! since then.
//!
//! Said by a Go kine before it is killed and by ours after it took the file over, both texts must be equal. Asked is only
//! what every kine answers, and left out what none of them keeps: versions, the order of a list, and of a value that was
//! replaced everything but itself and its revision.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest};
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use crate::render;
use crate::server::connect;

/// A key that no list below `/` has.
const BESIDE: &str = "no/slash/in/front";

/// What the server at `endpoint` tells; its last change must be of a key below `/`.
///
/// # Errors
/// When it does not answer, or its watch ends before the last change.
pub async fn told(endpoint: &str) -> Result<String> {
    let channel = connect(endpoint).await?;
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let (revision, now) = list(&mut kv, 0).await?.context("the present is compacted")?;
    let compacted = compact_revision(&mut kv, revision).await?;
    let (_, then) = list(&mut kv, compacted).await?.context("the compact revision is compacted")?;
    let mut text = format!("revision {revision}, compacted to {compacted}\n");
    let beside = kv.range(RangeRequest { key: BESIDE.into(), ..RangeRequest::default() }).await?.into_inner();
    writeln!(text, "\nnow:")?;
    for kv in now.iter().chain(&beside.kvs) {
        writeln!(text, "{}", key_value(kv))?;
    }
    writeln!(text, "\nat {compacted}:")?;
    for kv in &then {
        writeln!(text, "{}", key_value(kv))?;
    }
    writeln!(text, "\nsince:")?;
    for event in history(channel, compacted + 1, revision).await? {
        writeln!(text, "{}", change(&event))?;
    }
    Ok(text)
}

/// Whether a list at `revision` is refused because it is compacted.
///
/// # Errors
/// When the server does not answer.
pub async fn is_compacted(endpoint: &str, revision: i64) -> Result<bool> {
    Ok(list(&mut KvClient::new(connect(endpoint).await?), revision).await?.is_none())
}

/// The header's revision and all keys below `/`; none when that is compacted.
async fn list(kv: &mut KvClient<Channel>, revision: i64) -> Result<Option<(i64, Vec<KeyValue>)>> {
    let (key, range_end) = (Bytes::from_static(b"/"), Bytes::from_static(b"0"));
    match kv.range(RangeRequest { key, range_end, revision, ..RangeRequest::default() }).await {
        Ok(answer) => {
            let mut answer = answer.into_inner();
            answer.kvs.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(Some((answer.header.context("a list without a header")?.revision, answer.kvs)))
        }
        Err(status) if status.message().contains("has been compacted") => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// The oldest revision that can be read: kine tells it no other way.
async fn compact_revision(kv: &mut KvClient<Channel>, revision: i64) -> Result<i64> {
    let (mut low, mut high) = (1, revision);
    while low < high {
        let middle = low + (high - low) / 2;
        if list(kv, middle).await?.is_some() { high = middle } else { low = middle + 1 }
    }
    Ok(low)
}

async fn history(channel: Channel, start_revision: i64, last: i64) -> Result<Vec<Event>> {
    let request = WatchCreateRequest {
        key: Bytes::from_static(b"/"),
        range_end: Bytes::from_static(b"0"),
        start_revision,
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
    // The sending side stays open: kine ends a watch with it.
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut responses = client.watch(requests).await?.into_inner();
    let mut events = Vec::new();
    while events.last().is_none_or(|event| revision_of(event) < last) {
        let response = responses.message().await?.context("the watch ended")?;
        if response.canceled {
            bail!("the watch was cancelled: {}", response.cancel_reason);
        }
        events.extend(response.events);
    }
    Ok(events)
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn change(event: &Event) -> String {
    let kv = event.kv.clone().unwrap_or_default();
    let mut text = match event.r#type() {
        EventType::Put => format!("put {}", key_value(&kv)),
        EventType::Delete => format!("delete {} mod={}", render::bytes(&kv.key), kv.mod_revision),
    };
    if let Some(before) = &event.prev_kv {
        text += &format!(" instead of {} mod={}", render::bytes(&before.value), before.mod_revision);
    }
    text
}

fn key_value(kv: &KeyValue) -> String {
    let (key, value) = (render::bytes(&kv.key), render::bytes(&kv.value));
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease={}", kv.lease) };
    format!("{key}={value} create={} mod={}{lease}", kv.create_revision, kv.mod_revision)
}
