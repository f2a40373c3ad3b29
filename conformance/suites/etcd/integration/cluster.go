// Package integration gives etcd's integration tests members that are processes.
//
// Compiled in place of framework/integration/cluster.go of go.etcd.io/etcd/tests/v3, which starts
// members inside the test's own process. Same functions, but a member is the program that K0S_SUITE_ETCD names, started with
// etcd's flags, so that only what a client can see is left of it. A test that asks for more members than
// K0S_SUITE_MEMBERS_MAX, or for a setting that no flag has, is skipped and says so. Tests that look inside a member
// (Member.Server) can't run: the runner leaves them out by name.
package integration

import (
	"bufio"
	"bytes"
	"context"
	cryptotls "crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/pkg/v3/grpctesting"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lockpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	framecfg "go.etcd.io/etcd/tests/v3/framework/config"
	"go.etcd.io/etcd/tests/v3/framework/testutils"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
)

const (
	// What upstream's tests wait for one request, and for one that must outlive a lost leader.
	RequestWaitTimeout = 5 * time.Second
	RequestTimeout     = 20 * time.Second

	programVariable    = "K0S_SUITE_ETCD"
	membersMaxVariable = "K0S_SUITE_MEMBERS_MAX"
	readyLine          = "ready to serve client requests"
	startDeadline      = 60 * time.Second
	stopDeadline       = 30 * time.Second

	// Names of sockets look like this number and the process id, as URLs want a port that is one.
	basePort = 21000
)

// ElectionTicks of a hundredth of a second make an election timeout.
var ElectionTicks = 10

var (
	TestTLSInfo          = tlsInfoOf("../fixtures", "server")
	TestTLSInfoIP        = tlsInfoOf("../fixtures", "server-ip")
	TestTLSInfoExpired   = tlsInfoOf("./fixtures-expired", "server")
	TestTLSInfoExpiredIP = tlsInfoOf("./fixtures-expired", "server-ip")

	TestTLSInfoWithSpecificUsage = func() transport.TLSInfo {
		info := tlsInfoOf("../fixtures", "server-serverusage")
		info.ClientCertFile = testutils.MustAbsPath("../fixtures/client-clientusage.crt")
		info.ClientKeyFile = testutils.MustAbsPath("../fixtures/client-clientusage.key.insecure")
		return info
	}()

	DefaultTokenJWT = fmt.Sprintf("jwt,pub-key=%s,priv-key=%s,sign-method=RS256,ttl=2s",
		testutils.MustAbsPath("../fixtures/server.crt"), testutils.MustAbsPath("../fixtures/server.key.insecure"))
)

func tlsInfoOf(dir, name string) transport.TLSInfo {
	return transport.TLSInfo{
		CertFile:       testutils.MustAbsPath(dir + "/" + name + ".crt"),
		KeyFile:        testutils.MustAbsPath(dir + "/" + name + ".key.insecure"),
		TrustedCAFile:  testutils.MustAbsPath(dir + "/ca.crt"),
		ClientCertAuth: true,
	}
}

// ClusterConfig is what a test may ask for. Fields and their meaning are upstream's.
type ClusterConfig struct {
	Size      int
	PeerTLS   *transport.TLSInfo
	ClientTLS *transport.TLSInfo

	AuthToken string

	QuotaBackendBytes    int64
	BackendBatchInterval time.Duration

	MaxTxnOps       uint
	MaxRequestBytes uint

	SnapshotCount          uint64
	SnapshotCatchUpEntries uint64

	GRPCKeepAliveMinTime        time.Duration
	GRPCKeepAliveInterval       time.Duration
	GRPCKeepAliveTimeout        time.Duration
	GRPCAdditionalServerOptions []grpc.ServerOption

	ClientMaxCallSendMsgSize int
	ClientMaxCallRecvMsgSize int

	UseIP     bool
	UseBridge bool
	UseTCP    bool

	EnableLeaseCheckpoint   bool
	LeaseCheckpointInterval time.Duration
	LeaseCheckpointPersist  bool

	WatchProgressNotifyInterval time.Duration
	MaxLearners                 int
	DisableStrictReconfigCheck  bool
	CorruptCheckTime            time.Duration
	Metrics                     string
}

// unsupported says what of the configuration no flag of a process can express.
func (c *ClusterConfig) unsupported() string {
	membersMax, err := strconv.Atoi(os.Getenv(membersMaxVariable))
	switch {
	case err == nil && c.Size > membersMax:
		return fmt.Sprintf("needs %d members", c.Size)
	case len(c.GRPCAdditionalServerOptions) > 0:
		return "needs a gRPC server inside the test's process"
	case c.LeaseCheckpointInterval != 0:
		return "needs an interval of lease checkpoints, which is not a flag"
	default:
		return ""
	}
}

type Cluster struct {
	Cfg     *ClusterConfig
	Members []*Member

	named int
	mu    sync.Mutex
}

// NewCluster returns a running cluster with a client of each member.
func NewCluster(t testutil.TB, cfg *ClusterConfig) *Cluster {
	t.Helper()
	assertInTestContext(t)
	testutil.SkipTestIfShortMode(t, "Cannot start etcd Cluster in --short tests")
	if reason := cfg.unsupported(); reason != "" {
		t.Skip(reason)
	}
	c := &Cluster{Cfg: cfg}
	for range cfg.Size {
		c.Members = append(c.Members, c.MustNewMember(t))
	}
	peers := types.URLsMap{}
	for _, m := range c.Members {
		peers[m.Name] = m.PeerURLs
	}
	started := make(chan error)
	for _, m := range c.Members {
		m.InitialPeerURLsMap = peers
		go func() { started <- m.Launch() }()
	}
	for range c.Members {
		if err := <-started; err != nil {
			c.Terminate(t)
			t.Fatalf("a member did not start: %v", err)
		}
	}
	c.WaitMembersMatch(t, c.ProtoMembers())
	return c
}

// MustNewMember adds nothing to the cluster yet.
func (c *Cluster) MustNewMember(t testutil.TB) *Member {
	number := c.named
	c.named++
	return MustNewMember(t, MemberConfig{
		Name:         fmt.Sprintf("m%d", number),
		MemberNumber: number,
		PeerTLS:      c.Cfg.PeerTLS,
		ClientTLS:    c.Cfg.ClientTLS,
		Cluster:      c.Cfg,
	})
}

// ProtoMembers is what MemberList should say, without ids.
func (c *Cluster) ProtoMembers() []*pb.Member {
	var members []*pb.Member
	for _, m := range c.Members {
		members = append(members, &pb.Member{
			Name:       m.Name,
			PeerURLs:   m.PeerURLs.StringSlice(),
			ClientURLs: m.ClientURLs.StringSlice(),
			IsLearner:  m.IsLearner,
		})
	}
	return members
}

// WaitMembersMatch waits until every member lists these members.
func (c *Cluster) WaitMembersMatch(t testutil.TB, wanted []*pb.Member) {
	want := describe(wanted)
	for _, m := range c.Members {
		for deadline := time.Now().Add(RequestTimeout); ; time.Sleep(framecfg.TickDuration) {
			ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
			found, err := m.Client.MemberList(ctx)
			cancel()
			if err == nil && slices.Equal(describe(found.Members), want) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s lists %v (error %v), not %v", m.Name, found, err, wanted)
			}
		}
	}
}

func describe(members []*pb.Member) []string {
	var texts []string
	for _, m := range members {
		texts = append(texts, fmt.Sprint(m.Name, m.PeerURLs, m.ClientURLs, m.IsLearner))
	}
	slices.Sort(texts)
	return texts
}

// AddMember adds a member, starts it and waits for it.
func (c *Cluster) AddMember(t testutil.TB) types.URLs {
	m := c.MustNewMember(t)
	if err := c.AddMemberByURL(t, c.Members[0].Client, m.PeerURLs[0].String()); err != nil {
		t.Fatalf("the member could not be added: %v", err)
	}
	c.join(t, m)
	return m.PeerURLs
}

func (c *Cluster) AddMemberByURL(t testutil.TB, client *clientv3.Client, peerURL string) error {
	ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
	defer cancel()
	_, err := client.MemberAdd(ctx, []string{peerURL})
	return err
}

// AddAndLaunchLearnerMember adds a member that does not vote, starts it and waits for it.
func (c *Cluster) AddAndLaunchLearnerMember(t testutil.TB) {
	m := c.MustNewMember(t)
	m.IsLearner = true
	if _, err := c.Client(0).MemberAddAsLearner(context.Background(), m.PeerURLs.StringSlice()); err != nil {
		t.Fatalf("the learner could not be added: %v", err)
	}
	c.join(t, m)
}

// GetLearnerMembers are those of the members that do not vote.
func (c *Cluster) GetLearnerMembers() ([]*pb.Member, error) {
	listed, err := c.Client(0).MemberList(context.Background())
	if err != nil {
		return nil, err
	}
	votes := func(m *pb.Member) bool { return !m.IsLearner }
	return slices.DeleteFunc(listed.Members, votes), nil
}

func (c *Cluster) join(t testutil.TB, m *Member) {
	m.NewCluster = false
	m.InitialPeerURLsMap = types.URLsMap{m.Name: m.PeerURLs}
	for _, other := range c.Members {
		m.InitialPeerURLsMap[other.Name] = other.PeerURLs
	}
	if err := m.Launch(); err != nil {
		t.Fatal(err)
	}
	c.Members = append(c.Members, m)
	c.WaitMembersMatch(t, c.ProtoMembers())
}

// InitializeMemberWithResponse makes a member one that the cluster already knows.
func (c *Cluster) InitializeMemberWithResponse(t testutil.TB, m *Member, added *clientv3.MemberAddResponse) {
	m.IsLearner = added.Member.IsLearner
	m.NewCluster = false
	m.InitialPeerURLsMap = types.URLsMap{m.Name: types.MustNewURLs(added.Member.PeerURLs)}
	for _, other := range c.Members {
		m.InitialPeerURLsMap[other.Name] = other.PeerURLs
	}
	c.Members = append(c.Members, m)
}

// RemoveMember removes a member and ends it.
func (c *Cluster) RemoveMember(t testutil.TB, client *clientv3.Client, id uint64) error {
	index := slices.IndexFunc(c.Members, func(m *Member) bool { return uint64(m.ID()) == id })
	ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
	defer cancel()
	if _, err := client.MemberRemove(ctx, id); err != nil {
		return err
	}
	removed := c.Members[index]
	c.Members = slices.Delete(c.Members, index, index+1)
	if removed.Client != nil {
		removed.Client.Close()
	}
	removed.Terminate(t)
	c.WaitMembersMatch(t, c.ProtoMembers())
	return nil
}

// WaitLeader returns the index of the member that leads.
func (c *Cluster) WaitLeader(tb testing.TB) int { return c.WaitMembersForLeader(tb, c.Members) }

// WaitMembersForLeader waits until these members agree on one of them.
func (c *Cluster) WaitMembersForLeader(tb testing.TB, members []*Member) int {
	tb.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(framecfg.TickDuration) {
		ids, leaders := map[uint64]int{}, map[uint64]bool{}
		for index, m := range members {
			if status, err := m.status(); err == nil {
				ids[status.Header.MemberId] = index
				leaders[status.Leader] = true
			}
		}
		for leader := range leaders {
			if index, known := ids[leader]; known && len(leaders) == 1 {
				return index
			}
		}
		if time.Now().After(deadline) {
			tb.Fatalf("no leader: members %v, leaders %v", ids, leaders)
		}
	}
}

func (c *Cluster) WaitNoLeader() { c.WaitMembersNoLeader(c.Members) }

func (c *Cluster) WaitMembersNoLeader(members []*Member) {
	leads := func(m *Member) bool {
		status, err := m.status()
		return err == nil && status.Leader != 0
	}
	for slices.ContainsFunc(members, leads) {
		time.Sleep(framecfg.TickDuration)
	}
}

// TakeClient leaves closing the client to the test.
func (c *Cluster) TakeClient(index int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Members[index].Client = nil
}

func (c *Cluster) Terminate(t testutil.TB) {
	for _, m := range c.Members {
		if m.Client != nil {
			m.Client.Close()
		}
	}
	var ending sync.WaitGroup
	for _, m := range c.Members {
		ending.Go(func() { m.Terminate(t) })
	}
	ending.Wait()
}

func (c *Cluster) RandClient() *clientv3.Client { return c.Client(rand.Intn(len(c.Members))) }

func (c *Cluster) Client(index int) *clientv3.Client { return c.Members[index].Client }

func (c *Cluster) Endpoints() []string {
	var endpoints []string
	for _, m := range c.Members {
		endpoints = append(endpoints, m.GRPCURL)
	}
	return endpoints
}

// ClusterClient is a client of all members, closed with the test.
func (c *Cluster) ClusterClient(tb testing.TB, options ...framecfg.ClientOption) (*clientv3.Client, error) {
	settings := clientv3.Config{
		Endpoints:          c.Endpoints(),
		DialTimeout:        5 * time.Second,
		MaxCallSendMsgSize: c.Cfg.ClientMaxCallSendMsgSize,
		MaxCallRecvMsgSize: c.Cfg.ClientMaxCallRecvMsgSize,
	}
	if c.Cfg.ClientTLS != nil {
		tls, err := c.Cfg.ClientTLS.ClientConfig()
		if err != nil {
			return nil, err
		}
		settings.TLS = tls
	}
	for _, option := range options {
		option(&settings)
	}
	client, err := newClientV3(settings)
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { client.Close() })
	return client, nil
}

func WithAuth(user, password string) framecfg.ClientOption {
	return func(settings any) {
		settings.(*clientv3.Config).Username = user
		settings.(*clientv3.Config).Password = password
	}
}

func WithAuthToken(token string) framecfg.ClientOption {
	return func(settings any) { settings.(*clientv3.Config).Token = token }
}

func WithEndpoints(endpoints []string) framecfg.ClientOption {
	return func(settings any) { settings.(*clientv3.Config).Endpoints = endpoints }
}

func WithDialTimeout(timeout time.Duration) framecfg.ClientOption {
	return func(settings any) { settings.(*clientv3.Config).DialTimeout = timeout }
}

func (c *Cluster) NewClientV3(index int) (*clientv3.Client, error) {
	return NewClientV3(c.Members[index])
}

// MakeSingleNodeClients returns a maker of clients of the first member; it puts them into the list.
func MakeSingleNodeClients(t testutil.TB, c *Cluster, clients *[]*clientv3.Client) func() *clientv3.Client {
	return makeClients(t, c, clients, func() int { return 0 })
}

// MakeMultiNodeClients does the same with any member.
func MakeMultiNodeClients(t testutil.TB, c *Cluster, clients *[]*clientv3.Client) func() *clientv3.Client {
	return makeClients(t, c, clients, func() int { return rand.Intn(len(c.Members)) })
}

func makeClients(t testutil.TB, c *Cluster, clients *[]*clientv3.Client, choose func() int) func() *clientv3.Client {
	var mu sync.Mutex
	*clients = nil
	return func() *clientv3.Client {
		client, err := c.NewClientV3(choose())
		if err != nil {
			t.Fatalf("no client: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		*clients = append(*clients, client)
		return client
	}
}

func CloseClients(t testutil.TB, clients []*clientv3.Client) {
	for _, client := range clients {
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// GRPCAPI is etcd without the Go client's own ideas.
type GRPCAPI struct {
	Cluster     pb.ClusterClient
	KV          pb.KVClient
	Lease       pb.LeaseClient
	Watch       pb.WatchClient
	Maintenance pb.MaintenanceClient
	Auth        pb.AuthClient
	Lock        lockpb.LockClient
	Election    epb.ElectionClient
}

// MemberConfig is a member of this cluster's configuration.
type MemberConfig struct {
	Name         string
	MemberNumber int
	PeerTLS      *transport.TLSInfo
	ClientTLS    *transport.TLSInfo
	UseBridge    bool
	// Cluster says the rest; without it everything is a default.
	Cluster *ClusterConfig
}

// Member is one server process, or what one is to be.
type Member struct {
	// Tests read and change its fields between runs of the process; flags say the rest.
	config.ServerConfig
	MemberNumber  int
	ClientTLSInfo *transport.TLSInfo
	// Server is never there: a process can't be looked into.
	Server *etcdserver.EtcdServer
	// GRPCURL is where clients call, the bridge if there is one.
	GRPCURL    string
	GRPCBridge Bridge

	// Client calls through the socket, and so does ServerClient, which upstream gives no socket.
	Client       *clientv3.Client
	ServerClient *clientv3.Client

	IsLearner            bool
	KeepDataDirTerminate bool
	LogObserver          *testutils.LogObserver

	cluster *ClusterConfig
	socket  string
	logs    zapcore.Core
	process *process
}

// process is one run of a member.
type process struct {
	command *exec.Cmd
	ready   chan struct{}
	ended   chan struct{}
	// How it ended and the end of its log, once it has.
	end string
}

var sockets atomic.Int32

// MustNewMember chooses names and a directory; nothing runs yet.
func MustNewMember(t testutil.TB, settings MemberConfig) *Member {
	m := &Member{
		MemberNumber:  settings.MemberNumber,
		ClientTLSInfo: settings.ClientTLS,
		cluster:       settings.Cluster,
	}
	if m.cluster == nil {
		m.cluster = &ClusterConfig{Size: 1, UseBridge: settings.UseBridge}
	}
	m.Name = settings.Name
	m.NewCluster = true
	m.InitialClusterToken = "etcd"
	m.TickMs, m.ElectionTicks = uint(framecfg.TickDuration/time.Millisecond), ElectionTicks
	m.QuotaBackendBytes, m.SnapshotCount = m.cluster.QuotaBackendBytes, m.cluster.SnapshotCount
	m.PeerURLs = uniqueURLs(settings.PeerTLS)
	m.ClientURLs = uniqueURLs(settings.ClientTLS)
	if settings.PeerTLS != nil {
		m.PeerTLSInfo = *settings.PeerTLS
	}
	m.InitialPeerURLsMap = types.URLsMap{m.Name: m.PeerURLs}
	dir, err := os.MkdirTemp(t.TempDir(), "etcd")
	if err != nil {
		t.Fatal(err)
	}
	m.DataDir = dir
	m.Logger = zaptest.NewLogger(t, zaptest.Level(zapcore.InfoLevel)).Named(m.Name)
	m.logs, m.LogObserver = testutils.NewLogObserver(zapcore.InfoLevel)
	if err := m.chooseAddress(); err != nil {
		t.Fatal(err)
	}
	return m
}

// uniqueURLs is one URL of a socket in the working directory, which is the test's own.
func uniqueURLs(tls *transport.TLSInfo) types.URLs {
	scheme := "unix"
	if tls != nil {
		scheme = "unixs"
	}
	number := basePort + sockets.Add(1)
	return types.MustNewURLs([]string{fmt.Sprintf("%s://127.0.0.1:%05d%05d", scheme, number, os.Getpid())})
}

// chooseAddress picks where gRPC is served. A socket is called after localhost, which the certificates are for.
func (m *Member) chooseAddress() error {
	host := "localhost"
	if m.cluster.UseIP {
		host = "127.0.0.1"
	}
	m.socket = net.JoinHostPort(host, m.Name)
	if m.cluster.UseTCP {
		listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return err
		}
		_, port, err := net.SplitHostPort(listener.Addr().String())
		if err := errors.Join(err, listener.Close()); err != nil {
			return err
		}
		m.socket = net.JoinHostPort(host, port)
	}
	m.GRPCURL = m.scheme() + "://" + m.socket
	return nil
}

func (m *Member) scheme() string {
	schemes := map[bool][2]string{false: {"unix", "unixs"}, true: {"http", "https"}}[m.cluster.UseTCP]
	if m.ClientTLSInfo != nil {
		return schemes[1]
	}
	return schemes[0]
}

// listenURL is the flag's form of the address: a URL's port would have to be a number.
func (m *Member) listenURL() string {
	if m.cluster.UseTCP {
		return m.scheme() + "://" + m.socket
	}
	return m.scheme() + "://./" + m.socket
}

func (m *Member) GRPCPortNumber() string {
	_, port, _ := net.SplitHostPort(m.socket)
	return port
}

// Launch starts the process. The only member of a cluster is ready when it returns; several need each other for that.
func (m *Member) Launch() error {
	if m.cluster.UseBridge {
		if err := m.bridge(); err != nil {
			return err
		}
	}
	run := &process{
		command: exec.Command(os.Getenv(programVariable), m.flags()...),
		ready:   make(chan struct{}),
		ended:   make(chan struct{}),
	}
	run.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := run.command.StderrPipe()
	if err != nil {
		return err
	}
	if err := run.command.Start(); err != nil {
		return err
	}
	m.process = run
	go func() {
		last := m.follow(log, run.ready)
		run.end = fmt.Sprintf("%v; its log ends with:\n%s", run.command.Wait(), last)
		close(run.ended)
	}()
	if m.cluster.Size <= 1 {
		if err := run.waitReady(); err != nil {
			return err
		}
	}
	if m.Client == nil {
		m.Client, err = NewClientV3(m)
	}
	if m.ServerClient == nil && err == nil {
		m.ServerClient, err = NewClientV3(m)
	}
	return err
}

func (run *process) waitReady() error {
	select {
	case <-run.ready:
		return nil
	case <-run.ended:
		return fmt.Errorf("%s ended before it was ready: %s", run.command.Path, run.end)
	case <-time.After(startDeadline):
		run.command.Process.Kill()
		<-run.ended
		return fmt.Errorf("%s was not ready after %v: %s", run.command.Path, startDeadline, run.end)
	}
}

func (m *Member) bridge() error {
	// The socket's name with a digit more, as upstream has it.
	address := m.socket + "0"
	listener, err := transport.NewUnixListener(address)
	if err != nil {
		return err
	}
	network := "unix"
	if m.cluster.UseTCP {
		network = "tcp"
	}
	m.GRPCBridge = newBridge(dialer{network, m.socket}, listener)
	m.GRPCURL = m.scheme() + "://" + address
	return nil
}

type dialer struct{ network, address string }

func (d dialer) Dial() (net.Conn, error) { return net.Dial(d.network, d.address) }

func (m *Member) Bridge() Bridge { return m.GRPCBridge }

func (m *Member) flags() []string {
	state := "new"
	if !m.NewCluster {
		state = "existing"
	}
	milliseconds := int(m.TickMs)
	flags := []string{
		"--name=" + m.Name,
		"--data-dir=" + m.DataDir,
		"--listen-client-urls=" + m.listenURL(),
		"--listen-client-http-urls=" + m.ClientURLs.String(),
		"--advertise-client-urls=" + m.ClientURLs.String(),
		"--listen-peer-urls=" + m.PeerURLs.String(),
		"--initial-advertise-peer-urls=" + m.PeerURLs.String(),
		"--initial-cluster=" + m.InitialPeerURLsMap.String(),
		"--initial-cluster-state=" + state,
		"--initial-cluster-token=" + m.InitialClusterToken,
		"--bcrypt-cost=4",
		"--feature-gates=InitialCorruptCheck=true" +
			fmt.Sprintf(",LeaseCheckpoint=%t,LeaseCheckpointPersist=%t", m.cluster.EnableLeaseCheckpoint, m.cluster.LeaseCheckpointPersist),
		fmt.Sprintf("--heartbeat-interval=%d", milliseconds),
		fmt.Sprintf("--election-timeout=%d", milliseconds*m.ElectionTicks),
	}
	given := func(name string, value any, set bool) {
		if set {
			flags = append(flags, fmt.Sprintf("--%s=%v", name, value))
		}
	}
	c := m.cluster
	given("auth-token", c.AuthToken, c.AuthToken != "")
	given("quota-backend-bytes", m.QuotaBackendBytes, m.QuotaBackendBytes != 0)
	given("backend-batch-interval", c.BackendBatchInterval, c.BackendBatchInterval != 0)
	given("max-txn-ops", c.MaxTxnOps, c.MaxTxnOps != 0)
	given("max-request-bytes", c.MaxRequestBytes, c.MaxRequestBytes != 0)
	given("snapshot-count", m.SnapshotCount, m.SnapshotCount != 0)
	given("snapshot-catchup-entries", c.SnapshotCatchUpEntries, c.SnapshotCatchUpEntries != 0)
	given("grpc-keepalive-min-time", c.GRPCKeepAliveMinTime, c.GRPCKeepAliveMinTime != 0)
	given("grpc-keepalive-interval", c.GRPCKeepAliveInterval, c.GRPCKeepAliveInterval != 0)
	given("grpc-keepalive-timeout", c.GRPCKeepAliveTimeout, c.GRPCKeepAliveTimeout != 0)
	given("watch-progress-notify-interval", c.WatchProgressNotifyInterval, c.WatchProgressNotifyInterval != 0)
	given("max-learners", c.MaxLearners, c.MaxLearners != 0)
	given("strict-reconfig-check", false, c.DisableStrictReconfigCheck)
	given("corrupt-check-time", c.CorruptCheckTime, c.CorruptCheckTime != 0)
	given("metrics", c.Metrics, c.Metrics != "")
	given("force-new-cluster", true, m.ForceNewCluster)
	flags = append(flags, tlsFlags("", m.ClientTLSInfo)...)
	return append(flags, tlsFlags("peer-", &m.PeerTLSInfo)...)
}

func tlsFlags(prefix string, tls *transport.TLSInfo) []string {
	if tls == nil || tls.Empty() {
		return nil
	}
	flags := []string{
		"--" + prefix + "cert-file=" + tls.CertFile,
		"--" + prefix + "key-file=" + tls.KeyFile,
		"--" + prefix + "trusted-ca-file=" + tls.TrustedCAFile,
		fmt.Sprintf("--%sclient-cert-auth=%t", prefix, tls.ClientCertAuth),
	}
	// Flags of the client port only.
	if prefix == "" && len(tls.CipherSuites) > 0 {
		var names []string
		for _, suite := range tls.CipherSuites {
			names = append(names, cryptotls.CipherSuiteName(suite))
		}
		flags = append(flags, "--cipher-suites="+strings.Join(names, ","))
	}
	versions := map[uint16]string{cryptotls.VersionTLS12: "TLS1.2", cryptotls.VersionTLS13: "TLS1.3"}
	if version := versions[tls.MinVersion]; prefix == "" && version != "" {
		flags = append(flags, "--tls-min-version="+version)
	}
	if version := versions[tls.MaxVersion]; prefix == "" && version != "" {
		flags = append(flags, "--tls-max-version="+version)
	}
	if tls.ClientCertFile != "" {
		flags = append(flags, "--"+prefix+"client-cert-file="+tls.ClientCertFile, "--"+prefix+"client-key-file="+tls.ClientKeyFile)
	}
	return flags
}

// follow hands the log on to the observer, says when the member is ready, and returns the last lines.
func (m *Member) follow(log io.Reader, ready chan<- struct{}) string {
	const kept = 20
	var last []string
	waiting := true
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if waiting && strings.Contains(lines.Text(), readyLine) {
			waiting = false
			close(ready)
		}
		m.observe(lines.Bytes())
		last = append(last, lines.Text())
		last = last[max(0, len(last)-kept):]
	}
	return strings.Join(last, "\n")
}

func (m *Member) observe(line []byte) {
	fields := map[string]any{}
	if json.Unmarshal(line, &fields) != nil {
		return
	}
	text := func(name string) string { s, _ := fields[name].(string); return s }
	entry := zapcore.Entry{Time: time.Now(), Message: text("msg")}
	if entry.Level.UnmarshalText([]byte(text("level"))) != nil || !m.logs.Enabled(entry.Level) {
		return
	}
	var rest []zapcore.Field
	for name, value := range fields {
		if !slices.Contains([]string{"level", "ts", "caller", "msg"}, name) {
			rest = append(rest, zap.Any(name, value))
		}
	}
	m.logs.Write(entry, rest)
}

// NewClientV3 is a client of this member, the caller's to close.
func NewClientV3(m *Member) (*clientv3.Client, error) {
	settings := clientv3.Config{
		Endpoints:          []string{m.GRPCURL},
		DialTimeout:        5 * time.Second,
		MaxCallSendMsgSize: m.cluster.ClientMaxCallSendMsgSize,
		MaxCallRecvMsgSize: m.cluster.ClientMaxCallRecvMsgSize,
		Logger:             m.Logger.Named("client"),
	}
	if m.ClientTLSInfo != nil {
		tls, err := m.ClientTLSInfo.ClientConfig()
		if err != nil {
			return nil, err
		}
		settings.TLS = tls
	}
	return newClientV3(settings)
}

func (m *Member) status() (*clientv3.StatusResponse, error) {
	if m.Client == nil {
		return nil, errors.New("the member has no client")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return m.Client.Status(ctx, m.GRPCURL)
}

// ID asks the member; 0 when it does not answer.
func (m *Member) ID() types.ID {
	status, err := m.status()
	if err != nil {
		return 0
	}
	return types.ID(status.Header.MemberId)
}

func (m *Member) ElectionTimeout() time.Duration {
	return time.Duration(m.ElectionTicks*int(m.TickMs)) * time.Millisecond
}

// Clone is a member of the same configuration, without addresses of its own.
func (m *Member) Clone(t testutil.TB) *Member {
	twin := *m
	twin.Client, twin.ServerClient, twin.process = nil, nil, nil
	return &twin
}

// RecordedRequests stays empty: nobody sits in a process' gRPC server.
func (m *Member) RecordedRequests() []grpctesting.RequestInfo { return nil }

// WaitOK waits for a leader.
func (m *Member) WaitOK(t testutil.TB) {
	m.WaitStarted(t)
	for {
		if status, err := m.status(); err == nil && status.Leader != 0 {
			return
		}
		time.Sleep(framecfg.TickDuration)
	}
}

// WaitStarted waits for an answer.
func (m *Member) WaitStarted(t testutil.TB) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
		_, err := m.Client.Get(ctx, "/", clientv3.WithSerializable())
		cancel()
		if err == nil {
			return
		}
		time.Sleep(framecfg.TickDuration)
	}
}

func WaitClientV3(t testutil.TB, kv clientv3.KV) { WaitClientV3WithKey(t, kv, "/") }

func WaitClientV3WithKey(t testutil.TB, kv clientv3.KV, key string) {
	var err error
	for deadline := time.Now().Add(RequestTimeout); time.Now().Before(deadline); time.Sleep(framecfg.TickDuration) {
		ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
		_, err = kv.Get(ctx, key)
		cancel()
		if err == nil {
			return
		}
	}
	t.Fatalf("the client gets no answer: %v", err)
}

func (m *Member) URL() string { return m.ClientURLs[0].String() }

// Pause freezes the process.
func (m *Member) Pause() { m.process.command.Process.Signal(syscall.SIGSTOP) }

func (m *Member) Resume() { m.process.command.Process.Signal(syscall.SIGCONT) }

// Close ends the process and the clients that upstream gives it.
func (m *Member) Close() {
	if m.GRPCBridge != nil {
		m.GRPCBridge.Close()
		m.GRPCBridge = nil
	}
	if m.ServerClient != nil {
		m.ServerClient.Close()
		m.ServerClient = nil
	}
	if m.process == nil {
		return
	}
	m.process.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.process.ended:
	case <-time.After(stopDeadline):
		m.process.command.Process.Kill()
		<-m.process.ended
		panic(fmt.Sprintf("%s did not stop within %v: %s", m.Name, stopDeadline, m.process.end))
	}
}

// Stop ends the process and keeps its directory.
func (m *Member) Stop(_ testutil.TB) { m.Close() }

// StopNotify is closed when the process has ended.
func (m *Member) StopNotify() <-chan struct{} { return m.process.ended }

// ReadyNotify is closed when the process serves.
func (m *Member) ReadyNotify() <-chan struct{} { return m.process.ready }

// Restart starts a process on what the one before it left.
func (m *Member) Restart(t testutil.TB) error { return m.Launch() }

// Terminate ends the process and removes its directory.
func (m *Member) Terminate(t testutil.TB) {
	m.Close()
	if m.KeepDataDirTerminate {
		return
	}
	if err := os.RemoveAll(m.DataDir); err != nil {
		t.Fatal(err)
	}
}

// CheckLeaderTransition waits for another leader than this and returns it.
func CheckLeaderTransition(m *Member, old uint64) uint64 {
	for {
		if status, err := m.status(); err == nil && status.Leader != 0 && status.Leader != old {
			return status.Leader
		}
		time.Sleep(framecfg.TickDuration)
	}
}

// Metric is the value of the first line that starts with the name and has all labels.
func (m *Member) Metric(name string, labels ...string) (string, error) {
	round, err := transport.NewTimeoutTransport(transport.TLSInfo{}, time.Second, time.Second, time.Second)
	if err != nil {
		return "", err
	}
	answer, err := (&http.Client{Transport: round}).Get(m.URL() + "/metrics")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(body) {
		text := strings.TrimSpace(string(line))
		missing := func(label string) bool { return !strings.Contains(text, label) }
		if strings.HasPrefix(text, name) && !slices.ContainsFunc(labels, missing) {
			return strings.Fields(text)[1], nil
		}
	}
	return "", nil
}

// InjectPartition can't reach into the connections between processes.
func (m *Member) InjectPartition(t testutil.TB, others ...*Member) {
	t.Skip("needs connections between members cut")
}

func (m *Member) RecoverPartition(t testutil.TB, others ...*Member) {}

// NewLocalListener listens on a socket of its own in the working directory.
func NewLocalListener(t testutil.TB) net.Listener {
	url := uniqueURLs(nil)[0]
	listener, err := transport.NewUnixListener(filepath.Clean(url.Host))
	if err != nil {
		t.Fatal(err)
	}
	return listener
}
