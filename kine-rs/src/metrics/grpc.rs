//! gRPC calls as grpc-go counts them: started, handled by code, messages, time; and the bytes of clients.
//!
//! `Grpc::method` finds a method's handles once per call; `Call` follows one call and counts it as cancelled when it is
//! dropped before its status is known. `MessageCounter` finds message boundaries in a body.

use super::{counter, counters, histogram_opts, register};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, Registry};
use prost_reflect::MethodDescriptor;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use tonic::Code;

const LABELS: [&str; 3] = ["grpc_type", "grpc_service", "grpc_method"];
/// grpc-go's default bounds of `grpc_server_handling_seconds`.
const HANDLING_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// gRPC's status codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Versions of clients that are counted apart: a client says what it likes, and each is a series for good.
const VERSIONS_MAX: usize = 32;
const VERSION_UNKNOWN: &str = "unknown";

/// Requests of clients that say they are of one version.
#[derive(Clone)]
pub struct OfVersion {
    unary: IntCounter,
    stream: IntCounter,
}

impl OfVersion {
    pub fn count(&self, method: &Method) {
        if method.is_unary() { self.unary.inc() } else { self.stream.inc() }
    }
}

/// Requests by the version their clients say they are.
struct Versions {
    family: IntCounterVec,
    known: Mutex<HashMap<String, OfVersion>>,
}

impl Versions {
    /// Version names beyond the bound are counted as unknown.
    fn find(&self, version: Option<&str>) -> OfVersion {
        let mut known = self.known.lock().expect("no holder of the versions panics");
        let wanted = version.filter(|version| known.contains_key(*version) || known.len() < VERSIONS_MAX);
        let version = wanted.unwrap_or(VERSION_UNKNOWN);
        let resolve = |kind| self.family.with_label_values(&[kind, version]);
        let of_version = || OfVersion { unary: resolve("unary"), stream: resolve("stream") };
        known.entry(version.to_owned()).or_insert_with(of_version).clone()
    }
}

pub struct Grpc {
    versions: Versions,
    methods: HashMap<String, Arc<Method>, foldhash::fast::RandomState>,
    pub received_bytes: IntCounter,
    pub sent_bytes: IntCounter,
}

/// The handles of one method; what is rare is resolved at its first use.
pub struct Method {
    /// `/etcdserverpb.KV/Range`.
    path: String,
    labels: [String; 3],
    unary: bool,
    unary_beside_keys: bool,
    started: IntCounter,
    pub received: IntCounter,
    pub sent: IntCounter,
    handled: [OnceLock<IntCounter>; CODES.len()],
    seconds: OnceLock<Histogram>,
    families: Arc<Families>,
}

struct Families {
    handled: IntCounterVec,
    seconds: HistogramVec,
}

impl Grpc {
    pub(super) fn new(registry: &Registry) -> Self {
        let family = |name, help| counters(registry, name, help, &LABELS);
        let started = family("grpc_server_started_total", "RPCs started");
        let received = family("grpc_server_msg_received_total", "Messages received from clients");
        let sent = family("grpc_server_msg_sent_total", "Messages sent to clients");
        let with_code = [LABELS.as_slice(), &["grpc_code"]].concat();
        let seconds =
            histogram_opts("grpc_server_handling_seconds", "Time until an RPC was done", (1.0, 2.0, 1))
                .buckets(HANDLING_BUCKETS.to_vec());
        let families = Arc::new(Families {
            handled: counters(registry, "grpc_server_handled_total", "RPCs done, by status code", &with_code),
            seconds: register(registry, HistogramVec::new(seconds, &LABELS).expect("the names are valid")),
        });
        let method = |method: MethodDescriptor| {
            let service = method.parent_service().full_name().to_owned();
            let path = format!("/{service}/{}", method.name());
            let labels = [kind(&method).to_owned(), service.clone(), method.name().to_owned()];
            let resolve = |family: &IntCounterVec| family.with_label_values(&labels);
            let keys = service == "etcdserverpb.KV" && method.name() != "Compact";
            let handles = Method {
                path: path.clone(),
                unary: kind(&method) == "unary",
                unary_beside_keys: kind(&method) == "unary" && !keys,
                started: resolve(&started),
                received: resolve(&received),
                sent: resolve(&sent),
                handled: Default::default(),
                seconds: OnceLock::new(),
                families: families.clone(),
                labels,
            };
            (path, Arc::new(handles))
        };
        let services = proto::descriptors::pool().services();
        let methods =
            services.flat_map(|service| service.methods().collect::<Vec<_>>()).map(method).collect();
        let bytes = |name, help| counter(registry, name, help);
        let versions = counters(
            registry,
            "etcd_server_client_requests_total",
            "Requests by the version of their clients",
            &["type", "client_api_version"],
        );
        Grpc {
            versions: Versions { family: versions, known: Mutex::default() },
            methods,
            received_bytes: bytes(
                "etcd_network_client_grpc_received_bytes_total",
                "Bytes received from clients",
            ),
            sent_bytes: bytes("etcd_network_client_grpc_sent_bytes_total", "Bytes sent to clients"),
        }
    }

    /// Where requests of a client are counted that says it is of this version.
    pub fn version(&self, version: Option<&str>) -> OfVersion {
        self.versions.find(version)
    }

    /// The method at a path such as `/etcdserverpb.KV/Range`.
    pub fn method(&self, path: &str) -> Option<&Arc<Method>> {
        self.methods.get(path)
    }
}

fn kind(method: &MethodDescriptor) -> &'static str {
    match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => "unary",
        (true, false) => "client_stream",
        (false, true) => "server_stream",
        (true, true) => "bidi_stream",
    }
}

impl Method {
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn is_unary(&self) -> bool {
        self.unary
    }

    /// One request and one answer, and nothing that reads or writes keys: those tell more of themselves.
    pub fn is_unary_beside_keys(&self) -> bool {
        self.unary_beside_keys
    }

    fn handled(&self, code: Code) -> &IntCounter {
        self.handled[code as usize].get_or_init(|| {
            let [kind, service, method] = &self.labels;
            self.families.handled.with_label_values(&[kind, service, method, CODES[code as usize]])
        })
    }

    fn seconds(&self) -> &Histogram {
        self.seconds.get_or_init(|| self.families.seconds.with_label_values(&self.labels))
    }
}

/// One call under way.
pub struct Call {
    method: Arc<Method>,
    started: Instant,
    done: bool,
}

impl Call {
    pub fn start(method: Arc<Method>) -> Self {
        method.started.inc();
        Call { method, started: Instant::now(), done: false }
    }

    pub fn method(&self) -> &Arc<Method> {
        &self.method
    }

    pub fn finish(&mut self, code: Code) {
        if !std::mem::replace(&mut self.done, true) {
            self.method.handled(code).inc();
            self.method.seconds().observe(self.started.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.finish(Code::Cancelled);
    }
}

/// Counts the messages of a body, whose pieces may end anywhere. A message counts when its header is complete.
#[derive(Default)]
pub struct MessageCounter {
    header: [u8; 5],
    header_len: usize,
    payload_left: usize,
}

impl MessageCounter {
    /// The messages whose header ends in this piece; `begun` is told their lengths.
    pub fn feed(&mut self, mut piece: &[u8], mut begun: impl FnMut(usize)) -> u64 {
        let mut messages = 0;
        while !piece.is_empty() {
            if self.payload_left > 0 {
                let taken = self.payload_left.min(piece.len());
                self.payload_left -= taken;
                piece = &piece[taken..];
                continue;
            }
            let taken = (self.header.len() - self.header_len).min(piece.len());
            self.header[self.header_len..self.header_len + taken].copy_from_slice(&piece[..taken]);
            self.header_len += taken;
            piece = &piece[taken..];
            if self.header_len == self.header.len() {
                let [_, length @ ..] = self.header;
                self.payload_left = u32::from_be_bytes(length) as usize;
                self.header_len = 0;
                messages += 1;
                begun(self.payload_left);
            }
        }
        messages
    }

    /// Whether the last message is complete.
    pub fn is_between(&self) -> bool {
        self.payload_left == 0 && self.header_len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_the_pieces_end() {
        let body = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 9]].concat();
        for step in 1..=body.len() {
            let mut counter = MessageCounter::default();
            let mut lengths = Vec::new();
            let counted: u64 =
                body.chunks(step).map(|piece| counter.feed(piece, |length| lengths.push(length))).sum();
            assert_eq!((counted, lengths), (3, vec![3, 0, 1]), "in pieces of {step}");
            assert!(counter.is_between());
        }
    }

    #[test]
    fn a_client_that_makes_up_versions_makes_no_series_without_end() {
        let registry = Registry::new();
        let grpc = Grpc::new(&registry);
        let range = grpc.method("/etcdserverpb.KV/Range").expect("the method is known");
        for number in 0..1000 {
            grpc.version(Some(&number.to_string())).count(range);
        }
        grpc.version(Some("5")).count(range);
        let family =
            registry.gather().into_iter().find(|family| family.name() == "etcd_server_client_requests_total");
        let family = family.expect("there");
        assert_eq!(family.get_metric().len(), 2 * (VERSIONS_MAX + 1));
        assert_eq!(grpc.version(None).unary.get(), 1000 - VERSIONS_MAX as u64);
        assert_eq!(grpc.version(Some("5")).unary.get(), 2);
    }

    #[test]
    fn a_dropped_call_counts_as_cancelled() {
        let grpc = Grpc::new(&Registry::new());
        let method = grpc.method("/etcdserverpb.KV/Range").expect("the method is known").clone();
        drop(Call::start(method.clone()));
        let mut call = Call::start(method.clone());
        call.finish(Code::Ok);
        drop(call);
        assert_eq!((method.handled(Code::Cancelled).get(), method.handled(Code::Ok).get()), (1, 1));
        assert_eq!(method.started.get(), 2);
    }
}
