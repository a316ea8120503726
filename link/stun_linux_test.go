package link

import (
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/link/punch"
)

// labNATs has both nodes ask the server, and tells each of them of the other's NAT.
func labNATs(t *testing.T, lab *nettest.Lab, kinds [2]nettest.NAT) (nodes [2]*nettest.Process, nats [2]punch.Behaviour, seen [2]string) {
	t.Helper()
	ctx := labContext(t)
	in := lab.Internet()
	host := in.Server("stun")
	var addrs []string
	for _, a := range host.Addrs() {
		if a.Is4() {
			addrs = append(addrs, netip.AddrPortFrom(a, 3478).String())
		}
	}
	server := host.Start("env", labNodeEnv+"=stun:"+strings.Join(addrs, ","), os.Args[0])
	server.Await(ctx, "^ready")
	var raw [2]string
	for i, kind := range kinds {
		name := []string{"first", "second"}[i]
		nodes[i] = startNode(ctx, in.Site(name, kind).Host("h"+name), name)
		nodes[i].Say("stun " + strings.Join(addrs, " "))
		rule := "^nat [0-9a-f]+ endpoint-independent "
		if kind == nettest.NATHard || kind == nettest.NATSeq {
			rule = "^nat [0-9a-f]+ address-and-port-dependent [5-9] " // with those of further sockets
		}
		words := strings.Fields(nodes[i].Await(ctx, rule))
		raw[i], seen[i] = words[1], words[4]
		b, err := hex.DecodeString(raw[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := nats[i].UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
	}
	nodes[0].Say("nat " + raw[1])
	nodes[1].Say("nat " + raw[0])
	return nodes, nats, seen
}

// TestLabHoles connects nodes behind each pair of NATs that needs a hole, without
// a relay.
func TestLabHoles(t *testing.T) {
	for name, kinds := range map[string][2]nettest.NAT{
		"easy and easy": {nettest.NATEasy, nettest.NATEasy},
		"hard and easy": {nettest.NATHard, nettest.NATEasy},
		"easy and hard": {nettest.NATEasy, nettest.NATHard},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := labContext(t)
			nodes, nats, seen := labNATs(t, nettest.New(t), kinds)
			for i, nat := range nats {
				if nat.Hard() != (kinds[i] == nettest.NATHard) || !nat.Public.IsValid() {
					t.Errorf("%s: NAT %+v", kinds[i], nat)
				}
			}
			start := time.Now()
			nodes[0].Say("remote " + seen[1])
			nodes[1].Say("remote " + seen[0])
			for _, n := range nodes {
				n.Await(ctx, "^(up|changed) (direct|punched) ")
			}
			t.Logf("straight after %s", time.Since(start).Round(time.Millisecond))
			talk(ctx, nodes[0], nodes[1], "hello")
			nodes[0].Await(ctx, "^changed (direct|punched) .* size 1432")
			talk(ctx, nodes[1], nodes[0], "again")
		})
	}
}
