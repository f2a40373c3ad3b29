"""etcd3gw, OpenStack's client of etcd's JSON gateway, against a server: HOST and PORT in the environment."""

import base64
import hashlib
import json
import os
import unittest

import etcd3gw
from etcd3gw import exceptions

HOST, PORT = os.environ["HOST"], int(os.environ["PORT"])
DEADLINE_SECONDS = 60


def encoded(text):
    return base64.b64encode(text.encode()).decode()


class Gateway(unittest.TestCase):
    def setUp(self):
        self.client = etcd3gw.client(host=HOST, port=PORT, timeout=DEADLINE_SECONDS)
        self.prefix = self.id() + "/"

    def post(self, path, body):
        return self.client.post(self.client.get_url(path), json=body)

    def test_api_path_is_that_of_a_current_etcd(self):
        self.assertEqual(self.client.api_path, "/v3/")

    def test_keys_are_put_read_sorted_and_deleted(self):
        a, b = self.prefix + "a", self.prefix + "b"
        self.assertEqual(self.client.get(a), [])
        self.assertTrue(self.client.put(a, b"\xff\x00value"))
        self.assertEqual(self.client.get(a), [b"\xff\x00value"])
        self.client.put(b, "2")
        [(value, metadata)] = self.client.get(b, metadata=True)
        self.assertEqual((value, metadata["key"], metadata["version"]), (b"2", b.encode(), "1"))
        self.client.put(b, "3")
        pairs = self.client.get_prefix(self.prefix, sort_order="descend", sort_target="version")
        self.assertEqual([pair[0] for pair in pairs], [b"3", b"\xff\x00value"])
        self.assertIn(b"3", [pair[0] for pair in self.client.get_all()])
        old = self.client.get(b, revision=int(metadata["mod_revision"]))
        self.assertEqual(old, [b"2"])
        self.assertTrue(self.client.delete(a))
        self.assertFalse(self.client.delete(a))
        self.assertTrue(self.client.delete_prefix(self.prefix))
        self.assertEqual(self.client.get_prefix(self.prefix), [])

    def test_transactions_decide(self):
        key = self.prefix + "key"
        self.assertTrue(self.client.create(key, "1"))
        self.assertFalse(self.client.create(key, "2"))
        self.assertTrue(self.client.replace(key, "1", "2"))
        self.assertFalse(self.client.replace(key, "1", "3"))
        answer = self.client.transaction({
            "compare": [{"key": encoded(key), "result": "GREATER", "target": "VERSION", "version": "1"}],
            "success": [
                {"request_txn": {"success": [{"request_put": {"key": encoded(key), "value": encoded("4"), "prev_kv": True}}]}},
                {"request_range": {"key": encoded(key)}},
            ],
        })
        nested, found = answer["responses"]
        previous = nested["response_txn"]["responses"][0]["response_put"]["prev_kv"]
        self.assertEqual(base64.b64decode(previous["value"]), b"2")
        self.assertEqual(base64.b64decode(found["response_range"]["kvs"][0]["value"]), b"4")

    def test_leases_live_and_end(self):
        lease = self.client.lease(ttl=100)
        self.client.put(self.prefix + "leased", "", lease=lease)
        self.assertEqual(lease.keys(), [(self.prefix + "leased").encode()])
        self.assertIn(lease.ttl(), range(90, 101))
        self.assertEqual(lease.refresh(), 100)
        self.assertTrue(lease.revoke())
        self.assertEqual(self.client.get(self.prefix + "leased"), [])
        self.assertEqual(lease.ttl(), -1)

    def test_a_lock_is_held_by_one(self):
        held = self.client.lock(self.prefix, ttl=100)
        self.assertTrue(held.acquire())
        self.assertTrue(held.is_acquired())
        other = self.client.lock(self.prefix, ttl=100)
        self.assertFalse(other.acquire())
        self.assertEqual(held.refresh(), 100)
        self.assertTrue(held.release())
        self.assertTrue(other.acquire())
        self.assertTrue(other.release())
        with self.client.lock(self.prefix, ttl=100) as lock:
            self.assertTrue(lock.is_acquired())

    def test_watches_see_what_happens(self):
        key = self.prefix + "key"
        self.client.put(key, "0")
        [(_, metadata)] = self.client.get(key, metadata=True)
        events, cancel = self.client.watch_prefix(self.prefix, prev_kv=True, start_revision=int(metadata["mod_revision"]) + 1)
        self.client.put(key, "1")
        self.client.delete(key)
        put, deleted = next(events), next(events)
        cancel()
        self.assertEqual((put["kv"]["key"], put["kv"]["value"]), (key.encode(), b"1"))
        self.assertEqual(put["prev_kv"]["value"], encoded("0"))
        self.assertEqual(deleted["type"], "DELETE")
        once = self.client.watch_once(key, timeout=DEADLINE_SECONDS, start_revision=int(metadata["mod_revision"]))
        self.assertEqual(once["kv"]["value"], b"0")
        with self.assertRaises(exceptions.WatchTimedOut):
            self.client.watch_once(self.prefix + "never", timeout=0.01)

    def test_status_and_members(self):
        status = self.client.status()
        self.assertEqual(status["version"], "3.7.1")
        self.assertEqual(status["leader"], status["header"]["member_id"])
        [member] = self.client.members()
        self.assertEqual(member["ID"], status["leader"])

    def test_a_snapshot_is_whole(self):
        self.client.put(self.prefix + "key", "in the snapshot")
        answer = self.client.session.post(self.client.get_url("/maintenance/snapshot"), json={}, stream=True)
        pieces = [json.loads(line)["result"] for line in answer.iter_lines()]
        content = b"".join(base64.b64decode(piece.get("blob", "")) for piece in pieces)
        self.assertIn(b"in the snapshot", content)
        self.assertEqual(content[-32:], hashlib.sha256(content[:-32]).digest())

    def test_errors_have_their_status(self):
        with self.assertRaises(exceptions.Etcd3Exception) as raised:
            self.client.put("", "no key")
        self.assertIn("etcdserver: key is not provided", raised.exception.detail_text)
        with self.assertRaises(exceptions.Etcd3Exception) as raised:
            self.post("/lease/revoke", {"ID": "12345"})
        self.assertIn("etcdserver: requested lease not found", raised.exception.detail_text)

    def test_locks_and_elections_are_services_too(self):
        lock = self.post("/lock/lock", {"name": encoded(self.prefix + "lock")})
        self.post("/lock/unlock", {"key": lock["key"]})
        lease = self.client.lease(ttl=100)
        elected = self.post("/election/campaign", {"name": encoded(self.prefix + "election"), "lease": lease.id, "value": encoded("me")})
        leader = self.post("/election/leader", {"name": encoded(self.prefix + "election")})
        self.assertEqual(leader["kv"]["key"], elected["leader"]["key"])
        self.post("/election/resign", {"leader": elected["leader"]})
