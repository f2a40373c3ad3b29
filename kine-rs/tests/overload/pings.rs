//! Keepalive pings, counted as grpc-go counts them; a real etcd is the measure.

use crate::http2::{ACK, Client, DATA, GOAWAY, Goaway, HEADERS, PING};
use crate::servers::{Inside, Process};
use kine_rs::config::{Config, Connections};
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest};
use std::net::SocketAddr;
use std::time::Duration;

const ENHANCE_YOUR_CALM: u32 = 11;
/// Pings that a client can send in a row before it has to go, the last one included.
const PINGS_MAX: usize = 4;
const MANY: usize = 50;

/// Sends a ping; true: it was answered, and the connection goes on.
fn ping(client: &mut Client) -> bool {
    client.send(PING, 0, 0, b"12345678");
    let answer = client.until(|frame| (frame.kind == PING && frame.flags & ACK != 0) || frame.kind == GOAWAY);
    answer.expect("the connection goes on").kind == PING
}

/// Pings until it is too much, which must be at once when no more is due than `PINGS_MAX`.
fn ping_too_often(client: &mut Client) -> Option<Goaway> {
    for _ in 1..PINGS_MAX {
        assert!(ping(client), "too early");
    }
    client.send(PING, 0, 0, b"12345678");
    client.goaway()
}

fn too_many_pings(last_stream: u32) -> Option<Goaway> {
    Some(Goaway { last_stream, code: ENHANCE_YOUR_CALM, reason: "too_many_pings".into() })
}

fn get(client: &mut Client) -> u32 {
    let stream =
        client.call("/etcdserverpb.KV/Range", &RangeRequest { key: "k".into(), ..Default::default() });
    client.until(|frame| frame.kind == HEADERS && frame.ends(stream)).expect("answered");
    stream
}

/// Opens a watch, which stays under way.
fn watch(client: &mut Client) -> u32 {
    let create = WatchCreateRequest { key: "k".into(), ..Default::default() };
    let stream = client.open("/etcdserverpb.Watch/Watch");
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    client.message(stream, &request, false);
    client.until(|frame| frame.kind == DATA && frame.stream == stream).expect("created");
    stream
}

fn pings_are_counted(address: SocketAddr) {
    // Without a request under way.
    assert_eq!(ping_too_often(&mut Client::connect(address)), too_many_pings(0));
    // After one: its answer forgives the ping that follows it.
    let mut client = Client::connect(address);
    let stream = get(&mut client);
    assert_eq!(ping_too_often(&mut client), too_many_pings(stream));
    // With one under way, sooner than every five seconds: not later than when all of them come in time.
    let mut client = Client::connect(address);
    let stream = watch(&mut client);
    assert!((1..PINGS_MAX).all(|_| ping(&mut client)), "too early");
    while ping(&mut client) {}
    assert_eq!(client.goaway(), too_many_pings(stream));
    // Answers in between forgive.
    let mut client = Client::connect(address);
    for _ in 0..MANY {
        get(&mut client);
        assert!(ping(&mut client) && ping(&mut client) && ping(&mut client));
    }
    // Answers to pings that were never sent are no pings.
    let mut client = Client::connect(address);
    for _ in 0..MANY {
        client.send(PING, ACK, 0, b"12345678");
    }
    assert!(ping(&mut client));
}

#[test]
fn a_client_that_pings_too_often_has_to_go_as_from_etcd() {
    pings_are_counted(Process::etcd(&[]).address());
    let server = Inside::start(Config::default());
    pings_are_counted(server.address());
    server.stop();
}

/// With the least time at nearly nothing every ping comes late enough; without a request under way that does not matter.
fn pings_at_leisure(address: SocketAddr) {
    let mut client = Client::connect(address);
    let stream = watch(&mut client);
    assert!((0..MANY).all(|_| ping(&mut client)));
    get(&mut client);
    assert!((0..MANY).all(|_| ping(&mut client)), "{stream} is still under way");
    assert_eq!(ping_too_often(&mut Client::connect(address)), too_many_pings(0));
}

#[test]
fn a_client_that_keeps_to_the_least_time_is_never_cut_off() {
    pings_at_leisure(Process::etcd(&["--grpc-keepalive-min-time=1ns"]).address());
    let connections =
        Connections { client_ping_interval_min: Some(Duration::from_nanos(1)), ..Connections::default() };
    let server = Inside::start(Config { connections, ..Config::default() });
    pings_at_leisure(server.address());
    server.stop();
}
