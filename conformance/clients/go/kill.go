package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/ordering"
)

// back waits until the server answers again: reads are repeated by the client itself.
func back(t *testing.T, client *clientv3.Client) {
	t.Helper()
	for ctx := within(t); ; {
		_, err := client.Get(ctx, "health")
		if err == nil {
			return
		}
		must(t, ctx.Err())
	}
}

func orderedAcrossKill(t *testing.T) {
	client := client(t)
	violated := errors.New("an answer is older than the one before")
	ordered := ordering.NewKV(client.KV, func(clientv3.Op, clientv3.OpResponse, int64) error { return violated })
	for round := range 3 {
		for range 20 {
			_, err := client.Put(within(t), t.Name(), "")
			must(t, err)
			_, err = ordered.Get(within(t), t.Name(), clientv3.WithSerializable())
			must(t, err)
			_, err = ordered.Txn(within(t)).Then(clientv3.OpGet(t.Name())).Commit()
			must(t, err)
		}
		if round < 2 {
			killServer(t)
			back(t, client)
		}
	}
	stale := ordering.NewKV(client.KV, ordering.NewOrderViolationSwitchEndpointClosure(client))
	_, err := stale.Get(within(t), t.Name())
	must(t, err)
}

// watchAcrossKill holds one watch, of etcd's client, over everything that three killed servers said.
func watchAcrossKill(t *testing.T) {
	const writers, acknowledgements, kills = 4, 300, 3
	client := client(t)
	prefix := t.Name() + "/"
	begin, err := client.Put(within(t), prefix+"begin", "")
	must(t, err)
	watch := client.Watch(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithRev(begin.Header.Revision))

	writing, stop := context.WithCancel(t.Context())
	defer stop()
	var mutex sync.Mutex
	acknowledged := make(map[int64]string)
	progress := make(chan struct{})
	var group sync.WaitGroup
	for writer := range writers {
		group.Go(func() {
			for number := 0; writing.Err() == nil; number++ {
				value := fmt.Sprint(writer, " wrote ", number)
				put, err := client.Put(writing, fmt.Sprint(prefix, writer), value)
				if err != nil {
					// Written or not: nobody knows. Wait for the server before the next one.
					client.Get(writing, "health")
					continue
				}
				mutex.Lock()
				if other, taken := acknowledged[put.Header.Revision]; taken {
					t.Errorf("revision %d is of two writes: %q, %q", put.Header.Revision, other, value)
				}
				acknowledged[put.Header.Revision] = value
				mutex.Unlock()
				select {
				case progress <- struct{}{}:
				case <-writing.Done():
				}
			}
		})
	}
	for range kills {
		for range acknowledgements {
			take(t, progress)
		}
		killServer(t)
	}
	for range acknowledgements {
		take(t, progress)
	}
	stop()
	group.Wait()
	back(t, client)
	end, err := client.Put(within(t), prefix+"end", "")
	must(t, err)

	history := func(watch clientv3.WatchChan) map[int64]string {
		seen := make(map[int64]string)
		last := begin.Header.Revision - 1
		for last < end.Header.Revision {
			response := take(t, watch)
			must(t, response.Err())
			for _, event := range response.Events {
				if event.Kv.ModRevision <= last {
					t.Fatalf("revision %d comes after %d", event.Kv.ModRevision, last)
				}
				last = event.Kv.ModRevision
				// A write that was given up by its writer can come after the end.
				if last <= end.Header.Revision {
					seen[last] = string(event.Kv.Value)
				}
			}
		}
		return seen
	}
	seen := history(watch)
	stored := history(client.Watch(within(t), prefix, clientv3.WithPrefix(), clientv3.WithRev(begin.Header.Revision)))
	if !maps.Equal(seen, stored) {
		t.Fatalf("seen %d revisions, stored are %d: %v", len(seen), len(stored), differing(seen, stored))
	}
	for _, revision := range slices.Sorted(maps.Keys(acknowledged)) {
		equal(t, seen[revision], acknowledged[revision])
	}
}

// differing has the revisions that are in one of the histories only.
func differing(seen, stored map[int64]string) (found []string) {
	for revision, value := range stored {
		if seen[revision] != value {
			found = append(found, fmt.Sprintf("%d: seen %q, stored %q", revision, seen[revision], value))
		}
	}
	return found
}

func keepAliveAcrossKill(t *testing.T) {
	client := client(t)
	lease, err := client.Grant(within(t), 9)
	must(t, err)
	_, err = client.Put(within(t), t.Name(), "", clientv3.WithLease(lease.ID))
	must(t, err)
	alive, err := client.KeepAlive(t.Context(), lease.ID)
	must(t, err)
	take(t, alive)
	killServer(t)
	back(t, client)
	for len(alive) > 0 {
		take(t, alive)
	}
	equal(t, take(t, alive).TTL, 9)
	left, err := client.TimeToLive(within(t), lease.ID, clientv3.WithAttachedKeys())
	must(t, err)
	equal(t, len(left.Keys), 1)
	equal(t, left.TTL > 0, true)
	_, err = client.Revoke(within(t), lease.ID)
	must(t, err)
	ended(t, alive)
	found, err := client.Get(within(t), t.Name())
	must(t, err)
	equal(t, found.Count, 0)
}
