// Package testserver gives Kubernetes' storage tests a server of our choice.
//
// Compiled in place of the only file of k8s.io/apiserver/pkg/storage/etcd3/testserver, which starts
// an etcd inside the test's own process. Same functions, but the etcd is the program that K0S_SUITE_ETCD names, started with
// etcd's flags. It decides nothing about the tests; which of them run is the runner's business.
package testserver

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

const (
	// The program to test; it takes etcd's flags.
	programVariable = "K0S_SUITE_ETCD"
	// What etcd logs once it answers.
	readyLine = "ready to serve client requests"
	// From exec to that line, on a loaded machine.
	startDeadline = 60 * time.Second
	// From SIGTERM to the end; then SIGKILL, and the test fails.
	stopDeadline = 30 * time.Second
)

// NewTestConfig describes a member on free ports with a directory of its own that does not wait for the disk.
func NewTestConfig(t testing.TB) *embed.Config {
	t.Helper()
	config := embed.NewConfig()
	config.Dir = t.TempDir()
	config.UnsafeNoFsync = true
	ports := freePorts(t, 2)
	client := []url.URL{{Scheme: "http", Host: fmt.Sprintf("localhost:%d", ports[0])}}
	peer := []url.URL{{Scheme: "http", Host: fmt.Sprintf("localhost:%d", ports[1])}}
	config.ListenClientUrls, config.AdvertiseClientUrls = client, slices.Clone(client)
	config.ListenPeerUrls, config.AdvertisePeerUrls = peer, slices.Clone(peer)
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	return config
}

// Only one free port at a time is chosen but not yet listened on.
var choosing sync.Mutex

// RunEtcd starts a server with this configuration, or a new one, and returns a client of it. Both end with the test.
func RunEtcd(t testing.TB, config *embed.Config) *kubernetes.Client {
	t.Helper()
	if config == nil {
		choosing.Lock()
		defer choosing.Unlock()
		config = NewTestConfig(t)
	}
	start(t, config)

	var endpoints []string
	for _, endpoint := range config.AdvertiseClientUrls {
		endpoints = append(endpoints, endpoint.String())
	}
	tls, err := config.ClientTLSInfo.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.New(clientv3.Config{
		Endpoints:   endpoints,
		TLS:         tls,
		DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()},
	})
	if err != nil {
		t.Fatal(err)
	}
	// Tests ask how many requests a call of theirs took.
	client.KV = storagetesting.NewKVRecorder(client.KV)
	client.Kubernetes = storagetesting.NewKubernetesRecorder(client.Kubernetes)
	return client
}

func start(t testing.TB, config *embed.Config) {
	t.Helper()
	program := os.Getenv(programVariable)
	if program == "" {
		t.Fatalf("%s does not name the etcd to test", programVariable)
	}
	server := exec.Command(program, arguments(config)...)
	// A test binary that is killed leaves no server behind.
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan string, 1)
	go func() {
		last := follow(log, ready)
		ended <- fmt.Sprintf("%v; its log ends with:\n%s", server.Wait(), last)
	}()
	select {
	case <-ready:
	case end := <-ended:
		t.Fatalf("%s ended before it was ready: %s", program, end)
	case <-time.After(startDeadline):
		server.Process.Kill()
		t.Fatalf("%s was not ready after %v: %s", program, startDeadline, <-ended)
	}
	t.Cleanup(func() { stop(t, server, ended) })
}

func stop(t testing.TB, server *exec.Cmd, ended <-chan string) {
	select {
	case end := <-ended:
		t.Errorf("the server ended before the test: %s", end)
		return
	default:
	}
	server.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopDeadline):
		server.Process.Kill()
		t.Errorf("the server did not stop within %v: %s", stopDeadline, <-ended)
	}
}

// follow reads the server's log to its end, says when it is ready, and returns the last lines.
func follow(log io.Reader, ready chan<- struct{}) string {
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
		last = append(last, lines.Text())
		last = last[max(0, len(last)-kept):]
	}
	return strings.Join(last, "\n")
}

// arguments are flags for what the tests set. (Config.AddFlags can't tell: it resets some of the fields.)
func arguments(config *embed.Config) []string {
	texts := func(urls []url.URL) string {
		var texts []string
		for _, one := range urls {
			texts = append(texts, one.String())
		}
		return strings.Join(texts, ",")
	}
	flags := []string{
		"--name=" + config.Name,
		"--data-dir=" + config.Dir,
		fmt.Sprintf("--unsafe-no-fsync=%t", config.UnsafeNoFsync),
		"--listen-client-urls=" + texts(config.ListenClientUrls),
		"--advertise-client-urls=" + texts(config.AdvertiseClientUrls),
		"--listen-peer-urls=" + texts(config.ListenPeerUrls),
		"--initial-advertise-peer-urls=" + texts(config.AdvertisePeerUrls),
		"--initial-cluster=" + config.InitialCluster,
		fmt.Sprintf("--watch-progress-notify-interval=%v", config.WatchProgressNotifyInterval),
	}
	if tls := config.ClientTLSInfo; !tls.Empty() {
		flags = append(flags, "--cert-file="+tls.CertFile, "--key-file="+tls.KeyFile, "--trusted-ca-file="+tls.TrustedCAFile)
	}
	return flags
}

func freePorts(t testing.TB, count int) []int {
	t.Helper()
	var ports []int
	for range count {
		// All are held until all are chosen, so that they differ.
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
