package signaling

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// end is one side of a test.
type end struct {
	*Channel
	mu     sync.Mutex
	events []Event
}

func (e *end) all() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.events)
}

func (e *end) presences() (out []Presence) {
	for _, ev := range e.all() {
		if ev.Kind == PresenceEvent {
			out = append(out, ev.Presence)
		}
	}
	return out
}

func testChain(now time.Time) pairing.Chain {
	return pairing.Chain{Key: [32]byte{1}, Day: wire.Day(now) - 3}
}

// openEnd opens a channel on a medium in memory. change may adjust the Config.
func openEnd(t *testing.T, n *rendezvoustest.Network, joiner bool, boot byte, change func(*Config)) *end {
	t.Helper()
	e := &end{}
	cfg := Config{
		Exchange: n.Exchange("memory"), Joiner: joiner, Chain: testChain(time.Now()), BootID: BootID{boot},
		Events: func(ev Event) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.events = append(e.events, ev)
		},
	}
	if change != nil {
		change(&cfg)
	}
	c, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.Channel = c
	return e
}

func here(name string) Presence {
	return Presence{Name: name, Candidates: []Candidate{{Kind: Host, Addr: netip.MustParseAddrPort("10.0.0.1:4000"), Priority: 7}}}
}

func TestBothKnowEachOtherAfterOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openEnd(t, n, false, 1, nil), openEnd(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		start := time.Now()
		a.Announce(here("desk"))
		b.Announce(here("laptop"))
		synctest.Wait()
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v on a medium without delay", took)
		}
		pa, pb := a.presences(), b.presences()
		if len(pa) == 0 || len(pb) == 0 {
			t.Fatalf("presences: %v, %v", pa, pb)
		}
		if pa[0].Name != "laptop" || pa[0].BootID != (BootID{2}) || len(pa[0].Candidates) != 1 || pa[0].Candidates[0] != here("").Candidates[0] {
			t.Errorf("the presence came changed: %+v", pa[0])
		}
		// Confirmed, at the latest by the first repetition: silence from now on.
		time.Sleep(time.Second)
		synctest.Wait()
		sent := len(n.Recorded())
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if now := len(n.Recorded()); now != sent {
			t.Errorf("%d frames were sent in ten minutes without news", now-sent)
		}
	})
}

func TestScheduleWhileAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a := openEnd(t, n, false, 1, nil)
		defer a.Close()
		a.Announce(here("desk"))
		synctest.Wait()
		if got := len(n.Recorded()); got != 1 {
			t.Fatalf("%d frames at once, want 1", got)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := len(n.Recorded()); got < 6 || got > 10 {
			t.Errorf("%d frames in ten seconds, want 6 to 10 (250 ms, each wait 1.6 times as long)", got)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := len(n.Recorded()); got > 2*24*12+100 {
			t.Errorf("%d frames in a day: more than one in five minutes", got)
		}
	})
}

func TestLossAndReordering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(7, rendezvoustest.Faults{Loss: 0.3, Duplicate: 0.3, MaxDelay: 50 * time.Millisecond})
		a, b := openEnd(t, n, false, 1, nil), openEnd(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		a.Announce(here("desk"))
		b.Announce(here("laptop"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(a.presences()) == 0 || len(b.presences()) == 0 {
			t.Error("they did not meet in ten seconds")
		}
	})
}

func TestRestartIsSeenAndReplayIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openEnd(t, n, false, 1, nil), openEnd(t, n, true, 2, nil)
		defer a.Close()
		a.Announce(here("desk"))
		b.Announce(here("laptop"))
		synctest.Wait()
		old := n.Recorded()
		b.Close()
		again := openEnd(t, n, true, 3, nil)
		defer again.Close()
		again.Announce(here("laptop"))
		synctest.Wait()
		ps := a.presences()
		if last := ps[len(ps)-1]; last.BootID != (BootID{3}) {
			t.Fatalf("the restart was not seen: %+v", last)
		}
		before := len(a.all())
		for range 3 { // everything of the first run, again
			for _, f := range old {
				n.Inject(f.Topic, f.Frame)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		for _, ev := range a.all()[before:] { // the other side may have answered to a replay
			if ev.Kind != PresenceEvent || ev.Presence.BootID != (BootID{3}) {
				t.Errorf("a replay made an event: %+v", ev)
			}
		}
		// A receiver that restarts does not believe them, either.
		fresh := openEnd(t, n, false, 4, nil)
		defer fresh.Close()
		for _, f := range old {
			n.Inject(f.Topic, f.Frame)
		}
		synctest.Wait()
		if got := fresh.presences(); len(got) != 0 {
			t.Errorf("a restarted side believes replays: %+v", got)
		}
	})
}

func TestGoodbyeNeedsTheReceiversRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openEnd(t, n, false, 1, nil), openEnd(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		a.Announce(here("desk"))
		b.Announce(here("laptop"))
		synctest.Wait()
		mark := len(n.Recorded())
		b.Goodbye(t.Context())
		synctest.Wait()
		ev := a.all()
		if last := ev[len(ev)-1]; last.Kind != GoodbyeEvent {
			t.Fatalf("no goodbye: %+v", last)
		}
		goodbye := n.Recorded()[mark]
		fresh := openEnd(t, n, false, 9, nil)
		defer fresh.Close()
		n.Inject(goodbye.Topic, goodbye.Frame)
		synctest.Wait()
		if got := fresh.all(); len(got) != 0 {
			t.Errorf("a goodbye of an earlier run was believed: %+v", got)
		}
	})
}

func TestCommitBodiesArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openEnd(t, n, false, 1, nil), openEnd(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		a.SendCommit([]byte("body"))
		synctest.Wait()
		if got := b.all(); len(got) != 1 || got[0].Kind != CommitEvent || string(got[0].Body) != "body" {
			t.Errorf("got %+v", got)
		}
		if got := a.all(); len(got) != 0 {
			t.Errorf("the sender heard itself: %+v", got)
		}
	})
}

// TestClocks meets across midnight, and with clocks that differ.
func TestClocks(t *testing.T) {
	for _, c := range []struct {
		name string
		off  time.Duration
		skew int64 // known from an earlier meeting
		meet bool
	}{
		{"the same clock", 0, 0, true},
		{"a day ahead", 24 * time.Hour, 0, true},
		{"a day behind", -24 * time.Hour, 0, true},
		{"two days ahead, not known", 49 * time.Hour, 0, true},
		{"two days behind, not known", -48 * time.Hour, 0, true},
		{"four days ahead, not known", 97 * time.Hour, 0, false},
		{"two days ahead, known", 49 * time.Hour, 2, true},
		{"in 2099, known", 26_000 * 24 * time.Hour, 26_000, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
				chain := testChain(time.Now())
				a := openEnd(t, n, false, 1, func(cfg *Config) { cfg.Chain, cfg.Skew = chain, c.skew })
				b := openEnd(t, n, true, 2, func(cfg *Config) {
					cfg.Chain, cfg.Skew = chain, -c.skew
					cfg.Now = func() time.Time { return time.Now().Add(c.off) }
				})
				defer a.Close()
				defer b.Close()
				a.Announce(here("desk"))
				b.Announce(here("laptop"))
				time.Sleep(time.Minute)
				synctest.Wait()
				met := len(a.presences()) > 0 && len(b.presences()) > 0
				if met != c.meet {
					t.Errorf("met: %v, want %v", met, c.meet)
				}
				if met { // also what is news later comes through
					for _, way := range []struct{ from, to *end }{{a, b}, {b, a}} {
						before := len(way.to.presences())
						way.from.Announce(here("later"))
						time.Sleep(time.Second)
						synctest.Wait()
						if len(way.to.presences()) == before {
							t.Error("later news are not heard")
						}
					}
				}
				if met && c.off != 0 {
					if day, ok := a.SafeDay(); !ok || day != min(wire.Day(time.Now()), wire.Day(time.Now().Add(c.off)))-1 {
						t.Errorf("safe day %d, %v", day, ok)
					}
				}
			})
		})
	}
}

func TestMidnight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openEnd(t, n, false, 1, nil), openEnd(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		for day := range 5 {
			a.Announce(here(fmt.Sprint("day ", day)))
			b.Announce(here("laptop"))
			synctest.Wait()
			ps := b.presences()
			if len(ps) == 0 || ps[len(ps)-1].Name != fmt.Sprint("day ", day) {
				t.Fatalf("day %d: not met: %+v", day, ps)
			}
			time.Sleep(24 * time.Hour)
			synctest.Wait()
		}
		topics := make(map[rendezvous.Topic]bool)
		for _, f := range n.Recorded() {
			topics[f.Topic] = true
		}
		if len(topics) < 8 {
			t.Errorf("only %d topics in five days: they must change daily", len(topics))
		}
	})
}

func TestGarbageAndReflectionChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openEnd(t, n, false, 1, nil), openEnd(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		a.Announce(here("desk"))
		b.Announce(here("laptop"))
		synctest.Wait()
		before := len(a.all()) + len(b.all())
		topics := make(map[rendezvous.Topic]bool)
		frames := n.Recorded()
		for _, f := range frames {
			topics[f.Topic] = true
		}
		for topic := range topics { // every frame on every topic, and junk
			for _, f := range frames {
				n.Inject(topic, f.Frame)
				junk := slices.Clone(f.Frame)
				junk[700] ^= 1
				n.Inject(topic, junk)
			}
		}
		synctest.Wait()
		if now := len(a.all()) + len(b.all()); now != before {
			t.Errorf("%d events came of it", now-before)
		}
	})
}

func TestOversizedPresenceIsCut(t *testing.T) {
	p := Presence{Name: strings.Repeat("n", 1000), Version: strings.Repeat("v", 1000)}
	for i := range 200 {
		p.Candidates = append(p.Candidates, Candidate{Kind: Host, Addr: netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}), 65535), Priority: uint32(i) | 1<<31})
	}
	f, err := message{typ: framePresence, boot: BootID{1}, counter: 1 << 60, echo: BootID{2}, seen: 1 << 60, want: true, pres: p}.encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.pres.Candidates) != MaxCandidates || m.pres.Candidates[0].Priority != 199|1<<31 {
		t.Errorf("%d candidates, first priority %d", len(m.pres.Candidates), m.pres.Candidates[0].Priority)
	}
}

func TestHostileCandidatesAreDropped(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "[ff02::1]:1", "[::]:1", "10.0.0.1:0"} {
		if usable(netip.MustParseAddrPort(addr)) {
			t.Errorf("%s would be probed", addr)
		}
	}
}

func TestCloseIsIdempotent(t *testing.T) {
	n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a := openEnd(t, n, false, 1, nil)
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	_ = a.Close()
	a.Announce(here("late")) // nothing blocks after Close
	a.SendCommit(nil)
	a.Wake()
	a.Goodbye(context.Background())
}

func FuzzDecode(f *testing.F) {
	for _, m := range []message{
		{typ: framePresence, boot: BootID{1}, counter: 1, want: true, pres: here("desk")},
		{typ: frameGoodbye, boot: BootID{1}, counter: 2, echo: BootID{2}},
		{typ: frameCommit, boot: BootID{1}, counter: 3, body: []byte("body")},
		{typ: frameNote, boot: BootID{1}, counter: 4, echo: BootID{9}, note: 1, body: []byte("note")},
		{typ: frameNote, boot: BootID{1}, counter: 5, echo: BootID{9}, ack: 1},
		{typ: frameQuestion, boot: BootID{1}, counter: 6, echo: BootID{9}, note: 1, body: []byte("?")},
		{typ: frameAnswer, boot: BootID{1}, counter: 7, echo: BootID{9}, note: 1, body: []byte("!")},
	} {
		fr, err := m.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(fr.Type, fr.Body)
	}
	f.Fuzz(func(t *testing.T, typ byte, body []byte) {
		m, err := decode(wire.Frame{Type: typ, Body: body})
		if err != nil {
			return
		}
		if _, err := m.encode(); err != nil {
			t.Fatalf("what was read cannot be sent: %v", err)
		}
		c := core{self: BootID{9}}
		question := c.ask(time.Unix(1_700_000_000, 0), []byte("ours"))
		sent := c.startNote(time.Unix(1_700_000_000, 0), []byte("ours"))
		if o := c.receive(time.Unix(1_700_000_000, 0), m); o.note != nil && (len(o.note.body) == 0 || len(o.note.body) > MaxNote) {
			t.Fatalf("a note of %d bytes", len(o.note.body))
		}
		if acked := c.notes.out != sent; acked && (m.typ != frameNote || m.ack == 0 || m.echo != c.self) {
			t.Fatalf("%+v acknowledged our note", m)
		}
		if answered := c.questions.out != question; answered && (m.typ != frameAnswer || m.note == 0 || len(question.answer) == 0 || m.echo != c.self) {
			t.Fatalf("%+v answered our question", m)
		}
	})
}
