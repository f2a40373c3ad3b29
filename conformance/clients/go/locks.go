package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func session(t *testing.T, client *clientv3.Client, options ...concurrency.SessionOption) *concurrency.Session {
	t.Helper()
	session, err := concurrency.NewSession(client, options...)
	must(t, err)
	return session
}

// queued waits until that many keys wait below a prefix.
func queued(t *testing.T, client *clientv3.Client, prefix string, count int) {
	t.Helper()
	watch := client.Watch(within(t), prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	take(t, watch)
	for {
		found, err := client.Get(within(t), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		must(t, err)
		if found.Count == int64(count) {
			return
		}
		take(t, watch)
	}
}

func mutexExcludes(t *testing.T) {
	const workers, rounds = 4, 15
	var inside, entered atomic.Int32
	var group sync.WaitGroup
	for range workers {
		client := client(t)
		group.Go(func() {
			session := session(t, client)
			mutex := concurrency.NewMutex(session, t.Name())
			for range rounds {
				if err := mutex.Lock(within(t)); err != nil {
					t.Error(err)
					return
				}
				if others := inside.Add(1); others != 1 {
					t.Errorf("%d hold the lock", others)
				}
				entered.Add(1)
				owner, err := client.Txn(within(t)).If(mutex.IsOwner()).Then(clientv3.OpGet(mutex.Key())).Commit()
				if err != nil || !owner.Succeeded {
					t.Errorf("the owner is not the owner: %v %v", owner, err)
				}
				inside.Add(-1)
				if err := mutex.Unlock(within(t)); err != nil {
					t.Error(err)
				}
			}
			if err := session.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	equal(t, entered.Load(), workers*rounds)
}

func tryLock(t *testing.T) {
	client := client(t)
	first, second := session(t, client), session(t, client)
	held, wanted := concurrency.NewMutex(first, t.Name()), concurrency.NewMutex(second, t.Name())
	must(t, held.TryLock(within(t)))
	must(t, held.TryLock(within(t)))
	if err := wanted.TryLock(within(t)); !errors.Is(err, concurrency.ErrLocked) {
		t.Fatalf("%v", err)
	}
	queued(t, client, t.Name()+"/", 1)
	must(t, held.Unlock(within(t)))
	must(t, wanted.TryLock(within(t)))
	if err := held.Unlock(within(t)); !errors.Is(err, concurrency.ErrLockReleased) {
		t.Fatalf("%v", err)
	}
	must(t, wanted.Unlock(within(t)))
	locker := concurrency.NewLocker(first, t.Name())
	locker.Lock()
	locker.Unlock()
	must(t, first.Close())
	must(t, second.Close())
}

func lostSession(t *testing.T) {
	client := client(t)
	// A session notices its end at its next keep-alive, after a third of its time.
	soon := concurrency.WithTTL(9)
	lost, next, last := session(t, client, soon), session(t, client, soon), session(t, client)
	held := concurrency.NewMutex(lost, t.Name())
	must(t, held.Lock(within(t)))
	owner := held.IsOwner()

	outcomes := make(map[*concurrency.Session]chan error)
	for waiting, waiter := range []*concurrency.Session{next, last} {
		outcome := make(chan error, 1)
		outcomes[waiter] = outcome
		go func() { outcome <- concurrency.NewMutex(waiter, t.Name()).Lock(within(t)) }()
		queued(t, client, t.Name()+"/", waiting+2)
	}
	// The one in the middle goes first; it does not find out before it is its turn.
	_, err := client.Revoke(within(t), next.Lease())
	must(t, err)
	_, err = client.Revoke(within(t), lost.Lease())
	must(t, err)
	if err := take(t, outcomes[next]); !errors.Is(err, concurrency.ErrSessionExpired) {
		t.Fatalf("%v", err)
	}
	must(t, take(t, outcomes[last]))
	ended(t, next.Done())
	ended(t, lost.Done())

	still, err := client.Txn(within(t)).If(owner).Commit()
	must(t, err)
	equal(t, still.Succeeded, false)
	must(t, last.Close())

	// Who gives up while it waits leaves nothing behind. It waits once its transaction is answered.
	given, cancel := context.WithCancel(within(t))
	holder := session(t, client)
	must(t, concurrency.NewMutex(holder, t.Name()).Lock(within(t)))
	impatient, answered := answers(t, "/etcdserverpb.KV/Txn")
	quitter := session(t, impatient)
	outcome := make(chan error, 1)
	go func() { outcome <- concurrency.NewMutex(quitter, t.Name()).Lock(given) }()
	take(t, answered)
	queued(t, client, t.Name()+"/", 2)
	cancel()
	if err := take(t, outcome); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	queued(t, client, t.Name()+"/", 1)
	must(t, holder.Close())
	must(t, quitter.Close())
}

func orphanedSession(t *testing.T) {
	client := client(t)
	first := session(t, client, concurrency.WithTTL(100))
	mutex := concurrency.NewMutex(first, t.Name())
	must(t, mutex.Lock(within(t)))
	first.Orphan()
	second := session(t, client, concurrency.WithLease(first.Lease()))
	equal(t, second.Lease(), first.Lease())
	// The same lease holds the lock already.
	must(t, concurrency.NewMutex(second, t.Name()).Lock(within(t)))
	must(t, second.Close())
	queued(t, client, t.Name()+"/", 0)

	// A lease that is gone is noticed by the first keep-alive.
	gone, err := concurrency.NewSession(client, concurrency.WithLease(first.Lease()))
	must(t, err)
	ended(t, gone.Done())
}

func election(t *testing.T) {
	const candidates = 3
	client := client(t)
	observer := concurrency.NewElection(session(t, client), t.Name())
	if _, err := observer.Leader(within(t)); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Fatalf("%v", err)
	}
	seen := observer.Observe(within(t))

	elected := make(chan *concurrency.Election)
	sessions := make(map[*concurrency.Election]*concurrency.Session)
	for number := range candidates {
		session := session(t, client)
		election := concurrency.NewElection(session, t.Name())
		sessions[election] = session
		go func() {
			if err := election.Campaign(within(t), fmt.Sprint("candidate ", number)); err == nil {
				elected <- election
			}
		}()
		queued(t, client, t.Name()+"/", number+1)
	}
	for number := range candidates {
		leader := take(t, elected)
		equal(t, string(take(t, seen).Kvs[0].Value), fmt.Sprint("candidate ", number))
		must(t, leader.Proclaim(within(t), fmt.Sprint("leader ", number)))
		equal(t, string(take(t, seen).Kvs[0].Value), fmt.Sprint("leader ", number))
		found, err := observer.Leader(within(t))
		must(t, err)
		equal(t, string(found.Kvs[0].Key), leader.Key())
		equal(t, found.Kvs[0].CreateRevision, leader.Rev())
		select {
		case <-elected:
			t.Fatal("two lead")
		default:
		}
		if number == 0 {
			// A leader can come back under another name of the same key.
			session := sessions[leader]
			leader = concurrency.ResumeElection(session, t.Name(), leader.Key(), leader.Rev())
			must(t, leader.Resign(within(t)))
		} else {
			must(t, sessions[leader].Close())
		}
		if err := leader.Proclaim(within(t), "too late"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
			t.Fatalf("%v", err)
		}
	}
}
