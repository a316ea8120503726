//go:build linux

package nettest

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func udpExchange(t *testing.T, from, to *Host, address string) error {
	t.Helper()
	var server *net.UDPConn
	var client net.Conn
	var err error
	to.Do(func() { server, err = net.ListenUDP("udp", &net.UDPAddr{Port: 7777}) })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	from.Do(func() { client, err = net.Dial("udp", net.JoinHostPort(address, "7777")) })
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Write([]byte("through the lab")); err != nil {
		return err
	}
	buf := make([]byte, 64)
	if err := server.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _, err = server.ReadFrom(buf)
	return err
}

func TestLab(t *testing.T) {
	l := New(t)
	left, right := l.Bridge("left"), l.Bridge("right")
	a := l.Host("a").Attach(left, "10.1.0.2/24", "fd01::2/64")
	b := l.Host("b").Attach(right, "10.2.0.2/24", "fd02::2/64")
	r := l.Host("r").Attach(left, "10.1.0.1/24", "fd01::1/64").Attach(right, "10.2.0.1/24", "fd02::1/64").Router()
	if udpExchange(t, a, b, "10.2.0.2") == nil {
		t.Fatal("a packet crossed networks without a route")
	}
	a.Route("default", "via", "10.1.0.1").Route("default", "via", "fd01::1")
	b.Route("default", "via", "10.2.0.1").Route("default", "via", "fd02::1")
	rec := left.Record()
	for _, address := range []string{"10.2.0.2", "fd02::2"} {
		if err := udpExchange(t, a, b, address); err != nil {
			t.Errorf("no packet to %s through the router: %v", address, err)
		}
	}
	seen := false
	for _, f := range rec.Stop() {
		seen = seen || bytes.Contains(f, []byte("through the lab"))
	}
	if !seen {
		t.Error("the recording has no packet")
	}
	r.Nft("table inet f { chain c { type filter hook forward priority 0; udp dport 7777 drop; }; }")
	if udpExchange(t, a, b, "10.2.0.2") == nil {
		t.Error("a packet passed the firewall")
	}
}

func TestProcess(t *testing.T) {
	h := New(t).Host("h")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p := h.Start("sh", "-c", "echo ready; read x; echo got $x; exit 7")
	p.Await(ctx, "^ready$")
	p.Say("word")
	p.Await(ctx, "^got word$")
	if got := p.Wait(ctx); got != 7 {
		t.Errorf("exit status %d, want 7", got)
	}
	h.Start("sleep", "100").Kill()
}

func TestCleanup(t *testing.T) {
	t.Run("lab", func(t *testing.T) { New(t).Host("gone") })
	out, err := exec.Command("ip", "netns", "list").CombinedOutput()
	if err == nil && strings.Contains(string(out), "-gone") {
		t.Errorf("a namespace stays:\n%s", out)
	}
}
