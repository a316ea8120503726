package doctor

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/kithproject/kith/internal/netmon"
)

func TestParseARP(t *testing.T) {
	const table = "IP address       HW type     Flags       HW address            Mask     Device\n" +
		"192.168.1.1      0x1         0x2         52:54:00:00:00:01     *        eth0\n" +
		"192.168.1.7      0x1         0x0         00:00:00:00:00:00     *        eth0\n" +
		"nonsense         0x1         0x0         00:00:00:00:00:00     *        eth0\n" +
		"192.168.1.8 0x1\n"
	want := []lanNeighbour{{netip.MustParseAddr("192.168.1.1"), "eth0", true}, {netip.MustParseAddr("192.168.1.7"), "eth0", false}}
	if got := parseARP([]byte(table)); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := parseARP([]byte(strings.Repeat("10.0.0.1 0x1 0x2 - * eth0\n", 2*maxNeighbours))); len(got) != maxNeighbours {
		t.Errorf("%d neighbours", len(got))
	}
}

func FuzzParseARP(f *testing.F) {
	f.Add([]byte("192.168.1.1 0x1 0x2 52:54:00:00:00:01 * eth0\n"))
	f.Add([]byte("::1 0x1 0xffffffffff - * eth0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, n := range parseARP(b) {
			if !n.addr.Is4() || n.ifi == "" {
				t.Errorf("%+v", n)
			}
		}
	})
}

func TestNetworks(t *testing.T) {
	eth := netmon.Interface{Name: "eth0", Up: true, Multicast: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}
	br, down, tun := eth, eth, eth
	br.Name, br.Virtual = "br0", true
	down.Name, down.Up = "eth1", false
	tun.Name, tun.PointToPoint = "tun0", true
	for want, list := range map[string][]netmon.Interface{
		"eth0": {br, eth, down, tun}, "br0": {br, down, tun}, "": {down, tun},
	} {
		env := &Env{Interfaces: func() ([]netmon.Interface, error) { return list, nil }}
		got := strings.Join(slices.Collect(maps.Keys(env.networks())), " ")
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	bad := &Env{Interfaces: func() ([]netmon.Interface, error) { return nil, errors.New("no") }}
	if len(bad.networks()) > 0 {
		t.Error("networks from nowhere")
	}
}
