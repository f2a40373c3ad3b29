package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func nestedTransactions(t *testing.T) {
	client := client(t)
	key := func(name string) string { return t.Name() + "/" + name }
	put, err := client.Put(within(t), key("a"), "1")
	must(t, err)
	lease, err := client.Grant(within(t), 100)
	must(t, err)
	inner := clientv3.OpTxn(
		// All compares look at what was there before the transaction, those inside too.
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key("b")), "=", 0)},
		[]clientv3.Op{clientv3.OpPut(key("c"), "3"), clientv3.OpDelete(key("a"), clientv3.WithPrevKV())},
		[]clientv3.Op{clientv3.OpPut(key("wrong"), "")},
	)
	txn, err := client.Txn(within(t)).
		If(
			clientv3.Compare(clientv3.ModRevision(key("a")), "=", put.Header.Revision),
			clientv3.Compare(clientv3.CreateRevision(key("b")), "=", 0),
			clientv3.Compare(clientv3.Version(key("a")), ">", 0),
			clientv3.Compare(clientv3.LeaseValue(key("a")), "=", clientv3.NoLease),
			clientv3.Compare(clientv3.Value(key("")).WithRange(key("z")), "<", "2"),
		).
		Then(clientv3.OpPut(key("b"), "2", clientv3.WithLease(lease.ID), clientv3.WithPrevKV()), inner, clientv3.OpGet(key(""), clientv3.WithPrefix())).
		Else(clientv3.OpGet(key("a"))).
		Commit()
	must(t, err)
	equal(t, txn.Succeeded, true)
	nested := txn.Responses[1].GetResponseTxn()
	equal(t, nested.Succeeded, true)
	equal(t, string(nested.Responses[1].GetResponseDeleteRange().PrevKvs[0].Value), "1")
	found := txn.Responses[2].GetResponseRange().Kvs
	equal(t, len(found), 2)
	for _, kv := range found {
		equal(t, kv.ModRevision, txn.Header.Revision)
	}

	otherwise, err := client.Txn(within(t)).
		If(clientv3.Compare(clientv3.Version(key("c")), "!=", 1)).
		Then(clientv3.OpPut(key("wrong"), "")).
		Else(inner, clientv3.OpGet(key("c"), clientv3.WithCountOnly())).
		Commit()
	must(t, err)
	equal(t, otherwise.Succeeded, false)
	equal(t, otherwise.Responses[0].GetResponseTxn().Succeeded, false)
	equal(t, otherwise.Responses[1].GetResponseRange().Count, 1)

	_, err = client.Txn(within(t)).Then(clientv3.OpPut(key("d"), "1"), clientv3.OpPut(key("d"), "2")).Commit()
	if !errors.Is(err, rpctypes.ErrDuplicateKey) {
		t.Fatalf("%v", err)
	}
	done, err := client.Do(within(t), clientv3.OpPut(key("a"), "again", clientv3.WithPrevKV()))
	must(t, err)
	equal(t, done.Put().PrevKv == nil, true)
}

func ranges(t *testing.T) {
	client := client(t)
	var revisions []int64
	for number := range 40 {
		put, err := client.Put(within(t), fmt.Sprintf("%s/%02d", t.Name(), number), fmt.Sprint(100-number))
		must(t, err)
		revisions = append(revisions, put.Header.Revision)
	}
	_, err := client.Put(within(t), t.Name()+"/00", "last")
	must(t, err)
	first := func(options ...clientv3.OpOption) string {
		found, err := client.Get(within(t), t.Name()+"/", append(options, clientv3.WithPrefix())...)
		must(t, err)
		return strings.TrimPrefix(string(found.Kvs[0].Key), t.Name()+"/")
	}
	equal(t, first(clientv3.WithFirstKey()...), "00")
	equal(t, first(clientv3.WithLastKey()...), "39")
	equal(t, first(clientv3.WithFirstRev()...), "01")
	equal(t, first(clientv3.WithLastRev()...), "00")
	equal(t, first(clientv3.WithLastCreate()...), "39")
	equal(t, first(clientv3.WithSort(clientv3.SortByVersion, clientv3.SortDescend)), "00")
	equal(t, first(clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)), "39")
	equal(t, first(clientv3.WithMinModRev(revisions[20]), clientv3.WithMaxModRev(revisions[21])), "20")
	equal(t, first(clientv3.WithMinCreateRev(revisions[30])), "30")

	page, err := client.Get(within(t), t.Name()+"/", clientv3.WithPrefix(), clientv3.WithLimit(10), clientv3.WithRev(revisions[19]))
	must(t, err)
	equal(t, page.Count, 20)
	equal(t, page.More, true)
	equal(t, len(page.Kvs), 10)
	keys, err := client.Get(within(t), t.Name()+"/", clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithSerializable())
	must(t, err)
	equal(t, len(keys.Kvs[3].Value), 0)

	stream, err := client.GetStream(within(t), t.Name()+"/", clientv3.WithPrefix())
	must(t, err)
	streamed, err := clientv3.GetStreamToGetResponse(stream)
	must(t, err)
	equal(t, streamed.Count, 40)
	equal(t, len(streamed.Kvs), 40)

	_, err = client.Put(within(t), t.Name()+"/00", "ignored", clientv3.WithIgnoreLease())
	must(t, err)
	_, err = client.Put(within(t), t.Name()+"/absent", "", clientv3.WithIgnoreValue())
	if !errors.Is(err, rpctypes.ErrKeyNotFound) {
		t.Fatalf("%v", err)
	}
	deleted, err := client.Delete(within(t), t.Name()+"/1", clientv3.WithPrefix())
	must(t, err)
	equal(t, deleted.Deleted, 10)
	before, err := client.Get(within(t), t.Name()+"/15", clientv3.WithRev(deleted.Header.Revision-1))
	must(t, err)
	equal(t, string(before.Kvs[0].Value), "85")
}

func limits(t *testing.T) {
	const mebibyte = 1 << 20
	client := client(t, func(config *clientv3.Config) { config.MaxCallSendMsgSize = 8 * mebibyte })
	big := strings.Repeat("x", mebibyte)
	_, err := client.Put(within(t), t.Name(), big)
	must(t, err)
	found, err := client.Get(within(t), t.Name())
	must(t, err)
	equal(t, string(found.Kvs[0].Value) == big, true)
	_, err = client.Put(within(t), t.Name(), strings.Repeat("x", mebibyte*3/2+1))
	if !errors.Is(err, rpctypes.ErrRequestTooLarge) {
		t.Fatalf("%v", err)
	}
	_, err = client.Put(within(t), t.Name(), strings.Repeat("x", 4*mebibyte))
	equal(t, status.Code(err), codes.ResourceExhausted)

	// Twenty of them come back in one answer.
	for number := range 20 {
		_, err = client.Put(within(t), fmt.Sprint(t.Name(), "/", number), big)
		must(t, err)
	}
	all, err := client.Get(within(t), t.Name()+"/", clientv3.WithPrefix())
	must(t, err)
	equal(t, len(all.Kvs), 20)
	stream, err := client.GetStream(within(t), t.Name()+"/", clientv3.WithPrefix())
	must(t, err)
	streamed, err := clientv3.GetStreamToGetResponse(stream)
	must(t, err)
	equal(t, len(streamed.Kvs[19].Value), mebibyte)
	deleted, err := client.Delete(within(t), t.Name()+"/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	must(t, err)
	equal(t, len(deleted.PrevKvs), 20)

	var puts []clientv3.Op
	for number := range 129 {
		puts = append(puts, clientv3.OpPut(fmt.Sprint(t.Name(), "/txn/", number), ""))
	}
	_, err = client.Txn(within(t)).Then(puts...).Commit()
	if !errors.Is(err, rpctypes.ErrTooManyOps) {
		t.Fatalf("%v", err)
	}
	_, err = client.Txn(within(t)).Then(puts[:128]...).Commit()
	must(t, err)

	_, err = client.Put(within(t), "", "no key")
	if !errors.Is(err, rpctypes.ErrEmptyKey) {
		t.Fatalf("%v", err)
	}
	_, err = client.Put(within(t), t.Name(), "", clientv3.WithLease(12345))
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Fatalf("%v", err)
	}
}
