package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func maintenance(t *testing.T) {
	client := client(t, func(config *clientv3.Config) { config.RejectOldCluster = true })
	put, err := client.Put(within(t), t.Name(), strings.Repeat("content ", 1000))
	must(t, err)
	status, err := client.Status(within(t), *endpoint)
	must(t, err)
	equal(t, status.Version, "3.7.1")
	equal(t, status.StorageVersion, "3.7.0")
	equal(t, status.Leader, status.Header.MemberId)
	equal(t, status.IsLearner, false)
	equal(t, status.DbSize >= status.DbSizeInUse && status.DbSizeInUse > 0, true)
	equal(t, status.RaftTerm > 0 && status.RaftIndex >= status.RaftAppliedIndex, true)
	equal(t, len(status.Errors), 0)

	hash, err := client.HashKV(within(t), *endpoint, put.Header.Revision)
	must(t, err)
	_, err = client.Put(within(t), t.Name(), "other")
	must(t, err)
	same, err := client.HashKV(within(t), *endpoint, put.Header.Revision)
	must(t, err)
	equal(t, same.Hash, hash.Hash)
	equal(t, same.HashRevision, put.Header.Revision)
	other, err := client.HashKV(within(t), *endpoint, 0)
	must(t, err)
	equal(t, other.Hash != hash.Hash, true)
	_, err = client.HashKV(within(t), *endpoint, put.Header.Revision+1000)
	if !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Fatalf("%v", err)
	}

	snapshot, err := client.SnapshotWithVersion(within(t))
	must(t, err)
	file, err := io.ReadAll(snapshot.Snapshot)
	must(t, err)
	must(t, snapshot.Snapshot.Close())
	equal(t, snapshot.Version, "3.7.0")
	content, digest := file[:len(file)-sha256.Size], file[len(file)-sha256.Size:]
	wanted := sha256.Sum256(content)
	equal(t, bytes.Equal(digest, wanted[:]), true)
	equal(t, bytes.Contains(content, []byte("content content ")), true)

	_, err = client.Defragment(within(t), *endpoint)
	must(t, err)
	members, err := client.MemberList(within(t))
	must(t, err)
	equal(t, len(members.Members), 1)
	self := members.Members[0]
	equal(t, self.ID, status.Header.MemberId)
	must(t, client.Sync(within(t)))
	equal(t, strings.Join(client.Endpoints(), ","), strings.Join(self.ClientURLs, ","))
	_, err = client.MoveLeader(within(t), self.ID)
	must(t, err)
	_, err = client.MoveLeader(within(t), self.ID+1)
	if !errors.Is(err, rpctypes.ErrBadLeaderTransferee) {
		t.Fatalf("%v", err)
	}
	_, err = client.MemberPromote(within(t), self.ID)
	if !errors.Is(err, rpctypes.ErrMemberNotLearner) {
		t.Fatalf("%v", err)
	}
	_, err = client.MemberRemove(within(t), self.ID+1)
	if !errors.Is(err, rpctypes.ErrMemberNotFound) {
		t.Fatalf("%v", err)
	}
	alarms, err := client.AlarmList(within(t))
	must(t, err)
	equal(t, len(alarms.Alarms), 0)
	remote := pb.NewMaintenanceClient(client.ActiveConnection())
	raise := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: self.ID, Alarm: pb.AlarmType_NOSPACE}
	_, err = remote.Alarm(within(t), raise)
	must(t, err)
	_, err = client.Put(within(t), t.Name(), "")
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("%v", err)
	}
	disarmed, err := client.AlarmDisarm(within(t), &clientv3.AlarmMember{})
	must(t, err)
	equal(t, fmt.Sprint(disarmed.Alarms[0].Alarm), "NOSPACE")
	_, err = client.Put(within(t), t.Name(), "")
	must(t, err)
	_, err = client.Downgrade(within(t), clientv3.DowngradeValidate, "3.6")
	must(t, err)
	_, err = client.Downgrade(within(t), clientv3.DowngradeValidate, "3.4")
	if !errors.Is(err, rpctypes.ErrInvalidDowngradeTargetVersion) {
		t.Fatalf("%v", err)
	}

	healthy, err := grpc_health_v1.NewHealthClient(client.ActiveConnection()).Check(within(t), &grpc_health_v1.HealthCheckRequest{})
	must(t, err)
	equal(t, healthy.Status, grpc_health_v1.HealthCheckResponse_SERVING)
}
