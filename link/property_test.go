package link

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"pgregory.net/rapid"
)

// wildOutlet hands every probe to the test.
type wildOutlet struct {
	*simNode
	asked map[txid]place // pings that were sent, and where to
	sent  int
}

func (o *wildOutlet) send(to place, _ conn.Endpoint, p probe, size int) error {
	if p.kind == ping {
		o.asked[p.tx] = to
		o.sent++
	}
	if size < smallProbe || size > MaxDataSize {
		panic("probe of a size that cannot be sent")
	}
	return nil
}

// TestCheckerHoldsWhateverComes feeds a checker with every sequence of calls,
// true and forged answers, and passing time, and holds: the bounds, the order of
// events, that no path is used that did not answer a ping sent to it, and that
// it never asks to be called without end.
func TestCheckerHoldsWhateverComes(t *testing.T) {
	addr := rapid.Custom(func(t *rapid.T) netip.AddrPort {
		return rapid.SampledFrom([]netip.AddrPort{
			netip.MustParseAddrPort(lanB), netip.MustParseAddrPort(netB), netip.MustParseAddrPort("127.0.0.1:9"),
			netip.MustParseAddrPort("[fe80::1%eth0]:9"), netip.MustParseAddrPort("[2001:db8::2]:9"), {},
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "host")}), 9),
		}).Draw(t, "addr")
	})
	rapid.Check(t, func(t *rapid.T) {
		net := &simNet{now: simStart}
		node := &simNode{net: net, name: "x", admitted: make(map[place]bool)}
		out := &wildOutlet{simNode: node, asked: make(map[txid]place)}
		c := newChecker(out, rand.NewChaCha8([32]byte{1}), rapid.SampledFrom([]int{MinDataSize, 1300, DefaultDataSize, MaxDataSize}).Draw(t, "data size"))
		node.checker = c
		answeredAt := make(map[place]bool)
		var seq uint64
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now := net.now
			switch rapid.IntRange(0, 11).Draw(t, "what") {
			case 0:
				var list []namedAddr
				for _, a := range rapid.SliceOfN(addr, 0, 40).Draw(t, "list") {
					list = append(list, namedAddr{addr: a, priority: rapid.Uint32().Draw(t, "priority")})
				}
				c.setRemote(now, list)
			case 1:
				c.stir(now)
				c.probe(now)
			case 2:
				c.setNetworks(now, networks{iface("eth0", "192.168.1.1/24"), iface("eth0", "fe80::7/64")}[:rapid.IntRange(0, 2).Draw(t, "interfaces")])
			case 3:
				seq += rapid.Uint64Range(0, 3).Draw(t, "seq")
				from := addr.Draw(t, "from")
				if from.IsValid() {
					c.onPing(now, onSocket(from), nil, probe{kind: ping, session: rapid.Uint64Range(0, 6).Draw(t, "session"), seq: seq, flags: rapid.Byte().Draw(t, "flags")})
				}
			case 4: // a true answer to any ping of ours, perhaps late, perhaps once more
				for tx, to := range out.asked {
					answeredAt[to] = true
					c.onPong(now, to, newEndpoint(to.addr, netip.Addr{}), probe{kind: pong, tx: tx})
					break
				}
			case 5: // an answer from elsewhere, or to nothing
				for tx, to := range out.asked {
					if from := addr.Draw(t, "from"); onSocket(from) != to {
						c.onPong(now, onSocket(from), nil, probe{kind: pong, tx: tx})
					}
					break
				}
				c.onPong(now, onSocket(addr.Draw(t, "from")), nil, probe{kind: pong})
			case 6:
				c.traffic(now, rapid.Bool().Draw(t, "sent"), rapid.SampledFrom([]time.Time{{}, now, now.Add(-5 * time.Second)}).Draw(t, "waiting"))
			case 7:
				c.sendFailed(now)
			case 9:
				c.setLazy(now, rapid.Bool().Draw(t, "lazy"))
			case 10:
				c.received(now)
			case 11:
				list := []carrierInfo{relayInfo(1, "one", relayA), relayInfo(2, "two", relayB)}
				c.setCarriers(now, list[:rapid.IntRange(0, 2).Draw(t, "carriers")])
			case 8:
				step := time.Duration(rapid.Int64Range(0, int64(40*time.Second)).Draw(t, "time"))
				passTime(t, c, net, now.Add(step))
			}
			node.check(t)
			c.tick(net.now)
			node.check(t)
			if c.selected != nil && !answeredAt[c.selected.place] {
				t.Fatalf("%v is used and never answered", c.selected.place)
			}
			if at := c.next(net.now); c.dormant && !at.IsZero() {
				t.Fatalf("asleep, and something is due in %s", at.Sub(net.now))
			}
			if out.sent > 20000 {
				t.Fatalf("%d pings", out.sent)
			}
		}
	})
}

// passTime ticks a checker whenever it asks for it.
func passTime(t *rapid.T, c *checker, net *simNet, end time.Time) {
	for still := 0; ; {
		next := c.next(net.now)
		if next.IsZero() || next.After(end) {
			net.now = end
			return
		}
		if next.After(net.now) {
			net.now, still = next, 0
		} else if still++; still > 200 {
			t.Fatalf("time stands still")
		}
		c.tick(net.now)
	}
}
