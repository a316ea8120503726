package link

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/identity"
)

// Asked again, and nothing is news: nobody is to be told.
func TestSameAnswersAreNoNews(t *testing.T) {
	other := netip.MustParseAddrPort("198.51.100.99:3479")
	for name, servers := range map[string]map[string]func(*stun.Message) []airPacket{
		"two families": {goodSTUN: sees(usOutside, 10*time.Millisecond), "[2001:db8::1]:3478": sees("[2001:db8::7]:41641", 30*time.Millisecond)},
		"two ports":    {goodSTUN: sees(usOutside, 10*time.Millisecond), otherSTUN: sees(usElse, 30*time.Millisecond)},
		"a filter that is asked for": {
			otherSTUN: sees(usOutside, 30*time.Millisecond),
			goodSTUN: func(m *stun.Message) []airPacket {
				from := netip.MustParseAddrPort(goodSTUN)
				if m.Contains(stun.AttrChangeRequest) {
					from = other
				}
				return []airPacket{{after: 10 * time.Millisecond, from: from, raw: success(m, usOutside, &stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})}}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := onAir(t, servers)
				defer a.close()
				var list []string
				for s := range servers {
					list = append(list, s)
				}
				slices.Sort(list)
				a.ask(t, list...)
				before, nat, seen := len(a.told()), a.NAT(), a.stun.reflexive()
				for range 3 {
					time.Sleep(time.Second)
					a.ask(t, list...)
					if got := len(a.told()) - before; got != 0 {
						t.Fatalf("told %d times", got)
					}
					if a.NAT() != nat || !slices.Equal(a.stun.reflexive(), seen) {
						t.Fatalf("%+v, before %+v; seen at %v, before %v", a.NAT(), nat, a.stun.reflexive(), seen)
					}
				}
			})
		})
	}
}

// While servers are asked again, what they said stays true.
func TestAddressesStayWhileServersAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := onAir(t, map[string]func(*stun.Message) []airPacket{
			goodSTUN: sees(usOutside, 10*time.Millisecond), "[2001:db8::1]:3478": sees("[2001:db8::7]:41641", 50*time.Millisecond),
		})
		defer a.close()
		a.ask(t, goodSTUN, "[2001:db8::1]:3478")
		done := make(chan struct{})
		go func() { a.ask(t, goodSTUN, "[2001:db8::1]:3478"); close(done) }()
		time.Sleep(20 * time.Millisecond)
		if got := a.stun.reflexive(); len(got) != 2 {
			t.Errorf("meanwhile seen at %v", got)
		}
		<-done
	})
}

// One server that is dead must not keep a peer waiting for what others show.
func TestHardNATIsKnownBeforeADeadServerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: sees(usOutside, 10*time.Millisecond), otherSTUN: sees(usElse, 20*time.Millisecond)})
		defer a.close()
		done := make(chan struct{})
		go func() { a.ask(t, deadSTUN, goodSTUN, otherSTUN); close(done) }()
		time.Sleep(time.Second)
		if !a.NAT().Hard() {
			t.Errorf("after a second: %+v", a.NAT())
		}
		<-done
	})
}

// An IPv6 server that answers first must not be the one that shows the ports of
// an IPv4 NAT.
func TestFurtherSocketsAskOverIPv4(t *testing.T) {
	six := serveSTUN(t, "[::1]:0", func(m *stun.Message, _ netip.AddrPort) []byte { return success(m, "[2001:db8::7]:5") })
	v4 := func(mapped string) *stunServer {
		asked := make(map[netip.AddrPort]int)
		return serveSTUN(t, []string{"127.0.0.1:0", "127.0.0.2:0"}[len(mapped)%2], func(m *stun.Message, from netip.AddrPort) []byte {
			if asked[from]++; asked[from] < 2 {
				return nil // the first packet is lost
			}
			return success(m, mapped)
		})
	}
	one, two := v4("203.0.113.7:4000"), v4("203.0.113.7:14001")
	s := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)}).socket
	s.stun.servers = []netip.AddrPort{six.addr(), one.addr(), two.addr()}
	s.stun.round(t.Context())
	if !s.NAT().Hard() {
		t.Fatalf("NAT %+v", s.NAT())
	}
	for _, from := range six.askers() {
		if from.Port() != s.Port() {
			t.Fatalf("asked over IPv6 from %v", from)
		}
	}
}

// A short address attribute is not filled up with zeros.
func TestShortAddressIsRefused(t *testing.T) {
	m := stun.MustBuild(stun.TransactionID, stun.BindingSuccess, stun.RawAttribute{Type: stun.AttrXORMappedAddress, Value: []byte{0, 1, 5, 5, 5}})
	if a, ok := parseAnswer(m.Raw); ok {
		t.Errorf("taken as %v", a.mapped)
	}
}
