package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func namespaces(t *testing.T) {
	plain := client(t)
	inside := client(t)
	prefix := t.Name() + "/inner/"
	inside.KV = namespace.NewKV(inside.KV, prefix)
	inside.Watcher = namespace.NewWatcher(inside.Watcher, prefix)
	inside.Lease = namespace.NewLease(inside.Lease, prefix)
	beside := namespace.NewKV(plain.KV, t.Name()+"/inner0")
	_, err := beside.Put(within(t), "k", "beside")
	must(t, err)

	watch := inside.Watch(within(t), "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	take(t, watch)
	lease, err := inside.Grant(within(t), 100)
	must(t, err)
	_, err = inside.Put(within(t), "k", "v", clientv3.WithLease(lease.ID))
	must(t, err)
	event := take(t, watch).Events[0]
	equal(t, string(event.Kv.Key), "k")
	stored, err := plain.Get(within(t), prefix+"k")
	must(t, err)
	equal(t, string(stored.Kvs[0].Value), "v")

	all, err := inside.Get(within(t), "", clientv3.WithFromKey())
	must(t, err)
	equal(t, all.Count, 1)
	equal(t, string(all.Kvs[0].Key), "k")
	attached, err := inside.TimeToLive(within(t), lease.ID, clientv3.WithAttachedKeys())
	must(t, err)
	equal(t, string(attached.Keys[0]), "k")

	txn, err := inside.Txn(within(t)).
		If(clientv3.Compare(clientv3.Value("").WithPrefix(), "=", "v"), clientv3.Compare(clientv3.Version("absent"), "=", 0)).
		Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("nested", "n"), clientv3.OpGet("k")}, nil)).
		Commit()
	must(t, err)
	equal(t, txn.Succeeded, true)
	equal(t, string(txn.Responses[0].GetResponseTxn().Responses[1].GetResponseRange().Kvs[0].Key), "k")
	equal(t, string(take(t, watch).Events[0].Kv.Key), "nested")

	deleted, err := inside.Delete(within(t), "", clientv3.WithFromKey(), clientv3.WithPrevKV())
	must(t, err)
	equal(t, deleted.Deleted, 2)
	equal(t, string(deleted.PrevKvs[1].Key), "nested")
	kept, err := beside.Get(within(t), "k")
	must(t, err)
	equal(t, kept.Count, 1)
}

// counted is a client with the number of its calls of KV.
func counted(t *testing.T) (*clientv3.Client, *atomic.Int32) {
	calls := new(atomic.Int32)
	count := func(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if path.Dir(method) == "/etcdserverpb.KV" {
			calls.Add(1)
		}
		return invoke(ctx, method, request, reply, connection, options...)
	}
	return client(t, func(config *clientv3.Config) {
		config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(count))
	}), calls
}

func leasingPair(t *testing.T) (caching, writing clientv3.KV, calls *atomic.Int32) {
	t.Helper()
	client, calls := counted(t)
	caching, closeCaching, err := leasing.NewKV(client, t.Name()+"/leases/")
	must(t, err)
	t.Cleanup(closeCaching)
	other, _ := counted(t)
	writing, closeWriting, err := leasing.NewKV(other, t.Name()+"/leases/")
	must(t, err)
	t.Cleanup(closeWriting)
	return caching, writing, calls
}

func leasingCache(t *testing.T) {
	caching, writing, calls := leasingPair(t)
	key, own := t.Name()+"/key", t.Name()+"/own"
	_, err := writing.Put(within(t), key, "1")
	must(t, err)
	cached := func(key, value string) {
		t.Helper()
		_, err := caching.Get(within(t), key)
		must(t, err)
		before := calls.Load()
		found, err := caching.Get(within(t), key)
		must(t, err)
		equal(t, string(found.Kvs[0].Value), value)
		equal(t, calls.Load(), before)
	}
	cached(key, "1")
	// The writer takes the lease away, and returns when the cache has given it up.
	_, err = writing.Put(within(t), key, "2")
	must(t, err)
	found, err := caching.Get(within(t), key)
	must(t, err)
	equal(t, string(found.Kvs[0].Value), "2")

	_, err = caching.Put(within(t), own, "1")
	must(t, err)
	cached(own, "1")
	_, err = caching.Put(within(t), own, "2")
	must(t, err)
	cached(own, "2")
}

func leasingWrites(t *testing.T) {
	caching, writing, _ := leasingPair(t)
	key := func(number int) string { return fmt.Sprint(t.Name(), "/key/", number) }
	for number := range 5 {
		_, err := writing.Put(within(t), key(number), "old")
		must(t, err)
		_, err = caching.Get(within(t), key(number))
		must(t, err)
	}
	_, err := writing.Delete(within(t), key(0))
	must(t, err)
	found, err := caching.Get(within(t), key(0))
	must(t, err)
	equal(t, found.Count, 0)

	txn, err := writing.Txn(within(t)).
		If(clientv3.Compare(clientv3.Value(key(1)), "=", "old")).
		Then(clientv3.OpPut(key(1), "new"), clientv3.OpDelete(key(2))).
		Else(clientv3.OpGet(key(1))).
		Commit()
	must(t, err)
	equal(t, txn.Succeeded, true)
	found, err = caching.Get(within(t), key(1))
	must(t, err)
	equal(t, string(found.Kvs[0].Value), "new")

	cached, err := caching.Txn(within(t)).
		If(clientv3.Compare(clientv3.Value(key(3)), "=", "old"), clientv3.Compare(clientv3.Version(key(2)), "=", 0)).
		Then(clientv3.OpGet(key(3)), clientv3.OpGet(key(1))).
		Commit()
	must(t, err)
	equal(t, cached.Succeeded, true)
	equal(t, string(cached.Responses[1].GetResponseRange().Kvs[0].Value), "new")

	deleted, err := writing.Delete(within(t), t.Name()+"/key/", clientv3.WithPrefix())
	must(t, err)
	equal(t, deleted.Deleted, 3)
	found, err = caching.Get(within(t), key(4))
	must(t, err)
	equal(t, found.Count, 0)
}

// mirrored copies more keys than the syncer asks for at a time, while they change.
func mirrored(t *testing.T) {
	const keys, changes = 2500, 200
	client := client(t)
	prefix := t.Name() + "/"
	for first := 0; first < keys; first += 100 {
		var puts []clientv3.Op
		for number := first; number < first+100; number++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprint(prefix, number), "base"))
		}
		_, err := client.Txn(within(t)).Then(puts...).Commit()
		must(t, err)
	}
	syncer := mirror.NewSyncer(client, prefix, 0)
	base, failed := syncer.SyncBase(within(t))
	copied := make(map[string]string)
	changed := false
	var last int64
	for page := range base {
		for _, kv := range page.Kvs {
			copied[string(kv.Key)] = string(kv.Value)
		}
		if changed {
			continue
		}
		changed = true
		for number := range changes {
			put, err := client.Put(within(t), fmt.Sprint(prefix, number*7), "changed")
			must(t, err)
			last = put.Header.Revision
			if number%10 == 0 {
				deleted, err := client.Delete(within(t), fmt.Sprint(prefix, number*7))
				must(t, err)
				last = deleted.Header.Revision
			}
		}
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	equal(t, len(copied), keys)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	for updates, upto := syncer.SyncUpdates(ctx), int64(0); upto < last; {
		response := take(t, updates)
		must(t, response.Err())
		for _, event := range response.Events {
			upto = event.Kv.ModRevision
			if event.Type == clientv3.EventTypeDelete {
				delete(copied, string(event.Kv.Key))
			} else {
				copied[string(event.Kv.Key)] = string(event.Kv.Value)
			}
		}
	}
	stored := make(map[string]string)
	found, err := client.Get(within(t), prefix, clientv3.WithPrefix())
	must(t, err)
	for _, kv := range found.Kvs {
		stored[string(kv.Key)] = string(kv.Value)
	}
	equal(t, maps.Equal(copied, stored), true)
	equal(t, len(stored), keys-changes/10)
}

// resolved reaches the server by a name that stands in it.
func resolved(t *testing.T) {
	client := client(t)
	// The name goes to the server as the authority of every call.
	const name = "service"
	manager, err := endpoints.NewManager(client, name)
	must(t, err)
	watch, err := manager.NewWatchChannel(within(t))
	must(t, err)
	must(t, manager.AddEndpoint(within(t), name+"/one", endpoints.Endpoint{Addr: *endpoint, Metadata: "data"}))
	updates := take(t, watch)
	for len(updates) == 0 {
		updates = take(t, watch)
	}
	equal(t, updates[0].Endpoint.Addr, *endpoint)
	equal(t, updates[0].Op, endpoints.Add)
	listed, err := manager.List(within(t))
	must(t, err)
	equal(t, listed[name+"/one"].Metadata.(string), "data")

	builder, err := resolver.NewBuilder(client)
	must(t, err)
	connection, err := grpc.NewClient("etcd:///"+name, grpc.WithResolvers(builder), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer connection.Close()
	status, err := pb.NewMaintenanceClient(connection).Status(within(t), &pb.StatusRequest{})
	must(t, err)
	equal(t, status.Version, "3.7.1")

	must(t, manager.Update(within(t), []*endpoints.UpdateWithOpts{
		endpoints.NewAddUpdateOpts(name+"/two", endpoints.Endpoint{Addr: "127.0.0.1:1"}),
		endpoints.NewDeleteUpdateOpts(name + "/one"),
	}))
	for removed := false; !removed; {
		for _, update := range take(t, watch) {
			removed = removed || update.Op == endpoints.Delete
		}
	}
	must(t, manager.DeleteEndpoint(within(t), name+"/two"))
	listed, err = manager.List(within(t))
	must(t, err)
	equal(t, len(listed), 0)
}

func kubernetesInterface(t *testing.T) {
	client, err := kubernetes.New(clientv3.Config{Endpoints: []string{*endpoint}})
	must(t, err)
	defer client.Close()
	store := client.Kubernetes
	key := t.Name() + "/pods/a"
	created, err := store.OptimisticPut(within(t), key, []byte("1"), 0, kubernetes.PutOptions{GetOnFailure: true})
	must(t, err)
	equal(t, created.Succeeded, true)
	refused, err := store.OptimisticPut(within(t), key, []byte("2"), 0, kubernetes.PutOptions{GetOnFailure: true})
	must(t, err)
	equal(t, refused.Succeeded, false)
	equal(t, refused.KV.ModRevision, created.Revision)
	updated, err := store.OptimisticPut(within(t), key, []byte("2"), created.Revision, kubernetes.PutOptions{})
	must(t, err)
	equal(t, updated.Succeeded, true)
	old, err := store.Get(within(t), key, kubernetes.GetOptions{Revision: created.Revision})
	must(t, err)
	equal(t, string(old.KV.Value), "1")
	equal(t, old.Revision >= updated.Revision, true)
	for _, name := range []string{"b", "c"} {
		_, err = store.OptimisticPut(within(t), t.Name()+"/pods/"+name, []byte(name), 0, kubernetes.PutOptions{})
		must(t, err)
	}
	first, err := store.List(within(t), t.Name()+"/pods/", kubernetes.ListOptions{Limit: 2})
	must(t, err)
	equal(t, first.Count, 3)
	equal(t, len(first.Kvs), 2)
	rest, err := store.List(within(t), t.Name()+"/pods/", kubernetes.ListOptions{
		Limit: 2, Revision: first.Revision, Continue: string(first.Kvs[1].Key) + "\x00",
	})
	must(t, err)
	equal(t, string(rest.Kvs[0].Key), t.Name()+"/pods/c")
	equal(t, rest.Count, 1)
	refusedDelete, err := store.OptimisticDelete(within(t), key, created.Revision, kubernetes.DeleteOptions{GetOnFailure: true})
	must(t, err)
	equal(t, refusedDelete.Succeeded, false)
	equal(t, string(refusedDelete.KV.Value), "2")
	deleted, err := store.OptimisticDelete(within(t), key, updated.Revision, kubernetes.DeleteOptions{})
	must(t, err)
	equal(t, deleted.Succeeded, true)
	count, err := store.Count(within(t), t.Name()+"/pods/", kubernetes.CountOptions{})
	must(t, err)
	equal(t, count, 2)
	_, err = store.Get(within(t), key, kubernetes.GetOptions{Revision: deleted.Revision + 1000})
	if !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Fatalf("%v", err)
	}
}
