package kith_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/rendezvous/dht"
)

// tableSize is how many nodes the distributed hash table of these tests has.
const tableSize = 40

// A table is a distributed hash table on the lab's internet, each node at an address
// of its own.
type table struct {
	addrs []netip.Addr
	nodes []*dht.Node
}

func newTable(t *testing.T, inet *nettest.Internet) *table {
	t.Helper()
	host := inet.Crowd("table", tableSize)
	tb := &table{addrs: host.Addrs()}
	for i, a := range tb.addrs {
		var conn net.PacketConn
		var err error
		host.Do(func() {
			var lc net.ListenConfig
			conn, err = lc.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(a, 6881).String())
		})
		if err != nil {
			t.Fatal(err)
		}
		cfg := dht.Config{Conn: conn, Private: true}
		if i > 0 {
			cfg.Bootstrap = []string{tb.first()}
		}
		n, err := dht.NewNode(cfg)
		if err != nil {
			t.Fatal(errors.Join(err, conn.Close()))
		}
		tb.nodes = append(tb.nodes, n)
	}
	t.Cleanup(func() { tb.kill(t, 0) })
	return tb
}

// first is where a program finds its way in.
func (tb *table) first() string { return netip.AddrPortFrom(tb.addrs[0], 6881).String() }

// kill ends all nodes but the first ones.
func (tb *table) kill(t *testing.T, keep int) {
	t.Helper()
	for _, n := range tb.nodes[min(keep, len(tb.nodes)):] {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	tb.nodes = tb.nodes[:min(keep, len(tb.nodes))]
}

// A meetLab is two homes behind separate NATs that are strangers to each other.
type meetLab struct {
	t     *testing.T
	inet  *nettest.Internet
	sites [2]*nettest.Site
	nodes [2]*station
	spare *nettest.Site
}

func newMeetLab(ctx context.Context, t *testing.T, nat nettest.NAT) *meetLab {
	t.Helper()
	lab := nettest.New(t)
	m := &meetLab{t: t, inet: lab.Internet()}
	for i, name := range []string{"desk", "laptop"} {
		m.sites[i] = m.inet.Site([]string{"left", "right"}[i], nat)
		m.nodes[i] = newStation(t, m.sites[i].Host(name))
		m.nodes[i].run(ctx, "config", "rendezvous", "lan", "off")
	}
	m.spare = m.inet.Site("spare", nat)
	return m
}

// config runs a config command on both.
func (m *meetLab) config(ctx context.Context, args ...string) {
	m.t.Helper()
	for _, s := range m.nodes {
		s.run(ctx, append([]string{"config"}, args...)...)
	}
}

// pair pairs the two by words alone, and returns how long the one that entered them
// took to say that it is paired.
func (m *meetLab) pair(ctx context.Context) time.Duration {
	m.t.Helper()
	code, p := m.nodes[0].offer(ctx, "words")
	return m.join(ctx, code, p)
}

// join enters the code that p shows.
func (m *meetLab) join(ctx context.Context, code string, p *nettest.Process) time.Duration {
	m.t.Helper()
	file := filepath.Join(m.t.TempDir(), "code")
	if err := os.WriteFile(file, []byte(code+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	start := time.Now()
	j := m.nodes[1].start("join", "--yes", "--json", "--code-file", file)
	j.Await(ctx, `"event":"paired"`)
	took := time.Since(start)
	for _, one := range []*nettest.Process{p, j} {
		if status := one.Wait(ctx); status != 0 {
			m.t.Fatalf("exit status %d", status)
		}
	}
	return took
}

// connect starts both daemons, and returns how long it takes until a ping is back.
func (m *meetLab) connect(ctx context.Context) time.Duration {
	m.t.Helper()
	start := time.Now()
	for _, s := range m.nodes {
		s.daemon(ctx)
	}
	m.nodes[0].run(ctx, "ping", "-c", "1", "--wait", "90s", "laptop")
	return time.Since(start)
}

func (m *meetLab) stop() {
	m.t.Helper()
	for _, s := range m.nodes {
		if s.up != nil {
			s.up.Stop()
			s.up = nil
		}
	}
}

// scatter has no address of either device lead to it any more: one moves to another
// site, and the routers have new mappings, one of them a new address.
func (m *meetLab) scatter(to *nettest.Site) {
	m.t.Helper()
	for i, s := range m.sites {
		s.Reboot(i == 0)
	}
	to.Move(m.nodes[1].host)
}

// TestNetworkDHT pairs two homes behind NATs by the words alone through a distributed
// hash table, with no server; then both are stopped, one moves, and they find each other
// again, and once more after half of the table has died, too.
func TestNetworkDHT(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	m := newMeetLab(ctx, t, nettest.NATEasy)
	tb := newTable(t, m.inet)
	m.config(ctx, "dht", "bootstrap", tb.first())
	m.config(ctx, "rendezvous", "dht", "on")
	t.Logf("paired after %v", m.pair(ctx).Round(time.Millisecond))
	t.Logf("connected after %v", m.connect(ctx).Round(time.Millisecond))
	t.Log(m.nodes[0].run(ctx, "status", "--rendezvous"))
	m.stop()
	m.scatter(m.spare)
	t.Logf("both restarted and moved: connected after %v", m.connect(ctx).Round(time.Millisecond))
	m.stop()
	m.scatter(m.sites[1])
	tb.kill(t, tableSize/2)
	t.Logf("the same, and half of the nodes killed: connected after %v", m.connect(ctx).Round(time.Millisecond))
	fmt.Fprintln(t.Output(), m.nodes[1].run(ctx, "status"))
}
