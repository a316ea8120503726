package dns

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	zone    = "kith.test."
	keyName = "kith-key."
)

var secret = base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))

// freePort is one that is free for UDP and TCP on loopback.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		conn, err := net.ListenPacket("udp", "127.0.0.1:"+port)
		ln.Close()
		if err == nil {
			conn.Close()
			return port
		}
	}
	t.Fatal("no port is free for UDP and TCP")
	return ""
}

// program finds a server, or skips the test where there is none.
func program(t testing.TB, name, debian string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	if os.Getenv("KITH_REQUIRE_NETTEST") != "" {
		t.Fatalf("%s is missing: make deps", name)
	}
	t.Skipf("needs %s (Debian: %s)", name, debian)
	return ""
}

func write(t testing.TB, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// start runs a server until the function that it returns, or the end of the test,
// and waits until it answers for the zone.
func start(t testing.TB, address string, command ...string) (stop func()) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	stop = func() {
		_ = cmd.Process.Kill()
		<-exited
	}
	t.Cleanup(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c := mdns.Client{Net: "tcp", Timeout: time.Second}
		if r, _, err := c.ExchangeContext(ctx, new(mdns.Msg).SetQuestion(zone, mdns.TypeSOA), address); err == nil && r.Rcode != mdns.RcodeServerFailure {
			return stop
		}
		select {
		case <-tick.C:
		case <-exited:
			t.Fatalf("%v ended:\n%s", command, out.String())
		case <-ctx.Done():
			t.Fatalf("%v did not start in time", command)
		}
	}
}

// startNamed runs BIND with one zone, which the key may change and readers may read.
func startNamed(t testing.TB, readers string) (address string, restart func()) {
	t.Helper()
	path, dir, port := program(t, "named", "bind9"), t.TempDir(), freePort(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	file := write(t, filepath.Join(dir, "zone"), "$TTL 1\n@ SOA ns.kith.test. x.kith.test. 1 60 60 600 0\n@ NS ns\nns A 127.0.0.1\n")
	conf := write(t, filepath.Join(dir, "named.conf"), fmt.Sprintf(`
options {
	directory "%[1]s"; managed-keys-directory "%[1]s"; pid-file none; session-keyfile none;
	listen-on port %[2]s { 127.0.0.1; }; listen-on-v6 { none; };
	recursion no; dnssec-validation no; notify no;
};
controls { };
key "%[3]s" { algorithm hmac-sha256; secret "%[4]s"; };
zone "%[5]s" { type primary; file "%[6]s"; allow-update { key "%[3]s"; }; allow-query { %[7]s; key "%[3]s"; }; };
`, dir, port, keyName, secret, zone, file, readers))
	address = "127.0.0.1:" + port
	run := func() func() { return start(t, address, path, "-g", "-n", "1", "-c", conf) }
	stop := run()
	return address, func() {
		t.Helper()
		stop()
		stop = run()
	}
}

// startUnbound runs a resolver that keeps what it heard for at least some seconds.
// It asks from 127.0.0.2.
func startUnbound(t testing.TB, server string, keeps int) (address string) {
	t.Helper()
	path, dir, port := program(t, "unbound", "unbound"), t.TempDir(), freePort(t)
	_, serverPort, err := net.SplitHostPort(server)
	if err != nil {
		t.Fatal(err)
	}
	conf := write(t, filepath.Join(dir, "unbound.conf"), fmt.Sprintf(`
server:
	interface: 127.0.0.1@%[2]s
	port: %[2]s
	do-ip6: no
	outgoing-interface: 127.0.0.2
	do-not-query-localhost: no
	access-control: 127.0.0.0/8 allow
	chroot: ""
	username: ""
	directory: "%[1]s"
	pidfile: ""
	use-syslog: no
	do-daemonize: no
	module-config: "iterator"
	cache-min-ttl: %[5]d
	local-zone: "test." nodefault
remote-control:
	control-enable: no
stub-zone:
	name: "%[3]s"
	stub-addr: 127.0.0.1@%[4]s
`, dir, port, zone, serverPort, keeps))
	address = "127.0.0.1:" + port
	start(t, address, path, "-d", "-c", conf)
	return address
}
