package kin

import (
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
)

// family is a person's laptop and phone, which have marked each other, and a stranger's
// tablet that is paired with the laptop, too.
func family(t testing.TB) (laptop, phone, tablet *device) {
	laptop, phone, tablet = newDevice(t, "laptop"), newDevice(t, "phone"), newDevice(t, "tablet")
	knows(laptop, phone)
	knows(laptop, tablet)
	laptop.mark(phone, own)
	phone.mark(laptop, own)
	return laptop, phone, tablet
}

var somebody = identity.DeviceID{9, 9, 9}

// pairs notes a new pair of a device with somebody.
func (d *device) pairs(pair byte, at time.Time) {
	d.t.Helper()
	if err := d.book.Made([16]byte{pair}, Notice{Peer: somebody, Name: "somebody", OS: "linux", Method: "words", Paired: at}); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) heard(now time.Time) []Heard {
	_, _, heard := d.book.Recent(now)
	return heard
}

// TestNotices holds that a new pair reaches every own device, also one that comes online
// within 24 hours, and nobody else.
func TestNotices(t *testing.T) {
	laptop, phone, tablet := family(t)
	laptop.pairs(1, t0)
	laptop.pairs(1, t0) // the same
	carry(t0, laptop, tablet)
	later := t0.Add(23 * time.Hour)
	laptop.reopen()
	carry(later, laptop, phone)
	carry(later, laptop, phone)
	if got := phone.heard(later); len(got) != 1 || got[0].From != laptop.Self() || got[0].Notice.Name != "somebody" || !got[0].Notice.Paired.Equal(t0) {
		t.Fatalf("phone heard %+v", got)
	}
	if len(phone.events) != 1 || phone.events[0].Kind != EventNotice {
		t.Errorf("events %+v", phone.events)
	}
	if len(tablet.heard(later)) > 0 || len(tablet.events) > 0 {
		t.Error("a device that is not an own one was told")
	}
	if n := len(phone.heard(t0.Add(NoticeLife + time.Second))); n > 0 {
		t.Errorf("%d are news after a day", n)
	}
	// One that comes later than a day is not told.
	watch := newDevice(t, "watch")
	knows(laptop, watch)
	laptop.mark(watch, own)
	watch.mark(laptop, own)
	carry(t0.Add(NoticeLife), laptop, watch)
	if len(watch.heard(t0.Add(NoticeLife))) > 0 {
		t.Error("told of what is not new")
	}
	for _, d := range []*device{laptop, phone} {
		end := t0.Add(4 * 24 * time.Hour)
		tick(end, d)
		if len(d.book.s.made)+len(d.book.s.heard) > 0 {
			t.Errorf("%s keeps it for ever", d.name)
		}
	}
}

// TestNoticesAreDenied holds that a notice counts only from a device that is marked here,
// and comes again when it is marked later.
func TestNoticesAreDenied(t *testing.T) {
	laptop, phone, _ := family(t)
	phone.mark(laptop, func(p *Peer) { p.Own = false })
	laptop.pairs(1, t0)
	carry(t0, laptop, phone)
	if phone.saves > 0 || len(phone.events) > 0 {
		t.Fatal("taken from a device that is not marked")
	}
	phone.mark(laptop, own)
	carry(t0, laptop, phone)
	if len(phone.heard(t0)) != 1 {
		t.Error("not told again")
	}
	phone.mark(laptop, func(p *Peer) { p.Own = false })
	if len(phone.heard(t0)) > 0 {
		t.Error("shown although the device is no longer marked")
	}
}

// TestUndo holds that an own device undoes a pair of another one, also when that is away,
// for 24 hours, and that the list says how far it is.
func TestUndo(t *testing.T) {
	laptop, phone, _ := family(t)
	laptop.pairs(1, t0)
	carry(t0, laptop, phone)
	id := phone.heard(t0)[0].Notice.ID
	h, err := phone.book.AskUndo(t0, laptop.Self(), id)
	if err != nil || h.Undo != UndoAsked {
		t.Fatalf("%+v, %v", h, err)
	}
	phone.reopen()
	later := t0.Add(20 * time.Hour)
	tick(later, phone)
	carry(later, laptop, phone)
	if h := phone.heard(later)[0]; h.Undo != UndoDone || !h.Notice.Ended {
		t.Errorf("phone: %+v", h)
	}
	own, _, _ := laptop.book.Recent(later)
	if !own[0].Ended {
		t.Error("the pair goes on")
	}
	if _, err := phone.book.AskUndo(later, laptop.Self(), id); !errors.Is(err, ErrOver) {
		t.Errorf("again: %v", err)
	}
	if _, err := phone.book.AskUndo(later, laptop.Self(), ID{1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("what there is not: %v", err)
	}
	if _, s := laptop.book.Undoable(later, phone.Self(), id); s != StatusOver {
		t.Errorf("a copy of the request: %v, want over", s)
	}
	// A new pair with the same device is another one.
	laptop.pairs(2, later)
	if pair, s := laptop.book.Undoable(later, phone.Self(), id); s != StatusOver {
		t.Errorf("the old request undoes the new pair %v", pair)
	}
}

func TestUndoExpires(t *testing.T) {
	laptop, phone, _ := family(t)
	laptop.pairs(1, t0)
	carry(t0, laptop, phone)
	asked := t0.Add(23 * time.Hour)
	if _, err := phone.book.AskUndo(asked, laptop.Self(), phone.heard(asked)[0].Notice.ID); err != nil {
		t.Fatal(err)
	}
	for _, d := range []struct {
		after time.Duration
		want  int
	}{{NoticeLife - time.Second, 1}, {NoticeLife, 0}} {
		now := asked.Add(d.after)
		tick(now, laptop, phone)
		if got := len(phone.book.Pending(now, laptop.Self())); got != d.want {
			t.Errorf("after %v: %d letters wait, want %d", d.after, got, d.want)
		}
		if d.want > 0 { // it still works that late
			if _, s := laptop.book.Undoable(now, phone.Self(), phone.book.s.heard[0].Notice.ID); s != StatusOK {
				t.Errorf("after %v: %v", d.after, s)
			}
		}
	}
	// The device that has the pair holds to that, too, whoever asks it.
	id := laptop.book.s.made[0].ID
	for at, want := range map[time.Duration]Status{2*NoticeLife - time.Second: StatusOK, 2 * NoticeLife: StatusOver} {
		if _, s := laptop.book.Undoable(t0.Add(at), phone.Self(), id); s != want {
			t.Errorf("asked %v after it was made: %v, want %v", at, s, want)
		}
	}
}

// TestUndoIsDenied holds that only a device that is marked by the one that has the pair may
// have it undone, whatever is marked elsewhere.
func TestUndoIsDenied(t *testing.T) {
	laptop, phone, tablet := family(t)
	laptop.pairs(1, t0)
	carry(t0, laptop, phone)
	id := phone.heard(t0)[0].Notice.ID
	tablet.mark(laptop, own)
	if _, s := laptop.book.Undoable(t0, tablet.Self(), id); s != StatusRefused {
		t.Errorf("a device that is not marked: %v", s)
	}
	if _, s := laptop.book.Undoable(t0, somebody, id); s != StatusRefused {
		t.Errorf("a stranger: %v", s)
	}
	laptop.mark(phone, func(p *Peer) { p.Own = false })
	if _, err := phone.book.AskUndo(t0, laptop.Self(), id); err != nil {
		t.Fatal(err)
	}
	carry(t0, laptop, phone)
	if h := phone.heard(t0)[0]; h.Undo != UndoRefused || h.Notice.Ended {
		t.Errorf("phone: %+v", h)
	}
	laptop.mark(phone, func(p *Peer) { p.Own, p.Blocked = true, true })
	if _, s := laptop.book.Undoable(t0, phone.Self(), id); s != StatusRefused {
		t.Errorf("a blocked device: %v", s)
	}
	phone.mark(laptop, func(p *Peer) { p.Own = false })
	if _, err := phone.book.AskUndo(t0, laptop.Self(), id); !errors.Is(err, ErrMay) {
		t.Errorf("of a device that is no longer marked here: %v", err)
	}
}

// TestEndIsTold holds that own devices hear of the end of a pair that they were told of.
func TestEndIsTold(t *testing.T) {
	laptop, phone, _ := family(t)
	laptop.pairs(1, t0)
	carry(t0, laptop, phone)
	if err := laptop.book.Ended([16]byte{1}); err != nil {
		t.Fatal(err)
	}
	carry(t0, laptop, phone)
	if h := phone.heard(t0); len(h) != 1 || !h[0].Notice.Ended {
		t.Errorf("phone: %+v", h)
	}
	if len(phone.events) != 2 || phone.events[1].Kind != EventEnded {
		t.Errorf("events %+v", phone.events)
	}
	laptop.pairs(2, t0) // and is over before anybody was told
	if err := laptop.book.Ended([16]byte{2}); err != nil {
		t.Fatal(err)
	}
	carry(t0, laptop, phone)
	if n := len(phone.heard(t0)); n != 1 {
		t.Errorf("phone heard of %d", n)
	}
}

// TestManyPairs holds that more pairs than a person makes are left out, and cost nothing.
func TestManyPairs(t *testing.T) {
	laptop, _, _ := family(t)
	for range 3 {
		for i := range 2 * maxMade {
			if err := laptop.book.Made([16]byte{byte(i), byte(i >> 8)}, Notice{Peer: somebody, Name: "x", Paired: t0}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if laptop.saves != maxMade || len(laptop.book.s.made) != maxMade {
		t.Errorf("%d writes, %d kept", laptop.saves, len(laptop.book.s.made))
	}
}

// TestCrashes plays an introduction, a notice and an undo with a disk that fails, or a
// device that restarts, at every single write: the outcome is the same, and no side ever
// believes more than the other has stored.
func TestCrashes(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for who := range 3 {
			for at := 1; ; at++ {
				if !crashAt(t, who, at, restart) {
					if at < 4 {
						t.Fatalf("only %d writes on device %d", at-1, who)
					}
					break
				}
			}
		}
	}
}

// crashAt reports whether there was such a write.
func crashAt(t *testing.T, who, at int, restart bool) bool {
	t.Helper()
	desk, laptop, phone := circle(t)
	laptop.mark(desk, own)
	desk.mark(laptop, own)
	all := []*device{desk, laptop, phone}
	hit := false
	all[who].fail = func(save int) bool {
		hit = hit || save == at
		return save == at
	}
	step := func(f func() error) { // as a user or the node does it again
		if f() == nil {
			return
		}
		if restart {
			all[who].reopen()
		}
		if err := f(); err != nil {
			t.Fatalf("device %d, write %d: %v", who, at, err)
		}
	}
	round := func() {
		carry(t0, all...)
		if restart {
			for _, d := range all {
				d.reopen()
			}
		}
		tick(t0, all...)
		carry(t0, all...)
		for _, g := range desk.book.Given() { // what the introducer believes, the others have stored
			for i, d := range []*device{laptop, phone} {
				s := g.Ends[i].State
				if s == EndWaiting {
					continue
				}
				if got := d.book.Received(); len(got) != 1 || got[0].State < s {
					t.Fatalf("device %d, write %d: desk believes %v of %s, which has %+v", who, at, s, d.name, got)
				}
			}
		}
	}
	step(func() error { _, _, err := desk.book.Introduce(t0, laptop.Self(), phone.Self()); return err })
	round()
	if got := laptop.only(); got.State != EndAccepted || !got.Auto {
		t.Fatalf("device %d, write %d: laptop %+v", who, at, got)
	}
	step(func() error { _, err := phone.book.Decide(t0, phone.only().Number, true); return err })
	round()
	if in := phone.book.Accepted(t0); len(in) != 1 || in[0].Secret != laptop.book.Accepted(t0)[0].Secret {
		t.Fatalf("device %d, write %d: the sides do not fit", who, at)
	}
	for _, s := range [][2]*device{{laptop, phone}, {phone, laptop}} {
		s[0].peers[s[1].Self()] = Peer{ID: s[1].Self(), Name: s[1].name, Vouched: true}
		step(func() error { return s[0].book.Paired(s[1].Self(), desk.Self()) })
		step(func() error {
			return s[0].book.Made([16]byte{5}, Notice{Peer: s[1].Self(), Name: s[1].name, Paired: t0})
		})
	}
	round()
	if g := desk.book.Given()[0]; g.Ends[0].State != EndPaired || g.Ends[1].State != EndPaired {
		t.Fatalf("device %d, write %d: desk %+v", who, at, g)
	}
	heard := desk.heard(t0)
	if len(heard) != 1 {
		t.Fatalf("device %d, write %d: desk heard %+v", who, at, heard)
	}
	step(func() error { _, err := desk.book.AskUndo(t0, laptop.Self(), heard[0].Notice.ID); return err })
	round()
	round()
	if h := desk.heard(t0)[0]; h.Undo != UndoDone || !h.Notice.Ended {
		t.Fatalf("device %d, write %d: desk %+v", who, at, h)
	}
	return hit
}

// TestSameNotice holds that a stolen own device that repeats the id of another one's notice
// takes nothing from that: it is shown, told of its end and undone by who gave it.
func TestSameNotice(t *testing.T) {
	laptop, phone, _ := family(t)
	stolen := newDevice(t, "stolen")
	knows(laptop, stolen)
	knows(phone, stolen)
	laptop.mark(stolen, own)
	stolen.mark(laptop, own)
	phone.mark(stolen, own)
	stolen.mark(phone, own)
	laptop.pairs(1, t0)
	carry(t0, laptop, stolen)
	n := stolen.heard(t0)[0].Notice
	n.Name = "harmless"
	phone.book.Take(t0, stolen.Self(), Letter{Kind: LetterNotice, Notice: n})
	carry(t0, laptop, phone)
	if got := len(phone.heard(t0)); got != 2 {
		t.Fatalf("%d notices, want 2", got)
	}
	h, err := phone.book.AskUndo(t0, laptop.Self(), n.ID)
	if err != nil || h.From != laptop.Self() {
		t.Fatalf("asked %v, %v", h.From, err)
	}
	if got := len(phone.book.Pending(t0, stolen.Self())); got != 0 {
		t.Errorf("%d letters wait for the stolen device", got)
	}
	n.Ended = true // it says that its own is over
	phone.book.Take(t0, stolen.Self(), Letter{Kind: LetterNotice, Notice: n})
	phone.reopen()
	carry(t0, laptop, phone)
	if own, _, _ := laptop.book.Recent(t0); !own[0].Ended {
		t.Error("the pair goes on")
	}
}
