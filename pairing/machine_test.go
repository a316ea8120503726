package pairing

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
)

var t0 = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func testIdentity(t testing.TB, name string) *identity.Identity {
	t.Helper()
	id, err := identity.FromSeeds(sha256.Sum256([]byte("sign "+name)), sha256.Sum256([]byte("wg "+name)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// side is one machine with the driver's part done in memory.
type side struct {
	t      testing.TB
	m      *Machine
	out    []arrival
	events []Event
	disk   *Record
	fail   error // what the disk says
}

type arrival struct {
	topic int
	frame []byte
}

func (s *side) drain(now time.Time) {
	for {
		a, ok := s.m.Poll()
		if !ok {
			return
		}
		switch a.Kind {
		case ActionSend:
			s.out = append(s.out, arrival{a.Topic, a.Frame})
		case ActionEvent:
			s.events = append(s.events, a.Event)
		case ActionStore:
			if s.fail == nil {
				r := a.Record
				s.disk = &r
			}
			s.m.Stored(now, a.Record.State, s.fail)
		}
	}
}

func (s *side) event(k EventKind) (Event, bool) {
	for _, e := range s.events {
		if e.Kind == k {
			return e, true
		}
	}
	return Event{}, false
}

func newSide(t testing.TB, cfg Config) *side {
	t.Helper()
	m, err := New(cfg, t0)
	if err != nil {
		t.Fatal(err)
	}
	s := &side{t: t, m: m}
	s.drain(t0)
	return s
}

func testKeys(t testing.TB, seed string) code.Keys {
	t.Helper()
	sum := sha256.Sum256([]byte(seed))
	c, err := code.New(code.MethodWords, code.Options{Rand: bytes.NewReader(sum[:]), Now: t0})
	if err != nil {
		t.Fatal(err)
	}
	k, err := c.Keys(t0)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func configs(t testing.TB) (offerer, joiner Config) {
	keys := []code.Keys{testKeys(t, "code")}
	offerer = Config{Role: Offerer, Identity: testIdentity(t, "desk"), Keys: keys, Method: code.MethodWords, Info: Info{Name: "desk", OS: "linux", Day: 20778}}
	joiner = Config{Role: Joiner, Identity: testIdentity(t, "phone"), Keys: keys, Method: code.MethodWords, Info: Info{Name: "phone", OS: "android", Day: 20778}}
	return offerer, joiner
}

// exchange carries frames between two sides until neither has any.
func exchange(a, b *side, now time.Time) {
	for len(a.out)+len(b.out) > 0 {
		fromA, fromB := a.out, b.out
		a.out, b.out = nil, nil
		for _, f := range fromA {
			b.m.Receive(now, f.topic, f.frame)
			b.drain(now)
		}
		for _, f := range fromB {
			a.m.Receive(now, f.topic, f.frame)
			a.drain(now)
		}
	}
}

func accept(t testing.TB, o, j *side, now time.Time) {
	t.Helper()
	shown, ok := j.event(EventCheck)
	if !ok {
		t.Fatal("the joiner shows no check number")
	}
	if shown.NeedsCheck {
		if err := j.m.Accept(now, ""); err != nil {
			t.Fatal(err)
		}
	}
	j.drain(now)
	if asked, ok := o.event(EventCheck); !ok || asked.NeedsCheck {
		if err := o.m.Accept(now, shown.Check); err != nil {
			t.Fatal(err)
		}
	}
	o.drain(now)
}

func wantPaired(t testing.TB, o, j *side) {
	t.Helper()
	for _, s := range []*side{o, j} {
		if s.disk == nil || s.disk.State != Active {
			t.Fatalf("not active: %v %+v", s.disk, s.events)
		}
		if _, ok := s.event(EventPaired); !ok {
			t.Fatal("no EventPaired")
		}
	}
	if o.disk.PairID != j.disk.PairID || o.disk.Chain.Key != j.disk.Chain.Key || o.disk.CommitJ != j.disk.CommitJ {
		t.Fatal("both sides are active with different keys")
	}
	if o.disk.Peer != j.m.cfg.Identity.ID() || j.disk.Peer != o.m.cfg.Identity.ID() {
		t.Fatal("a side has recorded another device")
	}
}

func TestPairsByWords(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	if o.disk != nil || j.disk != nil {
		t.Fatal("something was stored before anybody said yes")
	}
	accept(t, o, j, t0)
	exchange(o, j, t0)
	wantPaired(t, o, j)
	if !o.disk.CheckVerified {
		t.Error("the offerer compared the check number; the record should say so")
	}
	if _, ok := o.event(EventSettled); !ok {
		t.Error("the offerer does not know that the joiner is paired, too")
	}
	if o.disk.PeerInfo.Name != "phone" || j.disk.PeerInfo.Name != "desk" {
		t.Error("names did not arrive")
	}
}

func TestPairsByQRWithoutAsking(t *testing.T) {
	oc, jc := configs(t)
	oc.Method, jc.Method = code.MethodWords, code.MethodQR
	oc.AutoAccept = true
	commit := oc.Identity.ID().Commitment()
	jc.Commit = &commit
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	wantPaired(t, o, j)
	if !j.disk.CheckVerified {
		t.Error("the QR code pinned the offerer's key; the record should say so")
	}
}

func TestQRCommitmentOfAnotherDevice(t *testing.T) {
	oc, jc := configs(t)
	jc.Method = code.MethodQR
	commit := testIdentity(t, "somebody else").ID().Commitment()
	jc.Commit = &commit
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	if ev, ok := j.event(EventFailed); !ok || ev.Reason != WrongDevice {
		t.Fatalf("joiner: %+v, want WrongDevice", j.events)
	}
	if ev, ok := o.event(EventFailed); !ok || ev.Reason != Refused {
		t.Fatalf("offerer: %+v, want Refused", o.events)
	}
	if o.disk != nil || j.disk != nil {
		t.Fatal("something was stored")
	}
}

func TestNumberNeedsTheCheck(t *testing.T) {
	oc, _ := configs(t)
	oc.Method, oc.AutoAccept = code.MethodNumber, true
	if _, err := New(oc, t0); err == nil {
		t.Fatal("AutoAccept with a number was accepted")
	}
}

func TestWrongCheckThreeTimes(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	for range maxWrongChecks {
		if err := o.m.Accept(t0, "no digits"); !errors.Is(err, ErrCheck) {
			t.Fatalf("got %v, want ErrCheck", err)
		}
	}
	o.drain(t0)
	exchange(o, j, t0)
	if ev, _ := o.event(EventFailed); ev.Reason != WrongCheck {
		t.Errorf("offerer: %+v", o.events)
	}
	if ev, _ := j.event(EventFailed); ev.Reason != Refused {
		t.Errorf("joiner: %+v", j.events)
	}
}

func TestSecondDeviceIsRefusedAndReported(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	jc.Identity = testIdentity(t, "thief")
	thief := newSide(t, jc)
	exchange(o, thief, t0)
	if ev, _ := thief.event(EventFailed); ev.Reason != CodeUsed {
		t.Errorf("second device: %+v, want CodeUsed", thief.events)
	}
	if _, ok := o.event(EventSecondDevice); !ok {
		t.Error("the offerer's user was not warned")
	}
	accept(t, o, j, t0)
	exchange(o, j, t0)
	wantPaired(t, o, j)
}

func TestJoinerRestart(t *testing.T) {
	oc, jc := configs(t)
	o, first := newSide(t, oc), newSide(t, jc)
	exchange(o, first, t0)
	again := newSide(t, jc)
	o.events = nil
	exchange(o, again, t0)
	accept(t, o, again, t0)
	exchange(o, again, t0)
	wantPaired(t, o, again)
}

func TestSelfPairing(t *testing.T) {
	oc, jc := configs(t)
	jc.Identity = oc.Identity
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	if o.disk != nil || j.disk != nil {
		t.Fatal("a device paired with itself")
	}
}

// TestVerdicts holds that a medium which brings back our own frames, or junk, is
// told from one that brings another device's.
func TestVerdicts(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	own := j.out[0]
	if got := j.m.Receive(t0, own.topic, own.frame); got != Echo {
		t.Errorf("its own frame: %v, want Echo", got)
	}
	for _, again := range []string{"a frame", "its copy"} {
		if got := o.m.Receive(t0, own.topic, own.frame); got != Heard {
			t.Errorf("%s of the other: %v, want Heard", again, got)
		}
	}
	bad := bytes.Clone(own.frame)
	bad[len(bad)-1] ^= 1
	if got := o.m.Receive(t0, own.topic, bad); got != Junk {
		t.Errorf("a broken frame: %v, want Junk", got)
	}
}

func TestExpiry(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	late := t0.Add(11 * time.Minute)
	o.m.Tick(late)
	j.m.Tick(late)
	o.drain(late)
	j.drain(late)
	if ev, _ := o.event(EventFailed); ev.Reason != Expired {
		t.Errorf("offerer: %+v, want Expired", o.events)
	}
	if ev, _ := j.event(EventFailed); ev.Reason != NobodyThere {
		t.Errorf("joiner: %+v, want NobodyThere", j.events)
	}
	// A late m3 changes nothing.
	oc, jc = configs(t)
	o, j = newSide(t, oc), newSide(t, jc)
	for _, f := range j.out {
		o.m.Receive(t0, f.topic, f.frame)
		o.drain(t0)
	}
	for _, f := range o.out {
		j.m.Receive(t0, f.topic, f.frame)
	}
	j.out = nil
	j.drain(t0)
	o.out = nil
	for _, f := range j.out {
		o.m.Receive(late, f.topic, f.frame)
		o.drain(late)
	}
	if len(o.out) != 0 || o.disk != nil {
		t.Error("an m3 after expiry was answered")
	}
}

func TestJoinerGivesUpWhenNobodyAnswers(t *testing.T) {
	_, jc := configs(t)
	jc.Patience = time.Minute
	j := newSide(t, jc)
	now := t0
	for now.Before(t0.Add(2*time.Minute)) && !j.m.Next().IsZero() {
		now = j.m.Next()
		j.m.Tick(now)
		j.drain(now)
		if ev, ok := j.event(EventFailed); ok {
			if ev.Reason != NobodyThere || !now.Equal(t0.Add(time.Minute)) {
				t.Fatalf("failed after %v with %v", now.Sub(t0), ev.Reason)
			}
			return
		}
	}
	t.Fatal("the joiner still looks")
}

func TestStoreFailureClaimsNothing(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	o.fail = ErrConfig // any error
	accept(t, o, j, t0)
	exchange(o, j, t0)
	if ev, _ := o.event(EventFailed); ev.Reason != StoreFailed {
		t.Errorf("offerer: %+v, want StoreFailed", o.events)
	}
	if _, ok := j.event(EventPaired); ok {
		t.Error("the joiner says paired, the offerer has nothing")
	}
}

func TestHundredThousandGarbageFrames(t *testing.T) {
	oc, jc := configs(t)
	o, j := newSide(t, oc), newSide(t, jc)
	junk := make([]byte, 1340)
	for i := range 100_000 {
		junk[0], junk[1], junk[2] = byte(i), byte(i>>8), byte(i>>16)
		o.m.Receive(t0, 0, junk)
	}
	o.drain(t0)
	exchange(o, j, t0)
	accept(t, o, j, t0)
	exchange(o, j, t0)
	wantPaired(t, o, j)
}

// TestFlippedBytes flips bytes of every message under the right frame key: each
// must be dropped, and the pairing must still succeed with the true message.
func TestFlippedBytes(t *testing.T) {
	for typ := byte(frameM1); typ <= frameM4; typ++ {
		for i := 0; i < 1300; i += 37 {
			oc, jc := configs(t)
			o, j := newSide(t, oc), newSide(t, jc)
			hit := false
			flip := func(to *side, f arrival) {
				fr, err := to.m.sealers[0].Open(f.frame)
				if err == nil && fr.Type == typ && i < len(fr.Body) && !hit {
					hit = true
					fr.Body = bytes.Clone(fr.Body)
					fr.Body[i] ^= 1
					bad, err := to.m.sealers[0].Seal(to.m.cfg.Rand, fr)
					if err != nil {
						t.Fatal(err)
					}
					to.m.Receive(t0, 0, bad)
					to.drain(t0)
					if to.disk != nil {
						t.Fatalf("m%d byte %d flipped: stored", typ, i)
					}
				}
				to.m.Receive(t0, 0, f.frame)
				to.drain(t0)
			}
			for len(o.out)+len(j.out) > 0 {
				a, b := o.out, j.out
				o.out, j.out = nil, nil
				for _, f := range a {
					flip(j, f)
				}
				for _, f := range b {
					flip(o, f)
				}
			}
			if !hit {
				continue
			}
			accept(t, o, j, t0)
			exchange(o, j, t0)
			wantPaired(t, o, j)
		}
	}
}
