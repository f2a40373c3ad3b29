//! Bytes as a request of the JSON gateway: its body is cut into pieces, read as messages or refused, however it was cut;
//! what was read is written as JSON and read as the same message again. Nothing panics.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use conformance::command::Command;
use http_body::Frame;
use http_body_util::StreamBody;
use kine_rs::budget::Budget;
use kine_rs::server::gateway::wire::{HEADER_BYTES, Values, to_json};
use kine_rs::server::measured::Arrivals;
use libfuzzer_sys::{Corpus, fuzz_target};
use prost::Message;
use prost_reflect::MessageDescriptor;
use tokio::runtime::{self, Runtime};
use tonic::Status;
use tonic::body::Body;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"));

const SEEDS: u64 = 40;
/// Of one value: enough for everything libFuzzer makes.
const BYTES_MAX: usize = 1 << 20;
/// Bodies are here before they are read: nothing is ever waited for.
const STALL_MAX: Duration = Duration::from_secs(60);

fuzz_target!(init: fuzz::write(SEEDS, request), |data: &[u8]| -> Corpus {
    let [kind, piece, body @ ..] = data else { return Corpus::Reject };
    let inputs = inputs();
    let input = &inputs[usize::from(*kind) % inputs.len()];
    let whole = read(body, body.len().max(1), input).ok();
    let cut = read(body, usize::from(*piece).max(1), input).ok();
    assert!(whole == cut, "{whole:?} is not {cut:?}");
    for message in whole.unwrap_or_default() {
        let json = to_json(input, message.slice(HEADER_BYTES..));
        let again = read(&json, json.len().max(1), input).expect("what was written can be read");
        assert!(again == [message], "{}", String::from_utf8_lossy(&json));
    }
    Corpus::Keep
});

/// What every method takes, always in the same order.
fn inputs() -> Vec<MessageDescriptor> {
    let services = proto::descriptors::pool().services();
    services.flat_map(|service| service.methods().map(|method| method.input()).collect::<Vec<_>>()).collect()
}

/// The messages of a body that comes in pieces, or why there are none.
fn read(body: &[u8], piece: usize, input: &MessageDescriptor) -> Result<Vec<Bytes>, String> {
    let pieces = body.chunks(piece).map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))));
    let body = Body::new(StreamBody::new(tokio_stream::iter(pieces.collect::<Vec<_>>())));
    let arrivals = Arrivals {
        budget: Budget::new(2 * BYTES_MAX, 0),
        message_bytes_max: BYTES_MAX,
        stall_max: STALL_MAX,
    };
    let mut values = Values::new(body, input.clone(), BYTES_MAX, &arrivals);
    RUNTIME.block_on(async {
        let mut messages = Vec::new();
        while let Some(message) = values.next().await.map_err(|status| status.message().to_owned())? {
            messages.push(message);
        }
        Ok(messages)
    })
}

/// A program's first request, as a client of the gateway sends it.
fn request(program: &[Command]) -> Vec<u8> {
    let encoded = program.iter().find_map(|command| match command {
        Command::Range(range) => Some(("RangeRequest", range.encode_to_vec())),
        Command::Put(put) => Some(("PutRequest", put.encode_to_vec())),
        Command::Delete(delete) => Some(("DeleteRangeRequest", delete.encode_to_vec())),
        Command::Txn(txn) => Some(("TxnRequest", txn.encode_to_vec())),
        _ => None,
    });
    let (name, message) = encoded.unwrap_or(("WatchRequest", Vec::new()));
    let inputs = inputs();
    let kind = inputs.iter().position(|input| input.name() == name).expect("a method takes it");
    [vec![kind as u8, 7], to_json(&inputs[kind], message.into())].concat()
}
