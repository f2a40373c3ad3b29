package main

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

var levels = map[string]concurrency.Isolation{
	"SerializableSnapshot": concurrency.SerializableSnapshot,
	"Serializable":         concurrency.Serializable,
	"RepeatableReads":      concurrency.RepeatableReads,
	"ReadCommitted":        concurrency.ReadCommitted,
}

// stmIsolation moves money between few accounts by many hands at once. Nothing is lost where what was read is compared
// before it is written; ReadCommitted compares nothing, so there everybody has an account.
func stmIsolation(t *testing.T) {
	const accounts, workers, rounds, balance = 3, 4, 10, 100
	for name, level := range levels {
		t.Run(name, func(t *testing.T) {
			client := client(t)
			account := func(number int) string { return fmt.Sprint(t.Name(), "/", number) }
			total := accounts
			if level == concurrency.ReadCommitted {
				total = workers
			}
			for number := range total {
				_, err := client.Put(within(t), account(number), strconv.Itoa(balance))
				must(t, err)
			}
			move := func(worker, round int) func(concurrency.STM) error {
				from, to := account(round%accounts), account((round+1+worker%2)%accounts)
				if level == concurrency.ReadCommitted {
					from, to = account(worker), account(worker)
				}
				return func(stm concurrency.STM) error {
					source, err := strconv.Atoi(stm.Get(from))
					if err != nil {
						return err
					}
					stm.Put(from, strconv.Itoa(source-1))
					target, err := strconv.Atoi(stm.Get(to))
					if err != nil {
						return err
					}
					stm.Put(to, strconv.Itoa(target+1))
					return nil
				}
			}
			var group sync.WaitGroup
			for worker := range workers {
				group.Go(func() {
					for round := range rounds {
						options := []concurrency.STMOption{concurrency.WithIsolation(level), concurrency.WithAbortContext(within(t))}
						if round%2 == 1 {
							options = append(options, concurrency.WithPrefetch(account(0), account(1)))
						}
						if _, err := concurrency.NewSTM(client, move(worker, round), options...); err != nil {
							t.Error(err)
						}
					}
				})
			}
			group.Wait()
			found, err := client.Get(within(t), t.Name()+"/", clientv3.WithPrefix())
			must(t, err)
			sum := 0
			for _, kv := range found.Kvs {
				amount, err := strconv.Atoi(string(kv.Value))
				must(t, err)
				sum += amount
			}
			equal(t, sum, total*balance)
			equal(t, len(found.Kvs), total)
		})
	}
}

func stmAborts(t *testing.T) {
	client := client(t)
	refusal := errors.New("the function says no")
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		stm.Put(t.Name(), "written")
		return refusal
	})
	if !errors.Is(err, refusal) {
		t.Fatalf("%v", err)
	}
	found, err := client.Get(within(t), t.Name())
	must(t, err)
	equal(t, found.Count, 0)

	_, err = concurrency.NewSTM(client, func(stm concurrency.STM) error {
		stm.Put(t.Name(), "written")
		written := stm.Get(t.Name())
		stm.Del(t.Name())
		if deleted := stm.Get(t.Name()); written != "written" || deleted != "" {
			return fmt.Errorf("a transaction does not see what it does: %q, %q", written, deleted)
		}
		return nil
	})
	must(t, err)
	found, err = client.Get(within(t), t.Name())
	must(t, err)
	equal(t, found.Count, 0)
}

// stmSnapshots changes two keys together while a transaction is between its reads of them.
func stmSnapshots(t *testing.T) {
	client := client(t)
	left, right := t.Name()+"/left", t.Name()+"/right"
	both := func(value string) {
		_, err := client.Txn(within(t)).Then(clientv3.OpPut(left, value), clientv3.OpPut(right, value)).Commit()
		must(t, err)
	}
	both("old")
	attempts := 0
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		attempts++
		first := stm.Get(left)
		if attempts == 1 {
			both("new")
		}
		if second := stm.Get(right); second != first {
			return fmt.Errorf("read %q with %q", second, first)
		}
		stm.Put(t.Name()+"/copy", first)
		return nil
	}, concurrency.WithIsolation(concurrency.Serializable))
	must(t, err)
	equal(t, attempts, 2)
	found, err := client.Get(within(t), t.Name()+"/copy")
	must(t, err)
	equal(t, string(found.Kvs[0].Value), "new")
}
