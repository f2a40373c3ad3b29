// Package e2e leaves out what needs more members than there can be.
//
// Compiled in place of framework/e2e/cluster_direct.go of go.etcd.io/etcd/tests/v3: a test whose cluster has more members
// than K0S_SUITE_MEMBERS_MAX is skipped and says so.
package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func NewEtcdProcess(tb testing.TB, cfg *EtcdServerProcessConfig) (EtcdProcess, error) {
	members := strings.Count(cfg.InitialCluster, "=")
	if most, err := strconv.Atoi(os.Getenv("K0S_SUITE_MEMBERS_MAX")); err == nil && members > most {
		tb.Skipf("needs %d members", members)
	}
	return NewEtcdServerProcess(tb, cfg)
}
