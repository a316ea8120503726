package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/signaling"
)

func TestSTUNDeadServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: sees(usOutside, 20*time.Millisecond)})
		defer a.close()
		if took := a.ask(t, deadSTUN, goodSTUN); took != stunPatience {
			t.Errorf("took %s, want %s", took, stunPatience)
		}
		if got := a.requests(deadSTUN); !slices.Equal(got, stunSchedule) {
			t.Errorf("the dead server was asked at %v", got)
		}
		if got := a.requests(goodSTUN); len(got) != 1 {
			t.Errorf("the good server was asked at %v", got)
		}
		told := a.told()
		if len(told) == 0 || told[0] != 20*time.Millisecond {
			t.Errorf("told at %v, want the first answer at once", told)
		}
		if got := a.stun.reflexive(); !slices.Equal(got, addrPorts(usOutside)) {
			t.Errorf("seen at %v", got)
		}
		if a.NAT().Hard() || a.NAT().Public.String() != "203.0.113.7" {
			t.Errorf("NAT %+v", a.NAT())
		}
	})
}

// TestNodesWhileServersAreDead holds that nodes of the DHT, which become known while dead
// servers are asked, are asked at once and not after their time is over.
func TestNodesWhileServersAreDead(t *testing.T) {
	const node, known = "192.0.2.77:6881", 400 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		a := onAir(t, nil)
		defer a.close()
		go func() {
			time.Sleep(known)
			a.SetNodes(addrPorts(node))
			a.SetNodes(addrPorts(node)) // not news
		}()
		a.ask(t, deadSTUN)
		if got := a.requests(node); !slices.Equal(got, []time.Duration{known}) {
			t.Errorf("the node was asked at %v, want once, when it was known", got)
		}
		if told := a.told(); len(told) == 0 || told[0] != known+20*time.Millisecond {
			t.Errorf("told at %v", told)
		}
	})
}

func TestSTUNLostRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: func(m *stun.Message) []airPacket {
			if n++; n < 3 {
				return nil
			}
			return []airPacket{{after: 30 * time.Millisecond, raw: success(m, usOutside)}, {after: 40 * time.Millisecond, raw: success(m, usElse)}}
		}})
		defer a.close()
		if took := a.ask(t, goodSTUN); took != 480*time.Millisecond {
			t.Errorf("took %s", took)
		}
		synctest.Wait()
		if got := a.stun.reflexive(); !slices.Equal(got, addrPorts(usOutside)) {
			t.Errorf("seen at %v", got)
		}
		// The second answer came for nobody; a later round is not confused by it.
		time.Sleep(time.Second)
		if a.ask(t, goodSTUN); !slices.Equal(a.stun.reflexive(), addrPorts(usOutside)) {
			t.Errorf("seen at %v", a.stun.reflexive())
		}
	})
}

// TestSTUNLies has a server answer in ways that must not count.
func TestSTUNLies(t *testing.T) {
	build := func(set ...stun.Setter) []airPacket { return []airPacket{{raw: stun.MustBuild(set...).Raw}} }
	for name, server := range map[string]func(m *stun.Message) []airPacket{
		"wrong transaction": func(m *stun.Message) []airPacket {
			m.TransactionID[0]++
			return []airPacket{{raw: success(m, usOutside)}}
		},
		"from another port": func(m *stun.Message) []airPacket {
			return []airPacket{{raw: success(m, usOutside), from: netip.MustParseAddrPort("198.51.100.1:3479")}}
		},
		"from another address": func(m *stun.Message) []airPacket {
			return []airPacket{{raw: success(m, usOutside), from: netip.MustParseAddrPort("198.51.100.9:3478")}}
		},
		"huge": func(m *stun.Message) []airPacket {
			return []airPacket{{raw: success(m, usOutside, stun.NewSoftware(string(make([]byte, 600))))}}
		},
		"cut": func(m *stun.Message) []airPacket {
			raw := success(m, usOutside)
			return []airPacket{{raw: raw[:len(raw)-1]}}
		},
		"garbage": func(m *stun.Message) []airPacket {
			return []airPacket{{raw: append(slices.Clone(m.Raw[:20]), 0xff, 0xff, 0xff)}, {raw: []byte{0, 1}}, {raw: nil}}
		},
		"our request": func(m *stun.Message) []airPacket { return []airPacket{{raw: m.Raw}} },
		"an error": func(m *stun.Message) []airPacket {
			return build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingError, stun.CodeServerError,
				&stun.XORMappedAddress{IP: net.IPv4(203, 0, 113, 7), Port: 1})
		},
		"no address": func(m *stun.Message) []airPacket {
			return build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess)
		},
		"port 0": func(m *stun.Message) []airPacket { return []airPacket{{raw: success(m, "203.0.113.7:0")}} },
		"an address of a wrong family": func(m *stun.Message) []airPacket {
			return build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
				stun.RawAttribute{Type: stun.AttrXORMappedAddress, Value: []byte{0, 9, 5, 5, 5, 5, 5, 5}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: server})
				defer a.close()
				if took := a.ask(t, goodSTUN); took != stunPatience {
					t.Errorf("took %s", took)
				}
				if len(a.told()) != 0 || len(a.stun.reflexive()) != 0 || a.NAT() != (punch.Behaviour{}) {
					t.Errorf("told at %v, seen at %v, NAT %+v", a.told(), a.stun.reflexive(), a.NAT())
				}
			})
		})
	}
}

// TestSTUNFlood has somebody send more answers than fit while nobody asks, and
// while somebody does.
func TestSTUNFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: sees(usOutside, 0)})
		defer a.close()
		m := stun.MustBuild(stun.TransactionID)
		for range 1000 {
			if !a.stun.deliver(success(m, "203.0.113.66:6"), netip.MustParseAddrPort(goodSTUN)) {
				t.Fatal("not taken for an answer")
			}
		}
		a.ask(t, goodSTUN)
		if got := a.stun.reflexive(); !slices.Equal(got, addrPorts(usOutside)) {
			t.Errorf("seen at %v", got)
		}
	})
}

func TestOneLiarAmongSTUNServers(t *testing.T) {
	for name, lie := range map[string]string{"private": "10.0.0.1:5", "another's": "192.0.2.66:6", "IPv6": "[2001:db8::66]:6"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := onAir(t, map[string]func(*stun.Message) []airPacket{
					goodSTUN: sees(usOutside, 10*time.Millisecond), otherSTUN: sees(usOutside, 20*time.Millisecond), deadSTUN: sees(lie, 0),
				})
				defer a.close()
				a.ask(t, deadSTUN, goodSTUN, otherSTUN)
				if got := a.stun.reflexive(); !slices.Equal(got, addrPorts(usOutside, lie)) {
					t.Errorf("seen at %v, want the truth first", got)
				}
				var local []string
				for _, c := range a.Local() {
					if c.Kind == signaling.Reflexive {
						local = append(local, c.Addr.String())
					}
				}
				if len(local) != 2 {
					t.Errorf("offered %v", local)
				}
			})
		})
	}
}

func TestFewMappingsAreOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := make(map[string]func(*stun.Message) []airPacket)
		var names []string
		for i := range 8 {
			name := fmt.Sprintf("198.51.100.%d:3478", i+1)
			servers[name] = sees(fmt.Sprintf("203.0.113.%d:7", 10+i), 0)
			names = append(names, name)
		}
		a := onAir(t, servers)
		defer a.close()
		a.ask(t, names...)
		if got := a.stun.reflexive(); len(got) != maxMappings {
			t.Errorf("seen at %v", got)
		}
	})
}

func TestGatherAndFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mapped atomic.Pointer[string]
		first, second := usOutside, usElse
		mapped.Store(&first)
		a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: func(m *stun.Message) []airPacket {
			return []airPacket{{after: 10 * time.Millisecond, raw: success(m, *mapped.Load())}}
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		step := func(what string, do func(), asked, told int) {
			t.Helper()
			do()
			time.Sleep(time.Second)
			synctest.Wait()
			if got := len(a.requests(goodSTUN)); got != asked {
				t.Errorf("%s: asked %d times, want %d", what, got, asked)
			}
			if got := len(a.told()); (got > 0) != (told > 0) || got < told {
				t.Errorf("%s: told %d times, want %d", what, got, told)
			}
			a.mu.Lock()
			a.changed = nil
			a.mu.Unlock()
		}
		var list []netip.AddrPort
		for range 20 {
			list = append(list, netip.MustParseAddrPort(goodSTUN))
		}
		step("no servers", a.Gather, 0, 0)
		step("servers", func() { a.SetServers(list[:1]) }, 1, 1)
		step("fresh by now", a.Fresh, 1, 0)
		step("same answer", a.Gather, 2, 0)
		step("new answer", func() { mapped.Store(&second); a.Gather() }, 3, 1)
		time.Sleep(stunFresh)
		step("old by now", a.Fresh, 4, 0)
		for range 100 {
			a.Gather()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := len(a.requests(goodSTUN)); got < 5 || got > 6 {
			t.Errorf("many askers: asked %d times, want one or two more than 4", got)
		}
		a.mu.Lock()
		a.asked = make(map[netip.AddrPort][]time.Duration)
		a.mu.Unlock()
		step("too many servers", func() { a.SetServers(list) }, maxServers, 0)
		if got := a.stun.reflexive(); !slices.Equal(got, addrPorts(usElse)) {
			t.Errorf("seen at %v", got)
		}
		// The end comes in the middle of a round.
		a.SetServers(addrPorts(deadSTUN))
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		a.close()
	})
}

func TestMappedAddressIsOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: sees(usOutside, 0)})
		defer a.close()
		a.ask(t, goodSTUN)
		before := len(a.told())
		for _, addr := range addrPorts(usElse, usElse) {
			a.SetMapped(addr)
		}
		if got := len(a.told()) - before; got != 1 {
			t.Errorf("told %d times", got)
		}
		kinds := make(map[netip.AddrPort]signaling.Kind)
		var order []signaling.Kind
		for _, c := range a.Local() {
			kinds[c.Addr] = c.Kind
			order = append(order, c.Kind)
		}
		if kinds[addrPorts(usElse)[0]] != signaling.Mapped || kinds[addrPorts(usOutside)[0]] != signaling.Reflexive {
			t.Errorf("offered %v", kinds)
		}
		if slices.Index(order, signaling.Mapped) > slices.Index(order, signaling.Reflexive) {
			t.Errorf("order %v", order)
		}
		a.SetMapped(addrPorts(usOutside)[0]) // both: once, as the better kind
		n := 0
		for _, c := range a.Local() {
			if c.Addr.String() == usOutside {
				if n++; c.Kind != signaling.Mapped {
					t.Errorf("kind %s", c.Kind)
				}
			}
		}
		if n != 1 {
			t.Errorf("offered %d times", n)
		}
	})
}

// TestFilteringIsFound has a server answer from its other address, as far as a
// NAT would let that in.
func TestFilteringIsFound(t *testing.T) {
	const elsewhere, nextPort = "198.51.100.99:3479", "198.51.100.1:3479"
	for name, tc := range map[string]struct {
		passes map[string]bool
		want   punch.Rule
	}{
		"everybody gets in":             {map[string]bool{elsewhere: true, nextPort: true}, punch.EndpointIndependent},
		"who was asked, from any port":  {map[string]bool{nextPort: true}, punch.AddressDependent},
		"nobody but who was asked":      {nil, punch.Unknown},
		"only what cannot tell us more": {map[string]bool{goodSTUN: true}, punch.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				other := netip.MustParseAddrPort(elsewhere)
				server := func(m *stun.Message) []airPacket {
					from := goodSTUN
					if v, err := m.Get(stun.AttrChangeRequest); err == nil {
						if from = nextPort; v[3]&4 != 0 {
							from = elsewhere
						}
						if !tc.passes[from] {
							return nil
						}
					}
					return []airPacket{{
						after: 20 * time.Millisecond, from: netip.MustParseAddrPort(from),
						raw: success(m, usOutside, &stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())}),
					}}
				}
				a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: server, otherSTUN: sees(usOutside, 0)})
				defer a.close()
				took := a.ask(t, goodSTUN, otherSTUN)
				if a.NAT().Filtering != tc.want || a.NAT().Mapping != punch.EndpointIndependent {
					t.Errorf("NAT %+v", a.NAT())
				}
				if took > 400*time.Millisecond {
					t.Errorf("took %s", took)
				}
				if told := a.told(); len(told) == 0 || told[0] > 20*time.Millisecond {
					t.Errorf("told at %v", told)
				}
			})
		})
	}
}

func FuzzParseAnswer(f *testing.F) {
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	f.Add(m.Raw)
	f.Add(success(m, usOutside))
	f.Add(success(m, "[2001:db8::1]:5", &stun.OtherAddress{IP: net.IPv4(198, 51, 100, 2), Port: 3479}))
	f.Add(success(m, usOutside, stun.RawAttribute{Type: stun.AttrOtherAddress, Value: []byte{0, 1, 0, 0, 1, 2, 3, 4}}))
	f.Add(success(m, "203.0.113.7:0"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := slices.Clone(raw)
		a, ok := parseAnswer(raw)
		if !slices.Equal(raw, before) {
			t.Error("the datagram was changed")
		}
		if !ok {
			if a != (stunAnswer{}) {
				t.Errorf("refused, and %+v", a)
			}
			return
		}
		if len(raw) > maxSTUN || !stun.IsMessage(raw) || isWireGuard(raw) || isProbe(raw) {
			t.Errorf("%d bytes were taken", len(raw))
		}
		if !a.mapped.IsValid() || a.mapped.Port() == 0 || a.mapped.Addr().Is4In6() || a.mapped.Addr().Zone() != "" {
			t.Errorf("mapped %v", a.mapped)
		}
		if a.other != (netip.AddrPort{}) && (!a.other.IsValid() || a.other.Port() == 0 || a.other.Addr().Is4In6()) {
			t.Errorf("other %v", a.other)
		}
		if string(a.tx[:]) != string(raw[8:20]) {
			t.Errorf("transaction %x", a.tx)
		}
	})
}
