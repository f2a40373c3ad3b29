// The Go client of etcd (client/v3 and every package in it) against a server: what a program that was written for etcd
// relies on, asserted.
//
// conformance/tests/go_client.rs builds nothing and decides nothing: it gives this program a server of ours and, to hold the
// program itself to the truth, a real etcd. A line "kill" on standard output asks for SIGKILL and a new start of the
// server; the answer is a line on standard input. Every test has keys of its own, below its name.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// deadline is longer than anything here takes on a busy machine.
const deadline = time.Minute

// tests in this order: the last ones kill the server and turn authentication on.
var tests = []testing.InternalTest{
	{Name: "a mutex lets one in at a time", F: mutexExcludes},
	{Name: "TryLock says that a lock is taken", F: tryLock},
	{Name: "who loses its session loses the lock", F: lostSession},
	{Name: "a session can be handed on", F: orphanedSession},
	{Name: "an election has one leader at a time", F: election},
	{Name: "STM keeps what its isolation level promises", F: stmIsolation},
	{Name: "STM that fails writes nothing", F: stmAborts},
	{Name: "STM reads one revision", F: stmSnapshots},
	{Name: "namespaces hide their prefix", F: namespaces},
	{Name: "leasing answers from its cache until somebody writes", F: leasingCache},
	{Name: "leasing follows deletions, ranges and transactions", F: leasingWrites},
	{Name: "a mirror has the base and every update", F: mirrored},
	{Name: "endpoints resolve to servers", F: resolved},
	{Name: "Kubernetes' interface", F: kubernetesInterface},
	{Name: "transactions nest", F: nestedTransactions},
	{Name: "ranges by revision, sort, limit and stream", F: ranges},
	{Name: "limits of requests", F: limits},
	{Name: "watches filter, fragment and report progress", F: watchOptions},
	{Name: "a watch of compacted revisions says so", F: watchCompacted},
	{Name: "leases end, and take their keys", F: leases},
	{Name: "maintenance", F: maintenance},
	{Name: "revisions never go back, whatever happens", F: orderedAcrossKill},
	{Name: "a watch misses and repeats nothing when the server is killed", F: watchAcrossKill},
	{Name: "a lease is kept alive when the server is killed", F: keepAliveAcrossKill},
	{Name: "users, roles and tokens that expire", F: authentication},
}

var endpoint = flag.String("endpoint", "", "address of the server: HOST:PORT")

func main() {
	testing.Init()
	flag.Parse()
	testing.Main(regexp.MatchString, tests, nil, nil)
}

// client is a new one, closed after the test.
func client(t *testing.T, options ...func(*clientv3.Config)) *clientv3.Client {
	t.Helper()
	config := clientv3.Config{
		Endpoints:   []string{*endpoint},
		DialTimeout: deadline,
		Logger:      zap.NewNop(),
	}
	for _, option := range options {
		option(&config)
	}
	client, err := clientv3.New(config)
	must(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

// within is the test's context with the deadline.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, found, wanted T) {
	t.Helper()
	if found != wanted {
		t.Fatalf("%v, not %v", found, wanted)
	}
}

// take is the next value of a channel.
func take[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case value, open := <-from:
		if !open {
			t.Fatal("the channel is closed")
		}
		return value
	case <-time.After(deadline):
		t.Fatal("nothing comes")
	}
	panic("unreachable")
}

// ended waits until a channel is closed.
func ended[T any](t *testing.T, channel <-chan T) {
	t.Helper()
	over := time.After(deadline)
	for {
		select {
		case _, open := <-channel:
			if !open {
				return
			}
		case <-over:
			t.Fatal("the channel stays open")
		}
	}
}

// answers is a client, and a channel that has one value for each answer to a method.
func answers(t *testing.T, method string, options ...func(*clientv3.Config)) (*clientv3.Client, <-chan struct{}) {
	answered := make(chan struct{}, 1000)
	observe := func(ctx context.Context, called string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		err := invoke(ctx, called, request, reply, connection, options...)
		if called == method {
			answered <- struct{}{}
		}
		return err
	}
	options = append(options, func(config *clientv3.Config) {
		config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(observe))
	})
	return client(t, options...), answered
}

var restarts = bufio.NewScanner(os.Stdin)

// killServer returns when the server runs again.
func killServer(t *testing.T) {
	t.Helper()
	fmt.Println("kill")
	if !restarts.Scan() {
		t.Fatal("nobody answers on standard input")
	}
}
