package pairing

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/wire"
)

// until carries frames between two sides until one of a type is on its way, and
// returns it undelivered.
func until(t *testing.T, o, j *side, typ byte) arrival {
	t.Helper()
	for range 20 {
		for _, s := range []*side{o, j} {
			for _, f := range s.out {
				if fr, err := s.m.sealers[0].Open(f.frame); err == nil && fr.Type == typ {
					return f
				}
			}
		}
		a, b := o.out, j.out
		o.out, j.out = nil, nil
		for _, f := range a {
			j.m.Receive(t0, f.topic, f.frame)
			j.drain(t0)
		}
		for _, f := range b {
			o.m.Receive(t0, f.topic, f.frame)
			o.drain(t0)
		}
	}
	t.Fatalf("no frame of type %#x", typ)
	return arrival{}
}

func TestReflectedMessagesAreDropped(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	for _, f := range j.out { // the joiner's own m1
		j.m.Receive(t0, 0, f.frame)
	}
	m3 := until(t, o, j, frameM3)
	j.m.Receive(t0, 0, m3.frame)
	m4 := until(t, o, j, frameM4)
	o.m.Receive(t0, 0, m4.frame)
	exchange(o, j, t0)
	if err := o.m.Accept(t0, o.events[len(o.events)-1].Check); err != nil {
		t.Fatal(err)
	}
	o.drain(t0)
	m5 := until(t, o, j, frameCommit)
	o.m.Receive(t0, 0, m5.frame) // its own PREPARED
	o.drain(t0)
	if o.disk.State != Prepared {
		t.Fatalf("a reflected PREPARED made the pair %v", o.disk.State)
	}
}

func TestMessagesOfAnotherSessionAreDropped(t *testing.T) {
	oc, jc := configs(t)
	o1, j1 := newSide(t, oc), newSide(t, jc)
	m3 := until(t, o1, j1, frameM3)
	o2, j2 := newSide(t, oc), newSide(t, jc)
	until(t, o2, j2, frameM3)
	fr, err := o2.m.sealers[0].Open(m3.frame)
	if err != nil {
		t.Fatal(err)
	}
	// The m3 of the first session, in the second session's name.
	bad, err := o2.m.sealers[0].Seal(rand.Reader, wire.Frame{Type: frameM3, SID: j2.m.sid, Body: fr.Body})
	if err != nil {
		t.Fatal(err)
	}
	o2.m.Receive(t0, 0, bad)
	o2.drain(t0)
	if _, ok := o2.event(EventCheck); ok {
		t.Error("an m3 of another session was accepted")
	}
	exchange(o2, j2, t0)
	accept(t, o2, j2, t0)
	exchange(o2, j2, t0)
	wantPaired(t, o2, j2)
}

func TestCommitBodyOfAnotherPairIsDropped(t *testing.T) {
	var kJ, kO [32]byte
	kJ[0], kO[0] = 1, 2
	mine, err := NewCommit(Prepared, [16]byte{1}, Joiner, kJ, kO, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewCommit(Prepared, [16]byte{2}, Offerer, kJ, kO, rand.Reader) // even with the same keys
	if err != nil {
		t.Fatal(err)
	}
	other.Tick(t0)
	a, ok := other.Poll()
	if !ok || a.Kind != CommitSend {
		t.Fatal("nothing was sent")
	}
	mine.Receive(t0, a.Body)
	if a, ok := mine.Poll(); ok {
		t.Errorf("a body of another pair led to %+v", a)
	}
}

func TestForgedRejectIsDropped(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	until(t, o, j, frameM3)
	body, err := wire.SealMessage(make([]byte, 32), j.m.secrets.h, []byte{byte(Refused)}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{body, nil, make([]byte, 60)} {
		f, err := j.m.sealers[0].Seal(rand.Reader, wire.Frame{Type: frameReject, SID: j.m.sid, Body: b})
		if err != nil {
			t.Fatal(err)
		}
		j.m.Receive(t0, 0, f)
		o.m.Receive(t0, 0, f)
	}
	exchange(o, j, t0)
	accept(t, o, j, t0)
	exchange(o, j, t0)
	wantPaired(t, o, j)
}

func TestCopiesAndReverseOrder(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	storm := func() {
		for len(o.out)+len(j.out) > 0 {
			a, b := o.out, j.out
			o.out, j.out = nil, nil
			for range 5 { // every frame five times, the last first
				for i := len(a) - 1; i >= 0; i-- {
					j.m.Receive(t0, 0, a[i].frame)
				}
				for i := len(b) - 1; i >= 0; i-- {
					o.m.Receive(t0, 0, b[i].frame)
				}
			}
			o.drain(t0)
			j.drain(t0)
		}
	}
	storm()
	accept(t, o, j, t0)
	storm()
	wantPaired(t, o, j)
}

func TestSixteenHandshakesAtMost(t *testing.T) {
	oc, jc := configs(t)
	o := newSide(t, oc)
	hello := func(now time.Time) bool {
		j := newSide(t, jc)
		for _, f := range j.out {
			o.m.Receive(now, 0, f.frame)
		}
		o.out = nil
		o.drain(now)
		return len(o.out) > 0
	}
	for i := range maxSessions {
		if !hello(t0) {
			t.Fatalf("handshake %d was refused", i)
		}
	}
	if hello(t0) {
		t.Error("more than sixteen handshakes at once")
	}
	if !hello(t0.Add(sessionIdle)) {
		t.Error("an idle handshake does not make room")
	}
	if len(o.m.offerer.sessions) > maxSessions {
		t.Error("the limit is not held")
	}
}

func TestNumberOfTheWrongDay(t *testing.T) {
	c, err := code.New(code.MethodNumber, code.Options{Now: t0, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	offer, err := c.OfferKeys(t0)
	if err != nil {
		t.Fatal(err)
	}
	for _, days := range []int{-2, -1, 0, 1, 2} {
		oc, jc := configs(t)
		oc.Method, oc.Keys = code.MethodNumber, offer
		keys, err := c.Keys(t0.AddDate(0, 0, days))
		if err != nil {
			t.Fatal(err)
		}
		jc.Method, jc.Keys = code.MethodNumber, []code.Keys{keys}
		o, j := newSide(t, oc), newSide(t, jc)
		met := false
		for _, f := range j.out { // the medium brings it where the topic is the same
			for i, k := range offer {
				if k.Topic == keys.Topic {
					met = true
					o.m.Receive(t0, i, f.frame)
					o.drain(t0)
				}
			}
		}
		if want := days >= -1 && days <= 1; met != want || (len(o.out) > 0) != want {
			t.Errorf("%d days off: met %v, answered %v, want %v", days, met, len(o.out) > 0, want)
		}
	}
}

func TestMethodsAreBound(t *testing.T) {
	oc, jc := configs(t)
	oc.Method = code.MethodNumber // as if a number's topic were fed a words joiner
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	if _, ok := j.event(EventContact); ok {
		t.Error("an offer of a number answered a joiner with words")
	}
}

func TestHostileNames(t *testing.T) {
	for in, want := range map[string]string{
		"laptop":                         "laptop",
		"\x1b[2Jlaptop":                  "[2Jlaptop",
		"lap\u202etop":                   "laptop",
		"a\nb":                           "a b",
		strings.Repeat("x", 100):         strings.Repeat("x", 64),
		"\u0000\u200b":                   "",
		"  much   space ":                "much space",
		string([]byte{0xff, 'a', 0xfe}):  "a",
		"Küche 🍳":                        "Küche 🍳",
		strings.Repeat("é", 33):          strings.Repeat("é", 32),
		strings.Repeat("\U0001F469", 17): strings.Repeat("\U0001F469", 16),
	} {
		if got := CleanName(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	oc, jc := configs(t)
	jc.Info.Name = "\x1b]0;owned\a"
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	if ev, _ := o.event(EventCheck); strings.ContainsAny(ev.PeerInfo.Name, "\x1b\a") {
		t.Errorf("the name came through: %q", ev.PeerInfo.Name)
	}
}

func TestInfoBounds(t *testing.T) {
	good := Info{Name: "x", OS: "linux", Day: 20000}
	raw, err := good.encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeInfo(raw); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]Info{
		"a day before 1970": {Name: "x", Day: -1}, "a day too far": {Name: "x", Day: maxDay + 1},
		"a long system": {Name: "x", OS: strings.Repeat("o", 17)}, "a long version": {Name: "x", Version: strings.Repeat("v", 33)},
	} {
		if _, err := bad.encode(); err == nil {
			t.Errorf("%s was encoded", name)
		}
	}
	for i := range raw { // cut anywhere
		if _, err := decodeInfo(raw[:i]); err == nil {
			t.Errorf("info cut to %d bytes was read", i)
		}
	}
}

func TestChain(t *testing.T) {
	c := Chain{Key: [32]byte{1}, Day: 100}
	next, err := c.At(103)
	if err != nil {
		t.Fatal(err)
	}
	step, err := c.At(101)
	if err != nil {
		t.Fatal(err)
	}
	if step, err = step.At(103); err != nil || step.Key != next.Key || next.Key == c.Key {
		t.Error("the chain depends on the steps")
	}
	for _, day := range []int64{99, -1, 100 + maxAhead + 1} {
		if _, err := c.At(day); err == nil {
			t.Errorf("keys for day %d", day)
		}
	}
	if c.Topic(Joiner) == c.Topic(Offerer) || c.FrameKey(Joiner) == c.FrameKey(Offerer) || c.ProbeKey(Joiner) == c.ProbeKey(Offerer) {
		t.Error("both directions have one key")
	}
	seen := map[[32]byte]bool{c.Key: true, next.Key: true, c.FrameKey(Joiner): true, c.ProbeKey(Joiner): true}
	for _, on := range []Chain{c, next} {
		for _, from := range []Role{Joiner, Offerer} {
			token, seal := on.MailKeys(from)
			if seen[token] || seen[seal] || token == seal {
				t.Error("two keys of letters are the same")
			}
			seen[token], seen[seal] = true, true
		}
	}
}

// TestMailVectors freezes the keys of letters of the chain 00 01 … 1f.
func TestMailVectors(t *testing.T) {
	var c Chain
	for i := range c.Key {
		c.Key[i] = byte(i)
	}
	token, seal := c.MailKeys(Joiner)
	const want = "8567c3d90c709c40feb55eefbf503ea11e92cf3c808980f42b2371e6415ad182" +
		" 98b25aed5d1c4973730ff23802144dcbd24ed5efc4980446c5ff18db6f42234a" // computed by another program
	if got := hex.EncodeToString(token[:]) + " " + hex.EncodeToString(seal[:]); got != want {
		t.Errorf("got %s", got)
	}
}

// TestHandshakesAreCounted begins handshake after handshake with the code, as somebody
// between the two devices would until a check number fits: one code serves for few.
func TestHandshakesAreCounted(t *testing.T) {
	offerer, joiner := configs(t)
	o := newSide(t, offerer)
	now := t0
	for n := range maxBegun + 1 {
		if _, ended := o.event(EventFailed); ended {
			t.Fatalf("it ended after %d", n)
		}
		j := newSide(t, joiner) // whose first frame is an m1
		o.out = nil
		o.m.Receive(now, 0, j.out[0].frame)
		o.drain(now)
		if answered := len(o.out) > 0; answered != (n < maxBegun) {
			t.Fatalf("handshake %d: answered %v", n, answered)
		}
		now = now.Add(sessionIdle) // or there is no room for so many at once
	}
	if ev, _ := o.event(EventFailed); ev.Reason != TooOften {
		t.Errorf("%+v", o.events)
	}
}
