//! Abuse of HTTP/2 itself, at its bounds and beyond: a connection ends, the server goes on.

use crate::http2::{
    CONTINUATION, Client, DATA, END_HEADERS, Goaway, HEADERS, RST_STREAM, frame, literal, request_headers,
};
use crate::servers::Inside;
use kine_rs::config::{Config, Connections};
use proto::etcdserverpb::RangeRequest;
use std::net::SocketAddr;

const CANCEL: [u8; 4] = [0, 0, 0, 8];
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
const RANGE: &str = "/etcdserverpb.KV/Range";

fn get(client: &mut Client) -> bool {
    let stream = client.call(RANGE, &RangeRequest { key: "k".into(), ..Default::default() });
    client.until(|frame| frame.ends(stream)).is_some()
}

fn serves_others(address: SocketAddr) {
    assert!(get(&mut Client::connect(address)));
}

/// Opens and resets so many streams, as one burst.
fn reset_rapidly(address: SocketAddr, streams: usize) -> Client {
    let mut client = Client::connect(address);
    assert!(get(&mut client));
    let headers = request_headers(RANGE);
    let burst: Vec<u8> = (3..)
        .step_by(2)
        .take(streams)
        .flat_map(|stream| {
            [frame(HEADERS, END_HEADERS, stream, &headers), frame(RST_STREAM, 0, stream, &CANCEL)]
        })
        .flatten()
        .collect();
    // The server may close the connection meanwhile.
    client.try_send_bytes(&burst).ok();
    client
}

#[test]
fn a_burst_of_cancelled_requests_is_taken_and_an_endless_one_is_not() {
    let server = Inside::start(Config::default());
    let mut client = reset_rapidly(server.address(), 500);
    client.skip_streams(501);
    assert!(get(&mut client), "500 cancelled requests are no attack");
    // hyper takes streams on between two reads: only what comes faster adds up.
    let flooded = (0..).find_map(|_| reset_rapidly(server.address(), 100_000).goaway());
    let Some(Goaway { code, reason, .. }) = flooded else { unreachable!("an endless search") };
    assert_eq!((code, reason.as_str()), (ENHANCE_YOUR_CALM, "too_many_resets"));
    serves_others(server.address());
    server.stop();
}

#[test]
fn headers_have_a_size_and_come_in_a_few_frames() {
    let server = Inside::start(Config::default());
    let headers = |count: usize| -> Vec<u8> {
        let value = "v".repeat(100);
        let more = (0..count).flat_map(|n| literal(&format!("x-{n}"), &value));
        request_headers(RANGE).into_iter().chain(more).collect()
    };
    // A header counts with 32 bytes more than it has.
    let ask = |headers: &[u8]| {
        let mut client = Client::connect(server.address());
        let mut pieces = headers.chunks(16 << 10);
        let first = pieces.next().expect("there are headers");
        client.send(HEADERS, 0, 1, first);
        for piece in pieces {
            client.try_send(CONTINUATION, 0, 1, piece).ok();
        }
        client.try_send(CONTINUATION, END_HEADERS, 1, &[]).ok();
        client.try_send(DATA, 1, 1, &[0, 0, 0, 0, 3, 0x0a, 1, b'k']).ok();
        client
    };
    let answered =
        |mut client: Client| client.until(|frame| frame.kind == DATA && frame.stream == 1).is_some();
    assert!(answered(ask(&headers(100))), "14 KB of headers are taken");
    let mut refused = ask(&headers(150));
    let end = refused.until(|frame| frame.ends(1)).expect("answered");
    assert_eq!(end.kind, HEADERS, "a status and no more: 431");
    let goaway = ask(&headers(2_000)).goaway().expect("told why");
    assert!([COMPRESSION_ERROR, ENHANCE_YOUR_CALM].contains(&goaway.code), "{goaway:?}");
    serves_others(server.address());
    server.stop();
}

#[test]
fn headers_that_never_end_end_the_connection() {
    let server = Inside::start(Config::default());
    let mut client = Client::connect(server.address());
    client.send(HEADERS, 0, 1, &request_headers(RANGE));
    // Empty frames: their number is what counts.
    while client.try_send(CONTINUATION, 0, 1, &[]).is_ok() {}
    let goaway = client.goaway();
    // The connection may have been reset before this client came to read why.
    if let Some(goaway) = goaway {
        assert_eq!((goaway.code, goaway.reason.as_str()), (ENHANCE_YOUR_CALM, "too_many_continuations"));
    }
    serves_others(server.address());
    server.stop();
}

#[test]
fn streams_beyond_the_bound_of_a_connection_are_refused() {
    const STREAMS: u32 = 10;
    let connections = Connections { concurrent_streams_max: STREAMS, ..Connections::default() };
    let server = Inside::start(Config { connections, ..Config::default() });
    let mut client = Client::connect(server.address());
    assert!(get(&mut client), "the settings are known from here on");
    let streams: Vec<u32> = (0..=STREAMS).map(|_| client.open("/etcdserverpb.Watch/Watch")).collect();
    let refused = client.until(|frame| frame.kind == RST_STREAM).expect("one is refused");
    assert_eq!((refused.stream, refused.payload.as_slice()), (streams[10], REFUSED_STREAM.as_slice()));
    client.send(RST_STREAM, 0, streams[0], &CANCEL);
    assert!(get(&mut client), "the place of one that has ended is free");
    server.stop();
}

#[test]
fn frames_of_nothing_do_not_keep_the_server_busy() {
    let server = Inside::start(Config::default());
    let mut client = Client::connect(server.address());
    let stream = client.open("/etcdserverpb.Watch/Watch");
    while client.try_send(DATA, 0, stream, &[]).is_ok() {}
    if let Some(goaway) = client.goaway() {
        assert_eq!((goaway.code, goaway.reason.as_str()), (ENHANCE_YOUR_CALM, "too_many_data_frames"));
    }
    serves_others(server.address());
    server.stop();
}
