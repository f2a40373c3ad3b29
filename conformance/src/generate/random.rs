//! Random requests on few keys.

use bytes::Bytes;
use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::symbol;

/// At most twelve, and in an order that makes neighbours, prefixes and odd bytes.
const KEYS: [&[u8]; 9] = [b"a", b"a/1", b"a/2", b"b", b"c", b"d", b"\x00", b"e\x00f", b"\xff\xff"];
const VALUES: [&[u8]; 6] = [b"", b"0", b"1", b"2", b"10", b"a longer value with \x00 in it"];
const NESTING_MAX: usize = 3;
const BIG_VALUE: usize = 20_000;

pub struct Random(StdRng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    pub fn below(&mut self, end: u32) -> u32 {
        self.0.random_range(0..end)
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.0.random_range(0..len)
    }

    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        self.0.random_range(low..=high)
    }

    pub fn chance(&mut self, numerator: u32, denominator: u32) -> bool {
        self.0.random_ratio(numerator, denominator)
    }

    /// An index of `weights`, each as likely as its weight says.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let mut point = self.below(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            match point.checked_sub(*weight) {
                Some(rest) => point = rest,
                None => return index,
            }
        }
        weights.len() - 1
    }

    fn key(&mut self) -> Bytes {
        if self.chance(1, 150) {
            return Bytes::new();
        }
        Bytes::from_static(KEYS[self.index(KEYS.len())])
    }

    /// A key or a range: single, half-open, prefix, open-ended, everything, now and then empty or upside down.
    pub fn keys(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        let end = match self.below(10) {
            0..4 => Bytes::new(),
            4..7 => self.key(),
            7 => Bytes::from_static(b"\0"),
            8 if key.starts_with(b"a") => Bytes::from_static(b"b"),
            _ => return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
        };
        (key, end)
    }

    pub fn everything(&mut self) -> RangeRequest {
        let zero = Bytes::from_static(b"\0");
        RangeRequest { key: zero.clone(), range_end: zero, ..Default::default() }
    }

    /// A read; deeper in a transaction less of it is odd, since one odd part refuses the whole.
    pub fn range(&mut self, depth: usize) -> RangeRequest {
        let (key, range_end) = self.keys();
        let odd = 1 + 4 * depth as u32;
        let mut request = RangeRequest {
            key,
            range_end,
            limit: [0, 0, 0, 1, 2, 3, 10, -1][self.index(8)],
            serializable: self.chance(1, 8),
            keys_only: self.chance(1, 8),
            count_only: self.chance(1, 8),
            ..Default::default()
        };
        request.revision = match self.below(10 * odd) {
            0 => symbol::head(-self.between(0, 5)),
            1 => symbol::head(-self.between(0, 60)),
            2 if self.chance(1, 4) => symbol::head(1),
            2 => self.between(-1, 4),
            _ => 0,
        };
        if self.chance(1, 3) {
            request.sort_target = self.below(5) as i32;
            request.sort_order = self.below(3) as i32;
        }
        if self.chance(1, 60 * odd) {
            request.sort_target = [5, -1][self.index(2)];
        }
        if self.chance(1, 8) {
            let revision = symbol::head(-self.between(0, 12));
            match self.below(4) {
                0 => request.min_mod_revision = revision,
                1 => request.max_mod_revision = revision,
                2 => request.min_create_revision = revision,
                _ => request.max_create_revision = revision,
            }
        }
        request
    }

    pub fn put(&mut self) -> PutRequest {
        let mut value = Bytes::from_static(VALUES[self.index(VALUES.len())]);
        if self.chance(1, 100) {
            value = Bytes::from(vec![b'x'; BIG_VALUE]);
        }
        let mut request = PutRequest {
            key: self.key(),
            value,
            prev_kv: self.chance(1, 3),
            ignore_value: self.chance(1, 20),
            ignore_lease: self.chance(1, 20),
            ..Default::default()
        };
        if self.chance(1, 5) {
            request.lease = self.between(1, 4);
        }
        // Mostly well-formed: the contradictions are refused at the door.
        if request.ignore_value && self.chance(4, 5) {
            request.value = Bytes::new();
        }
        if request.ignore_lease && self.chance(4, 5) {
            request.lease = 0;
        }
        request
    }

    pub fn delete(&mut self) -> DeleteRangeRequest {
        let (key, mut range_end) = self.keys();
        // A delete of everything too often would leave nothing to disagree about.
        if range_end == b"\0"[..] && self.chance(3, 4) {
            range_end = Bytes::new();
        }
        DeleteRangeRequest { key, range_end, prev_kv: self.chance(1, 2) }
    }

    pub fn txn(&mut self) -> TxnRequest {
        let mut request = self.txn_at(0);
        bound_deletes_before_puts(&mut request, false);
        request
    }

    fn txn_at(&mut self, depth: usize) -> TxnRequest {
        let mut request = TxnRequest::default();
        for _ in 0..self.below(4) {
            request.compare.push(self.compare());
        }
        for _ in 0..self.below(5) {
            request.success.push(self.operation(depth));
        }
        for _ in 0..self.below(4) {
            request.failure.push(self.operation(depth));
        }
        request
    }

    fn operation(&mut self, depth: usize) -> RequestOp {
        let request = match self.below(100) {
            0 if self.chance(1, 4) => None,
            0..35 => Some(Request::RequestRange(self.range(depth + 1))),
            35..65 => Some(Request::RequestPut(self.put())),
            65..80 => Some(Request::RequestDeleteRange(self.delete())),
            _ if depth < NESTING_MAX => Some(Request::RequestTxn(self.txn_at(depth + 1))),
            _ => Some(Request::RequestPut(self.put())),
        };
        RequestOp { request }
    }

    fn compare(&mut self) -> Compare {
        let (key, range_end) = if self.chance(1, 5) { self.keys() } else { (self.key(), Bytes::new()) };
        let target = self.below(5) as i32;
        let kind = if self.chance(1, 30) { self.below(5) as i32 } else { target };
        let revision = match self.below(4) {
            0 => symbol::head(-self.between(0, 20)),
            1 => 0,
            _ => symbol::known(),
        };
        let target_union = match kind {
            0 => TargetUnion::Version(self.between(0, 3)),
            1 => TargetUnion::CreateRevision(revision),
            2 => TargetUnion::ModRevision(revision),
            3 => TargetUnion::Value(Bytes::from_static(VALUES[self.index(VALUES.len())])),
            _ => TargetUnion::Lease(self.between(0, 4)),
        };
        let target_union = (!self.chance(1, 40)).then_some(target_union);
        Compare { result: self.below(4) as i32, target, key, range_end, target_union }
    }
}

/// Makes open-ended deletes single ones where a put may come after them; tells whether there is a put.
///
/// etcd's check for duplicate keys does not see open-ended ranges, and a key that is deleted and put in one transaction
/// is more than etcd 3.7.1 can take: a put with `ignore_value` or `ignore_lease` ends the process, now and at every start,
/// and a compaction at that revision drops the new value.
fn bound_deletes_before_puts(request: &mut TxnRequest, put_after: bool) -> bool {
    let mut put_seen = put_after;
    for branch in [&mut request.success, &mut request.failure] {
        let mut put_later = put_after;
        for operation in branch.iter_mut().rev() {
            match &mut operation.request {
                Some(Request::RequestPut(_)) => put_later = true,
                Some(Request::RequestDeleteRange(delete)) if put_later && delete.range_end == b"\0"[..] => {
                    delete.range_end = Bytes::new();
                }
                Some(Request::RequestTxn(nested)) => put_later = bound_deletes_before_puts(nested, put_later),
                _ => {}
            }
        }
        put_seen |= put_later;
    }
    put_seen
}
