package signaling

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// An askEnd is a side that answers after a while, and counts what it looked at.
type askEnd struct {
	*end
	looked []string
}

func openAsk(t *testing.T, n *rendezvoustest.Network, joiner bool, boot byte, after time.Duration, change func(*Config)) *askEnd {
	t.Helper()
	e := new(askEnd)
	e.end = openEnd(t, n, joiner, boot, func(cfg *Config) {
		cfg.TakeQuestion = func(a Asked) bool {
			e.mu.Lock()
			e.looked = append(e.looked, string(a.Body))
			e.mu.Unlock()
			time.AfterFunc(after, func() {
				if err := e.Answer(a, append([]byte("re: "), a.Body...)); err != nil {
					t.Error(err)
				}
			})
			return true
		}
		if change != nil {
			change(cfg)
		}
	})
	return e
}

func (e *askEnd) lookedAt() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.looked...)
}

func askWithin(t *testing.T, c *Channel, limit time.Duration, body string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	raw, err := c.Ask(ctx, []byte(body))
	return string(raw), err
}

// TestQuestionsAreAnswered asks both ways over media of all kinds, between sides that
// have not heard of each other: each question is looked at once, and gets its own answer.
func TestQuestionsAreAnswered(t *testing.T) {
	for name, faults := range map[string]rendezvoustest.Faults{
		"perfect": {},
		"bad":     {Loss: 0.3, Duplicate: 0.3, Reorder: 0.3, Corrupt: 0.1, Echo: 0.5, MaxDelay: 80 * time.Millisecond},
		"slow":    {MaxDelay: time.Second, Reorder: 0.5, Duplicate: 0.9},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := rendezvoustest.NewNetwork(3, faults)
				a, b := openAsk(t, n, false, 1, 0, nil), openAsk(t, n, true, 2, 700*time.Millisecond, nil)
				errs := make(chan error, 2)
				for i, from := range []*askEnd{a, b} {
					go func() {
						for k := range 20 {
							body := fmt.Sprintf("%d of %d", k, i)
							got, err := askWithin(t, from.Channel, time.Minute, body)
							if err == nil && got != "re: "+body {
								err = fmt.Errorf("%q was answered %q", body, got)
							}
							if err != nil {
								errs <- err
								return
							}
						}
						errs <- nil
					}()
				}
				for range 2 {
					if err := <-errs; err != nil {
						t.Error(err)
					}
				}
				time.Sleep(time.Minute) // what is late
				synctest.Wait()
				for i, e := range []*askEnd{b, a} {
					if got := e.lookedAt(); len(got) != 20 {
						t.Errorf("%d of 20 questions of %d were looked at: %q", len(got), i, got)
					}
				}
				a.Close()
				b.Close()
			})
		})
	}
}

// TestQuestionFindsTheOther has the first question of a run answered after two round
// trips, with no presence at all.
func TestQuestionFindsTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openAsk(t, n, false, 1, 0, nil), openAsk(t, n, true, 2, 0, nil)
		defer a.Close()
		defer b.Close()
		start := time.Now()
		if _, err := askWithin(t, a.Channel, time.Second, "who?"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v on a medium without delay", took)
		}
		if got := len(n.Recorded()); got != 4 {
			t.Errorf("%d frames, want 4: the question, who is there, the question, its answer", got)
		}
	})
}

// TestQuestionsOfOldRuns replays all that was ever sent, and restarts both sides.
func TestQuestionsOfOldRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openAsk(t, n, false, 1, 0, nil), openAsk(t, n, true, 2, 0, nil)
		replay := func() {
			for _, f := range n.Recorded() {
				n.Inject(f.Topic, f.Frame)
				time.Sleep(20 * time.Millisecond)
			}
			synctest.Wait()
		}
		ask := func(from, to *askEnd, body string, want int) {
			t.Helper()
			if _, err := askWithin(t, from.Channel, 5*time.Second, body); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			replay()
			if got := to.lookedAt(); len(got) != want {
				t.Errorf("after %s and a replay, %q were looked at, want %d", body, got, want)
			}
		}
		ask(a, b, "one", 1)
		b.Close()
		b = openAsk(t, n, true, 3, 0, nil)
		replay()
		if got := b.lookedAt(); len(got) != 0 {
			t.Errorf("the restarted side looked at %q of an earlier run", got)
		}
		ask(a, b, "to the new run", 1)
		a.Close()
		a = openAsk(t, n, false, 4, 0, nil)
		ask(a, b, "of a new run, with the first number again", 2)
		a.Close()
		b.Close()
	})
}

// TestQuestionLostAnswer loses the first answer: the question comes again, and the answer
// too, without another look.
func TestQuestionLostAnswer(t *testing.T) {
	c := &core{self: BootID{1}}
	now := time.Unix(1e9, 0)
	q := message{typ: frameQuestion, boot: BootID{2}, echo: BootID{1}, counter: 1, note: 1, body: []byte("x")}
	o := c.receive(now, q)
	if o.asked == nil {
		t.Fatal("not taken")
	}
	c.questionTaken(now, *o.asked)
	q.counter++
	if o := c.receive(now, q); o.asked != nil || o.again {
		t.Errorf("while it is looked at: %+v", o)
	}
	if !c.answerReady(*o.asked, []byte("y")) || c.answerReady(*o.asked, []byte("z")) {
		t.Error("the answer is not taken once")
	}
	q.counter++
	if o := c.receive(now.Add(time.Second), q); o.asked != nil || !o.again {
		t.Errorf("after the answer: %+v", o)
	}
	if m := c.answer(c.peer, 1); string(m.body) != "y" {
		t.Errorf("answered again with %q", m.body)
	}
}

// TestQuestionFlood has a peer of the right key ask as fast as it can, and start anew all
// the time: one question a second is taken, and few frames answer the rest.
func TestQuestionFlood(t *testing.T) {
	c := &core{self: BootID{1}}
	now := time.Unix(1e9, 0)
	const seconds, each = 10, 2000
	var taken, told, again int
	for i := range seconds * each {
		at := now.Add(time.Duration(i) * time.Second / each)
		n := uint64(i + 1)
		boot := BootID{2, byte(i >> 8)} // another run every now and then
		for _, m := range []message{
			{typ: frameQuestion, boot: boot, echo: BootID{1}, counter: 2 * n, note: n, body: []byte("x")},
			{typ: frameQuestion, boot: boot, echo: BootID{1}, counter: 2*n + 1, note: c.questions.taken, body: []byte("x")},
			{typ: frameQuestion, boot: BootID{3, byte(i)}, echo: BootID{9}, counter: n, note: n, body: []byte("x")},
		} {
			o := c.receive(at, m)
			if o.asked != nil {
				taken++
				c.questionTaken(at, *o.asked)
				c.answerReady(*o.asked, []byte("y"))
			}
			if o.again {
				again++
				c.questions.said = at
			}
			if o.tell != (BootID{}) {
				told++
			}
		}
	}
	if taken < seconds-1 || taken > seconds+1 {
		t.Errorf("%d questions taken in %d seconds", taken, seconds)
	}
	if most := seconds * 10; again > most || told > most {
		t.Errorf("%d answers again and %d who-runs-here in %d seconds, want at most %d", again, told, seconds, most)
	}
}

// readBefore is decode as it was before there were questions: for what a device of that
// version understands.
func readBefore(f wire.Frame) (message, error) {
	if f.Type < framePresence || f.Type > frameNote {
		return message{}, ErrMessage
	}
	return decode(f)
}

// TestQuestionToAnOldVersion holds that a device of before takes neither type for
// anything, and that its presence, which this version reads, says so.
func TestQuestionToAnOldVersion(t *testing.T) {
	c := &core{self: BootID{1}}
	c.ask(time.Unix(1e9, 0), []byte("x"))
	for _, m := range []message{c.question(), c.answer(BootID{2}, 0)} {
		f, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readBefore(f); !errors.Is(err, ErrMessage) {
			t.Errorf("type %#x: %v", m.typ, err)
		}
		if _, err := decode(f); err != nil {
			t.Errorf("type %#x: %v", m.typ, err)
		}
	}
	old := message{typ: framePresence, boot: BootID{2}, counter: 1, pres: Presence{Version: "0.1"}}
	now := old
	now.pres.Capabilities = Answers
	for _, m := range []message{old, now} {
		f, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := readBefore(f)
		if err != nil || got.pres.Capabilities != m.pres.Capabilities {
			t.Errorf("%+v, %v", got.pres, err)
		}
	}
	synctest.Test(t, func(t *testing.T) { // a side without TakeQuestion is as silent
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a := openEnd(t, n, false, 1, nil)
		b := openEnd(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		if got, err := askWithin(t, a.Channel, 10*time.Second, "anyone?"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q, %v", got, err)
		}
		for _, f := range n.Recorded() {
			if f.Topic == testChainToday(t).Topic(b.role) {
				t.Error("it answered")
			}
		}
	})
}

// TestPresenceAfterQuestion: a medium that keeps the newest message keeps where this
// device is, not what it asked.
func TestPresenceAfterQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a := openEnd(t, n, false, 1, nil)
		defer a.Close()
		a.Announce(here("desk"))
		synctest.Wait()
		if _, err := askWithin(t, a.Channel, 3*time.Second, "anyone?"); err == nil {
			t.Fatal("nobody is there")
		}
		synctest.Wait()
		all := n.Recorded()
		sealer := a.outboundSealer(t)
		f, err := sealer.Open(all[len(all)-1].Frame)
		if err != nil || f.Type != framePresence {
			t.Errorf("the last message is of type %#x, %v", f.Type, err)
		}
	})
}

func (e *end) outboundSealer(t *testing.T) *wire.Sealer {
	t.Helper()
	key := testChainToday(t).FrameKey(e.role)
	s, err := wire.NewSealer(key[:])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func addrs(n int) (out []netip.AddrPort) {
	for i := range n {
		a := netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))
		out = append(out, netip.AddrPortFrom(a, 4000))
	}
	return out
}

func TestQuestionBody(t *testing.T) {
	for _, q := range []Question{{}, {DialBack: addrs(1)[0], Secret: [16]byte{1}, Pin: [32]byte{2}}} {
		raw, err := q.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ReadQuestion(raw); err != nil || got != q {
			t.Errorf("%+v became %+v, %v", q, got, err)
		}
	}
	for _, a := range []string{"0.0.0.0:1", "224.0.0.1:9", "255.255.255.255:9", "[ff02::1]:9", "10.0.0.1:0"} {
		raw, err := Question{DialBack: netip.MustParseAddrPort(a)}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if q, err := ReadQuestion(raw); err == nil {
			t.Errorf("would dial %v", q.DialBack)
		}
	}
}

func TestReplyBody(t *testing.T) {
	whole := Reply{
		Version: "0.2", Clock: time.UnixMilli(1e12), Causes: []string{"device.vpn/captures"}, DialBack: "ok",
		Tried: []Tried{{Kind: Reflexive, Addr: addrs(1)[0], Sent: 9, Answered: 2, Received: 1 << 30, Size: 1432}}, From: addrs(2),
	}
	raw, err := whole.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadReply(raw)
	if err != nil || !got.Clock.Equal(whole.Clock) {
		t.Fatal(got, err)
	}
	got.Clock = whole.Clock
	if !reflect.DeepEqual(got, whole) {
		t.Errorf("%+v became %+v", whole, got)
	}

	much := Reply{Version: strings.Repeat("v", 500), DialBack: "no\x1b[31m" + strings.Repeat("d", 500), Clock: time.Unix(1<<60, 0)}
	for i := range 100 {
		much.Causes = append(much.Causes, fmt.Sprintf("device.cause/%d%s", i, strings.Repeat("x", 20)), "My Laptop \x1b")
		much.Tried = append(much.Tried, Tried{Kind: Host, Addr: addrs(100)[i], Sent: 1 << 31, Answered: 1 << 31, Received: 1 << 31, Size: 65535})
	}
	much.From = addrs(100)
	if raw, err = much.Encode(); err != nil || len(raw) > MaxQuestion || len(raw) < MaxQuestion/2 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	if got, err = ReadReply(raw); err != nil || len(got.Causes) != maxCauses || len(got.Tried) == 0 || len(got.From) < 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if strings.ContainsRune(got.DialBack, '\x1b') {
		t.Errorf("not clean: %q", got.DialBack)
	}
	bad, err := encodeBody(replyWire{Causes: []string{"Anna's phone"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadReply(bad); err == nil {
		t.Errorf("took %q for a cause", got.Causes)
	}
}

func FuzzReply(f *testing.F) {
	raw, err := Reply{Version: "0.2", Causes: []string{"nat.udp/blocked"}, From: addrs(1), Tried: []Tried{{Kind: Host, Addr: addrs(1)[0]}}}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	q, err := Question{DialBack: addrs(1)[0]}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(q)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := ReadReply(raw); err == nil {
			again, err := r.Encode()
			if err != nil || len(again) > MaxQuestion {
				t.Fatalf("%+v: %d bytes, %v", r, len(again), err)
			}
			if _, err := ReadReply(again); err != nil {
				t.Fatalf("%+v is not read: %v", r, err)
			}
			for _, c := range r.Causes {
				if bytes.ContainsAny([]byte(c), " \x1b\n\"'") {
					t.Fatalf("cause %q", c)
				}
			}
		}
		if q, err := ReadQuestion(raw); err == nil && q.DialBack.IsValid() && !usable(q.DialBack) {
			t.Fatalf("would dial %v", q.DialBack)
		}
	})
}

func testChainToday(t *testing.T) pairing.Chain {
	t.Helper()
	c, err := testChain(time.Now()).At(wire.Day(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
