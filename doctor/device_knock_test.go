package doctor

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link/relay"
	"github.com/kithproject/kith/rendezvous/dht"
)

// TestDeviceBinding: requests have the size that they should, and tell their answers.
func TestDeviceBinding(t *testing.T) {
	for _, size := range []int{0, 548, 1372, 1432} {
		raw, fits := deviceBinding(size)
		if size > 0 && len(raw) != size {
			t.Errorf("%d bytes, want %d", len(raw), size)
		}
		m := &stun.Message{Raw: slices.Clone(raw)}
		if err := m.Decode(); err != nil || fits(raw) {
			t.Errorf("%v, or it takes itself for an answer", err)
		}
		good, err := stun.Build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess)
		if err != nil || !fits(good.Raw) {
			t.Errorf("its answer does not fit: %v", err)
		}
		other, err := stun.Build(stun.TransactionID, stun.BindingSuccess)
		if err != nil || fits(other.Raw) || fits([]byte("hello")) {
			t.Errorf("the answer to another fits: %v", err)
		}
	}
}

// TestDevicePing asks a node of the distributed hash table, which answers over UDP alone.
func TestDevicePing(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	node, err := dht.NewNode(dht.Config{Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	env := deviceEnv()
	env.Media = []Medium{{Name: dhtDriver, Servers: []string{node.Addr().String()}}}
	to := targets(env)
	if len(to) != 1 || !to[0].DHT || to[0].TCP || len(endpoints(env)) != 0 {
		t.Fatalf("targets %+v, endpoints %+v", to, endpoints(env))
	}
	d := systemDevice()
	d.dial = func(context.Context, *Env, netip.AddrPort) error { t.Error("TCP is tried"); return nil }
	if k := d.knock(t.Context(), env, to[0], node.Addr().Addr()); !k.alive || !strings.Contains(k.how, "answers over UDP") {
		t.Errorf("%+v", k)
	}
	ping, fits := devicePing()
	if fits(ping) || fits([]byte("d1:rd2:id20:aaaaaaaaaaaaaaaaaaaae1:t4:wxyz1:y1:re")) {
		t.Error("what is no answer to it fits")
	}
}

func TestDeviceTargets(t *testing.T) {
	env := deviceEnv()
	env.Hubs = []hubaddr.Address{{Host: "hub.example", Port: 443}}
	env.STUN = []string{"11.0.0.2:3478", "[2a0e::1]:3479", "bad:port", "no.port", "11.0.0.2:3478"}
	env.TURN = []relay.Config{{URL: "turn:turn.example"}, {URL: "turns:[2a0e::2]:5349?transport=tcp"}}
	env.Media = []Medium{{Name: "mqtt", Servers: []string{"broker.example:8883"}}, {Name: "x", Servers: []string{"too.many:1"}}}
	var got []string
	for _, x := range targets(env) {
		got = append(got, hostPort(x.Host, x.Port))
	}
	if want := []string{"hub.example:443", "11.0.0.2:3478", "[2a0e::1]:3479", "turn.example:3478", "[2a0e::2]:5349", "broker.example:8883"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := hostNames(env); !slices.Equal(got, []string{"hub.example", "turn.example", "broker.example"}) {
		t.Errorf("names %q", got)
	}
}
