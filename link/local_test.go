package link

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/kithproject/kith/internal/netmon"
)

func TestKindOfPath(t *testing.T) {
	ifs := networks{
		iface("eth0", "192.168.1.5/24"), iface("eth0", "2001:db8:1::5/64"), iface("lo", "127.0.0.1/8"),
		{Name: "wg0", Up: true, Virtual: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.5/24")}},
		{Name: "up0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.5/0")}},
	}
	for _, tc := range []struct {
		remote, local string
		want          PathKind
	}{
		{"192.168.1.9", "", LAN},
		{"192.168.1.9", "192.168.1.5", LAN},
		{"192.168.2.9", "192.168.1.5", Direct},
		{"2001:db8:1::9", "", LAN},
		{"2001:db8:2::9", "2001:db8:1::5", Direct},
		{"10.9.0.9", "", Virtual},
		{"198.51.100.1", "10.9.0.5", Virtual}, // the default route is a VPN
		{"127.0.0.1", "", Loopback},
		{"192.168.1.5", "", Loopback}, // our own address: the peer runs here
		{"fe80::9%eth0", "", LAN},
		{"fe80::9%wg0", "", Virtual},
	} {
		var local netip.Addr
		if tc.local != "" {
			local = netip.MustParseAddr(tc.local)
		}
		if got := ifs.kind(netip.MustParseAddr(tc.remote), local); got != tc.want {
			t.Errorf("%s from %q: %s, want %s", tc.remote, tc.local, got, tc.want)
		}
	}
}

func TestHostCandidates(t *testing.T) {
	pfx := netip.MustParsePrefix
	ifs := networks{
		{Name: "lo", Up: true, Loopback: true, Addrs: []netip.Prefix{pfx("127.0.0.1/8"), pfx("::1/128")}},
		{Name: "docker0", Up: true, Virtual: true, Addrs: []netip.Prefix{pfx("172.17.0.1/16")}},
		{Name: "eth0", Up: true, Addrs: []netip.Prefix{pfx("fe80::5/64"), pfx("192.168.1.5/24"), pfx("192.168.1.5/32"), pfx("fd6b:6974:6800::1/40")}},
		{Name: "eth1", Addrs: []netip.Prefix{pfx("10.0.0.1/8")}},
	}
	text := func(n networks, loopback bool) string {
		s := ""
		for _, c := range n.candidates(7, loopback) {
			s += fmt.Sprintf("%s ", c.Addr)
		}
		return s
	}
	if got, want := text(ifs, false), "192.168.1.5:7 [fe80::5]:7 172.17.0.1:7 "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := text(ifs, true), "192.168.1.5:7 [fe80::5]:7 172.17.0.1:7 127.0.0.1:7 [::1]:7 "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := text(ifs[:1], false), ""; got != want {
		t.Errorf("with no network: got %s, want %s", got, want)
	}
	many := netmon.Interface{Name: "eth2", Up: true}
	for i := range 100 {
		many.Addrs = append(many.Addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 24))
	}
	if got := len(networks{many}.candidates(7, false)); got != maxHosts {
		t.Errorf("%d candidates, at most %d", got, maxHosts)
	}
}
