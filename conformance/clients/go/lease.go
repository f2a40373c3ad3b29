package main

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func leases(t *testing.T) {
	client := client(t)
	watch := client.Watch(within(t), t.Name()+"/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	take(t, watch)
	short, err := client.Grant(within(t), 1)
	must(t, err)
	long, err := client.Grant(within(t), 1000)
	must(t, err)
	kept, err := client.Grant(within(t), 2)
	must(t, err)
	for name, lease := range map[string]clientv3.LeaseID{"short": short.ID, "long": long.ID, "kept": kept.ID} {
		_, err = client.Put(within(t), t.Name()+"/"+name, "", clientv3.WithLease(lease))
		must(t, err)
		take(t, watch)
	}
	alive, err := client.KeepAlive(within(t), kept.ID)
	must(t, err)
	equal(t, take(t, alive).TTL, 2)

	// Nobody keeps this one.
	expired := take(t, watch).Events[0]
	equal(t, string(expired.Kv.Key), t.Name()+"/short")
	equal(t, expired.Type, clientv3.EventTypeDelete)
	gone, err := client.TimeToLive(within(t), short.ID)
	must(t, err)
	equal(t, gone.TTL, -1)
	if _, err = client.KeepAliveOnce(within(t), short.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Fatalf("%v", err)
	}
	if _, err = client.Revoke(within(t), short.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Fatalf("%v", err)
	}
	take(t, alive)

	once, err := client.KeepAliveOnce(within(t), long.ID)
	must(t, err)
	equal(t, once.TTL, 1000)
	left, err := client.TimeToLive(within(t), long.ID, clientv3.WithAttachedKeys())
	must(t, err)
	equal(t, left.GrantedTTL, 1000)
	equal(t, string(left.Keys[0]), t.Name()+"/long")
	listed, err := client.Leases(within(t))
	must(t, err)
	found := 0
	for _, lease := range listed.Leases {
		if lease.ID == long.ID || lease.ID == kept.ID {
			found++
		}
	}
	equal(t, found, 2)
	_, err = client.Revoke(within(t), kept.ID)
	must(t, err)
	ended(t, alive)
	equal(t, string(take(t, watch).Events[0].Kv.Key), t.Name()+"/kept")
	_, err = client.Revoke(within(t), long.ID)
	must(t, err)
	if _, err = client.Grant(within(t), 10_000_000_000); !errors.Is(err, rpctypes.ErrLeaseTTLTooLarge) {
		t.Fatalf("%v", err)
	}
}
