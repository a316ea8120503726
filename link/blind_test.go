package link

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

func port(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 2}), uint16(n))
}

// guesser is a checker that guesses ports of a peer, and its pings.
func guesser(t *testing.T) (n *simNet, a *simNode, sent map[netip.AddrPort]probe) {
	n = newSim(t)
	a = n.add("a", []string{netA})
	sent = make(map[netip.AddrPort]probe)
	n.pass = func(p simPacket) (time.Duration, bool) {
		if p.p.kind == ping && p.size == smallProbe {
			sent[p.dst] = p.p
		}
		return 0, false
	}
	return n, a, sent
}

func TestGuessThatAnswersIsAPath(t *testing.T) {
	n, a, sent := guesser(t)
	for i := range 100 {
		a.guess(n.now, port(5000+i))
	}
	if len(a.all) != 0 || a.pings != 100 || len(sent) != 100 {
		t.Fatalf("%d candidates, %d pings to %d addresses", len(a.all), a.pings, len(sent))
	}
	n.run(30 * time.Millisecond)
	hit := port(5077)
	answer := probe{kind: pong, tx: sent[hit].tx, observed: netip.MustParseAddrPort(netA)}
	a.onPong(n.now, onSocket(hit), nil, answer)
	a.check(t)
	if a.selectedAddr() != hit.String() || a.last().kind != Up || a.last().path.RTT != 30*time.Millisecond || a.last().path.Kind != Punched {
		t.Fatalf("path %s, event %+v", a.selectedAddr(), a.last())
	}
	if len(a.blind.sent) != 99 {
		t.Errorf("%d guesses are remembered", len(a.blind.sent))
	}
	// The same answer again proves nothing.
	candidates := len(a.all)
	a.lose(n.now, a.selected)
	a.selectPath(n.now, nil)
	a.onPong(n.now, onSocket(hit), nil, answer)
	if a.selected != nil || len(a.all) != candidates {
		t.Errorf("a repeated answer made a path: %v", a.events)
	}
}

func TestAnswersToGuessesThatDoNotCount(t *testing.T) {
	hit, other := port(5077), netip.MustParseAddrPort("203.0.113.9:5077")
	for _, tc := range []struct {
		name  string
		from  place
		after time.Duration
		edit  func(*probe)
	}{
		{"from another port", onSocket(port(5078)), time.Millisecond, nil},
		{"from another address", onSocket(other), time.Millisecond, nil},
		{"through a carrier", place{addr: hit, carrier: 1}, time.Millisecond, nil},
		{"too late", onSocket(hit), pongWait + time.Millisecond, nil},
		{"of a wrong transaction", onSocket(hit), time.Millisecond, func(p *probe) { p.tx[0]++ }},
		{"of no transaction", onSocket(hit), time.Millisecond, func(p *probe) { p.tx = txid{} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, a, sent := guesser(t)
			a.guess(n.now, hit)
			p := probe{kind: pong, tx: sent[hit].tx}
			if tc.edit != nil {
				tc.edit(&p)
			}
			n.run(tc.after)
			a.onPong(n.now, tc.from, nil, p)
			a.check(t)
			if len(a.all) != 0 || len(a.events) != 0 {
				t.Errorf("%d candidates, events %v", len(a.all), a.events)
			}
		})
	}
	n, a, sent := guesser(t)
	a.guess(n.now, hit)
	n.run(pongWait)
	a.onPong(n.now, onSocket(hit), nil, probe{kind: pong, tx: sent[hit].tx})
	if a.selectedAddr() != hit.String() {
		t.Error("the last moment is too late")
	}
}

func TestGuessesAreForgotten(t *testing.T) {
	n, a, sent := guesser(t)
	for i := range 3 * maxBlind {
		a.guess(n.now, port(1024+i))
		if len(a.blind.sent) > maxBlind {
			t.Fatalf("%d guesses are remembered", len(a.blind.sent))
		}
	}
	if len(a.blind.sent) != maxBlind {
		t.Errorf("%d guesses are remembered, want %d", len(a.blind.sent), maxBlind)
	}
	a.onPong(n.now, onSocket(port(1024)), nil, probe{kind: pong, tx: sent[port(1024)].tx})
	a.onPong(n.now, onSocket(port(1023+2*maxBlind)), nil, probe{kind: pong, tx: sent[port(1023+2*maxBlind)].tx})
	if len(a.all) != 0 {
		t.Errorf("an answer to a forgotten guess made %d candidates", len(a.all))
	}
	a.onPong(n.now, onSocket(port(1024+2*maxBlind)), nil, probe{kind: pong, tx: sent[port(1024+2*maxBlind)].tx})
	if a.selectedAddr() != port(1024+2*maxBlind).String() {
		t.Error("the oldest remembered guess is no path")
	}
}

// TestGuessAndPingMeet is both ends of a hard NAT at once: the peer's ping comes
// from the port that was guessed, before the answer.
func TestGuessAndPingMeet(t *testing.T) {
	n, a, sent := guesser(t)
	hit := port(5077)
	a.guess(n.now, hit)
	guess := sent[hit]
	n.run(10 * time.Millisecond)
	a.onPing(n.now, onSocket(hit), nil, probe{kind: ping, session: 9, seq: 1})
	if sent[hit].tx == guess.tx {
		t.Fatal("the peer's address was not asked")
	}
	a.onPong(n.now, onSocket(hit), nil, probe{kind: pong, tx: guess.tx})
	a.check(t)
	n.run(10 * time.Millisecond)
	a.onPong(n.now, onSocket(hit), nil, probe{kind: pong, tx: sent[hit].tx})
	a.check(t)
	if a.selectedAddr() != hit.String() || len(a.all) != 1 {
		t.Errorf("path %s of %d candidates", a.selectedAddr(), len(a.all))
	}
}

// TestHitsAreBounded has a peer answer every guess: its addresses stay few, and
// the one in use stays.
func TestHitsAreBounded(t *testing.T) {
	n, a, sent := guesser(t)
	for i := range 500 {
		a.guess(n.now, port(2000+i))
	}
	n.run(time.Millisecond)
	first := ""
	for to, p := range sent {
		a.onPong(n.now, onSocket(to), nil, probe{kind: pong, tx: p.tx})
		a.check(t)
		if first == "" {
			first = a.selectedAddr()
		}
	}
	if a.selectedAddr() != first || len(a.all) > 1+maxLearned {
		t.Errorf("path %s, first %s, %d candidates", a.selectedAddr(), first, len(a.all))
	}
}

func TestGuessesAreNumberedLikePings(t *testing.T) {
	n, a, sent := guesser(t)
	seen := make(map[uint64]bool)
	for i := range 50 {
		a.guess(n.now, port(3000+i))
		p := sent[port(3000+i)]
		if p.session != a.session || p.seq == 0 || seen[p.seq] || binary.BigEndian.Uint64(p.tx[:]) == 0 {
			t.Fatalf("ping %+v", p)
		}
		seen[p.seq] = true
	}
}
