package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func watchOptions(t *testing.T) {
	client := client(t)
	prefix := t.Name() + "/"
	first, err := client.Put(within(t), prefix+"a", "1")
	must(t, err)
	start := clientv3.WithRev(first.Header.Revision)
	ctx := clientv3.WithRequireLeader(within(t))
	all := client.Watch(ctx, prefix, clientv3.WithPrefix(), start, clientv3.WithPrevKV())
	puts := client.Watch(ctx, prefix, clientv3.WithPrefix(), start, clientv3.WithFilterDelete())
	deletes := client.Watch(ctx, prefix, clientv3.WithPrefix(), start, clientv3.WithFilterPut(), clientv3.WithPrevKV())
	future := client.Watch(ctx, prefix+"a", clientv3.WithRev(first.Header.Revision+2))
	_, err = client.Delete(within(t), prefix+"a")
	must(t, err)
	_, err = client.Txn(ctx).Then(clientv3.OpPut(prefix+"a", "2"), clientv3.OpPut(prefix+"b", "1")).Commit()
	must(t, err)

	collect := func(watch clientv3.WatchChan, count int) (seen string) {
		for found := 0; found < count; {
			response := take(t, watch)
			must(t, response.Err())
			for _, event := range response.Events {
				found++
				seen += fmt.Sprintf("%s %s=%s", event.Type, strings.TrimPrefix(string(event.Kv.Key), prefix), event.Kv.Value)
				if event.PrevKv != nil {
					seen += " after " + string(event.PrevKv.Value)
				}
				seen += "; "
			}
		}
		return seen
	}
	equal(t, collect(all, 4), "PUT a=1; DELETE a= after 1; PUT a=2; PUT b=1; ")
	equal(t, collect(puts, 3), "PUT a=1; PUT a=2; PUT b=1; ")
	equal(t, collect(deletes, 1), "DELETE a= after 1; ")
	equal(t, collect(future, 1), "PUT a=2; ")

	// Progress comes for the whole stream, once everything has been delivered.
	reported := false
	for !reported {
		must(t, client.RequestProgress(ctx))
		select {
		case response := <-all:
			must(t, response.Err())
			reported = response.IsProgressNotify() && response.Header.Revision >= first.Header.Revision+2
		case <-time.After(time.Second):
		}
	}

	// More in one revision than fits into one message.
	big := strings.Repeat("x", 400<<10)
	fragments := client.Watch(within(t), prefix+"big/", clientv3.WithPrefix(), clientv3.WithFragment(), clientv3.WithCreatedNotify())
	take(t, fragments)
	for number := range 8 {
		_, err = client.Put(within(t), fmt.Sprint(prefix, "put/", number), big)
		must(t, err)
	}
	var puts8 []clientv3.Op
	for number := range 3 {
		puts8 = append(puts8, clientv3.OpPut(fmt.Sprint(prefix, "big/", number), big))
	}
	_, err = client.Txn(within(t)).Then(puts8...).Commit()
	must(t, err)
	response := take(t, fragments)
	must(t, response.Err())
	equal(t, len(response.Events), 3)
	equal(t, response.IsProgressNotify(), false)

	cancelled, cancel := context.WithCancel(within(t))
	ending := client.Watch(cancelled, prefix, clientv3.WithCreatedNotify())
	equal(t, take(t, ending).Created, true)
	cancel()
	ended(t, ending)
}

func watchCompacted(t *testing.T) {
	client := client(t)
	var revisions []int64
	for number := range 5 {
		put, err := client.Put(within(t), t.Name(), fmt.Sprint(number))
		must(t, err)
		revisions = append(revisions, put.Header.Revision)
	}
	_, err := client.Compact(within(t), revisions[3], clientv3.WithCompactPhysical())
	must(t, err)
	watch := client.Watch(within(t), t.Name(), clientv3.WithRev(revisions[1]))
	response := take(t, watch)
	equal(t, response.CompactRevision, revisions[3])
	equal(t, response.Canceled, true)
	if !errors.Is(response.Err(), rpctypes.ErrCompacted) {
		t.Fatalf("%v", response.Err())
	}
	ended(t, watch)
	_, err = client.Get(within(t), t.Name(), clientv3.WithRev(revisions[2]))
	if !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatalf("%v", err)
	}
	_, err = client.Compact(within(t), revisions[3])
	if !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatalf("%v", err)
	}
	watch = client.Watch(within(t), t.Name(), clientv3.WithRev(revisions[3]))
	equal(t, string(take(t, watch).Events[0].Kv.Value), "3")
}
