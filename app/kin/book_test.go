package kin

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
)

var t0 = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// device is one device with its book, in memory.
type device struct {
	t       testing.TB
	id      *identity.Identity
	name    string
	peers   map[identity.DeviceID]Peer
	removed map[identity.DeviceID]bool
	book    *Book
	disk    []byte
	saves   int
	fail    func(save int) bool // which of its saves fail
	events  []Event
}

var errDisk = errors.New("disk full")

func newDevice(t testing.TB, name string) *device {
	t.Helper()
	id, err := identity.FromSeeds(sha256.Sum256([]byte("sign "+name)), sha256.Sum256([]byte("wg "+name)))
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, id: id, name: name, peers: make(map[identity.DeviceID]Peer), removed: make(map[identity.DeviceID]bool)}
	d.reopen()
	return d
}

// reopen is a crash and a new start.
func (d *device) reopen() {
	d.t.Helper()
	b, err := Open(d.disk, d, func(raw []byte) error {
		d.saves++
		if d.fail != nil && d.fail(d.saves) {
			return errDisk
		}
		d.disk = raw
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.book = b
}

func (d *device) Self() identity.DeviceID                { return d.id.ID() }
func (d *device) Sign(message []byte) []byte             { return d.id.Sign(message) }
func (d *device) Removed(id identity.DeviceID) bool      { return d.removed[id] }
func (d *device) Peer(id identity.DeviceID) (Peer, bool) { p, ok := d.peers[id]; return p, ok }

// knows makes two devices paired.
func knows(a, b *device) {
	a.peers[b.Self()] = Peer{ID: b.Self(), Name: b.name, WireGuard: b.id.WireGuardPublic()}
	b.peers[a.Self()] = Peer{ID: a.Self(), Name: a.name, WireGuard: a.id.WireGuardPublic()}
}

func (d *device) mark(other *device, change func(*Peer)) {
	p := d.peers[other.Self()]
	change(&p)
	d.peers[other.Self()] = p
}

func own(p *Peer) { p.Own = true }

// give has a device take a letter as it comes over the wire.
func give(from, to *device, l Letter, now time.Time) Status {
	from.t.Helper()
	raw, err := l.encode(now)
	if err != nil {
		from.t.Fatal(err)
	}
	got, err := decodeLetter(raw, now)
	if err != nil {
		return StatusRefused
	}
	if got.Kind == LetterUndo {
		pair, status := to.book.Undoable(now, from.Self(), got.ID)
		if status == StatusOK {
			if err := to.book.Ended(pair); err != nil {
				return StatusBusy
			}
		}
		return status
	}
	status, ev := to.book.Take(now, from.Self(), got)
	if ev != nil {
		to.events = append(to.events, *ev)
	}
	return status
}

// carry carries what waits between devices until nothing does.
func carry(now time.Time, all ...*device) {
	for range 20 {
		moved := false
		for _, from := range all {
			for _, to := range all {
				if _, ok := from.peers[to.Self()]; !ok || from == to {
					continue
				}
				for _, l := range from.book.Pending(now, to.Self()) {
					if s := give(from, to, l, now); s != StatusBusy && s != StatusRefused {
						moved = true
						_ = from.book.Delivered(now, to.Self(), l, s)
					} else {
						_ = from.book.Delivered(now, to.Self(), l, s)
					}
				}
			}
		}
		if !moved {
			return
		}
	}
}

func tick(now time.Time, all ...*device) {
	for _, d := range all {
		_, _ = d.book.Tick(now)
	}
}

// circle is desk, which knows laptop and phone.
func circle(t testing.TB) (desk, laptop, phone *device) {
	desk, laptop, phone = newDevice(t, "desk"), newDevice(t, "laptop"), newDevice(t, "phone")
	knows(desk, laptop)
	knows(desk, phone)
	return desk, laptop, phone
}

func mustIntroduce(t testing.TB, by, a, b *device, now time.Time) Given {
	t.Helper()
	g, _, err := by.book.Introduce(now, a.Self(), b.Self())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (d *device) only() Received {
	d.t.Helper()
	list := d.book.Received()
	if len(list) != 1 {
		d.t.Fatalf("%s has %d introductions, want one: %+v", d.name, len(list), list)
	}
	return list[0]
}

func (d *device) decide(yes bool, now time.Time) {
	d.t.Helper()
	if _, err := d.book.Decide(now, d.only().Number, yes); err != nil {
		d.t.Fatal(err)
	}
}

// finish does what the pairing does, if both sides are to carry the introduction out.
func finish(a, b *device, by identity.DeviceID, now time.Time) bool {
	x, y := a.book.Accepted(now), b.book.Accepted(now)
	if len(x) != 1 || len(y) != 1 || x[0].Secret != y[0].Secret || x[0].Other != b.Self() || y[0].Other != a.Self() ||
		x[0].WireGuard != b.id.WireGuardPublic() || y[0].WireGuard != a.id.WireGuardPublic() || x[0].Offers() == y[0].Offers() {
		return false
	}
	for _, s := range [][2]*device{{a, b}, {b, a}} {
		s[0].peers[s[1].Self()] = Peer{ID: s[1].Self(), Name: s[1].name, Vouched: true}
		_ = s[0].book.Paired(s[1].Self(), by)
	}
	return true
}

// TestBothAway holds that each side gets an introduction when it returns, within seven
// days, and that each asks its user.
func TestBothAway(t *testing.T) {
	desk, laptop, phone := circle(t)
	g := mustIntroduce(t, desk, laptop, phone, t0)
	secret := desk.book.s.given[0].secret
	if !bytes.Contains(desk.disk, secret[:]) || secret == [32]byte{} {
		t.Fatal("the secret is not kept until it is delivered")
	}
	later := t0.Add(3 * 24 * time.Hour)
	desk.reopen()
	carry(later, desk, laptop)
	laptop.decide(true, later)
	if finish(laptop, phone, desk.Self(), later) {
		t.Fatal("carried out before the phone has heard of it")
	}
	later = t0.Add(6 * 24 * time.Hour)
	for _, d := range []*device{desk, laptop, phone} {
		d.reopen()
		tick(later, d)
	}
	carry(later, desk, phone)
	if got := phone.only(); got.Name != "laptop" || got.By != desk.Self() || got.State != EndDelivered {
		t.Fatalf("the phone was told %+v", got)
	}
	if phone.events[0].Kind != EventIntroduced {
		t.Errorf("event %+v", phone.events)
	}
	phone.decide(true, later)
	if !finish(laptop, phone, desk.Self(), later) {
		t.Fatal("not carried out after both said yes")
	}
	carry(later, desk, laptop, phone)
	if now := desk.book.Given()[0]; now.ID != g.ID || !now.Good() || now.Ends[0].State != EndPaired {
		t.Errorf("desk knows %+v", now)
	}
	for _, d := range []*device{desk, laptop, phone} {
		if bytes.Contains(d.disk, secret[:]) {
			t.Errorf("%s keeps the secret of what is over", d.name)
		}
	}
}

func TestExpires(t *testing.T) {
	for name, away := range map[string]string{"one side never comes": "phone", "nobody answers": ""} {
		t.Run(name, func(t *testing.T) {
			desk, laptop, phone := circle(t)
			mustIntroduce(t, desk, laptop, phone, t0)
			carry(t0, desk, laptop)
			if away == "" {
				carry(t0, desk, phone)
			} else {
				laptop.decide(true, t0)
			}
			over := t0.Add(Life)
			tick(over.Add(-time.Second), desk, laptop, phone)
			if s := laptop.only().State; s.over() {
				t.Fatalf("%v before its time", s)
			}
			tick(over, desk, laptop, phone)
			if s := laptop.only().State; s != EndExpired {
				t.Errorf("laptop: %v, want expired", s)
			}
			if len(laptop.book.Accepted(over)) > 0 {
				t.Error("it is still carried out")
			}
			if _, err := laptop.book.Decide(over, laptop.only().Number, true); !errors.Is(err, ErrOver) {
				t.Errorf("a late yes: %v, want ErrOver", err)
			}
			if g := desk.book.Given()[0]; !g.Over() || g.Good() {
				t.Errorf("desk: %+v", g)
			}
			carry(over, desk, phone)
			if len(phone.book.Accepted(over)) > 0 {
				t.Error("delivered after its time")
			}
			end := over.Add(2 * slack)
			tick(end, desk, laptop, phone)
			if len(desk.book.Given())+len(laptop.book.Received()) > 0 {
				t.Error("it is kept for ever")
			}
		})
	}
}

// TestLyingIntroducer holds that a statement that is not what it should be is refused and
// leaves nothing behind.
func TestLyingIntroducer(t *testing.T) {
	for name, lie := range map[string]func(in *Introduction, by, other *device){
		"in another's name":             func(in *Introduction, _, other *device) { in.By = other.Self() },
		"to another device":             func(in *Introduction, _, other *device) { in.To = other.Self() },
		"of the device itself":          func(in *Introduction, _, _ *device) { in.Other = in.To },
		"of the introducer":             func(in *Introduction, by, _ *device) { in.Other = by.Self() },
		"for longer than seven days":    func(in *Introduction, _, _ *device) { in.Expires = t0.Add(Life + slack + time.Second) },
		"that is too old":               func(in *Introduction, _, _ *device) { in.Expires = t0 },
		"with another key, not signed":  func(in *Introduction, _, _ *device) { in.WireGuard[0] ^= 1; in.Sig[63] ^= 1 },
		"with another id, not signed":   func(in *Introduction, _, _ *device) { in.Other[0] ^= 1; in.Sig[0] ^= 1 },
		"with a name that is too long":  func(in *Introduction, _, _ *device) { in.Name = strings.Repeat("x", maxNameBytes+1) },
		"signed with the other's key":   func(in *Introduction, _, other *device) { in.Sig = [64]byte(other.Sign(in.statement())) },
		"signed for another expiry":     func(in *Introduction, by, _ *device) { in.resign(by); in.Expires = in.Expires.Add(time.Second) },
		"signed for another secret":     func(in *Introduction, by, _ *device) { in.resign(by); in.Secret[5] ^= 1 },
		"signed for another name":       func(in *Introduction, by, _ *device) { in.resign(by); in.Name += "x" },
		"signed for another tunnel key": func(in *Introduction, by, _ *device) { in.resign(by); in.WireGuard[5] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			desk, laptop, phone := circle(t)
			mustIntroduce(t, desk, laptop, phone, t0)
			l := desk.book.Pending(t0, laptop.Self())[0]
			before := l.Introduction
			lie(&l.Introduction, desk, phone)
			if l.Introduction.Sig == before.Sig {
				l.Introduction.resign(desk)
				if strings.HasPrefix(name, "signed for") {
					l.Introduction.Sig = before.Sig
				}
			}
			if s := give(desk, laptop, l, t0); s == StatusOK {
				t.Error("taken")
			}
			if len(laptop.book.Received()) > 0 || laptop.saves > 0 || len(laptop.events) > 0 {
				t.Error("it left something behind")
			}
		})
	}
}

func (i *Introduction) resign(by *device) { i.Sig = [64]byte(by.Sign(i.statement())) }

// TestLiesToBoth holds what an introducer gets that tells each side of another device than
// there is: each side waits for exactly the keys it was told, so the two never meet.
func TestLiesToBoth(t *testing.T) {
	desk, laptop, phone := circle(t)
	mustIntroduce(t, desk, laptop, phone, t0)
	for _, to := range []*device{laptop, phone} {
		l := desk.book.Pending(t0, to.Self())[0]
		fake := newDevice(t, "fake "+to.name)
		l.Introduction.Other, l.Introduction.WireGuard = fake.Self(), fake.id.WireGuardPublic()
		l.Introduction.resign(desk)
		if s := give(desk, to, l, t0); s != StatusOK {
			t.Fatal(s)
		}
		to.decide(true, t0)
		in := to.book.Accepted(t0)[0]
		if in.Other != fake.Self() || in.WireGuard != fake.id.WireGuardPublic() {
			t.Error("the pin is not what was told")
		}
	}
	if finish(laptop, phone, desk.Self(), t0) {
		t.Error("they meet all the same")
	}
}

// TestOneHop holds that a device that was introduced vouches for nobody, on any side.
func TestOneHop(t *testing.T) {
	vouched := func(p *Peer) { p.Vouched = true }
	desk, laptop, phone := circle(t)
	desk.mark(phone, vouched)
	for _, pair := range [][2]*device{{laptop, phone}, {phone, laptop}} {
		if _, _, err := desk.book.Introduce(t0, pair[0].Self(), pair[1].Self()); !errors.Is(err, ErrMay) {
			t.Errorf("introduced a device that was itself introduced: %v", err)
		}
	}
	desk, laptop, phone = circle(t)
	laptop.mark(desk, vouched)
	laptop.mark(desk, own) // which does not help
	mustIntroduce(t, desk, laptop, phone, t0)
	carry(t0, desk, laptop, phone)
	tick(t0, desk, laptop, phone)
	carry(t0, desk, laptop, phone)
	if len(laptop.book.Received()) > 0 {
		t.Error("laptop took an introduction of a device that was introduced to it")
	}
	for _, r := range phone.book.Received() {
		if r.State != EndWithdrawn {
			t.Errorf("phone: %v", r.State)
		}
	}
	g := desk.book.Given()[0]
	if g.Ends[0].State != EndRefused || !g.Over() {
		t.Errorf("desk: %+v", g)
	}
	// An introduction under way ends when its introducer turns out to be vouched for.
	desk, laptop, phone = circle(t)
	mustIntroduce(t, desk, laptop, phone, t0)
	carry(t0, desk, laptop)
	laptop.decide(true, t0)
	laptop.mark(desk, vouched)
	tick(t0, laptop)
	if s := laptop.only().State; s != EndGone {
		t.Errorf("laptop: %v, want gone", s)
	}
}

// TestRemovedStaysAway holds that a device that was removed comes back by no introduction:
// not a new one, not by a second introducer, not by an own device, not by a copy of an old
// one, and not by one that was accepted before.
func TestRemovedStaysAway(t *testing.T) {
	desk, laptop, phone := circle(t)
	tablet := newDevice(t, "tablet")
	knows(tablet, laptop)
	knows(tablet, phone)
	laptop.mark(tablet, own)
	mustIntroduce(t, desk, laptop, phone, t0)
	l := desk.book.Pending(t0, laptop.Self())[0]
	if s := give(desk, laptop, l, t0); s != StatusOK {
		t.Fatal(s)
	}
	laptop.decide(true, t0)
	laptop.removed[phone.Self()] = true
	if tick(t0, laptop); laptop.only().State != EndDeclined {
		t.Errorf("accepted before it was removed: %v, want declined", laptop.only().State)
	}
	for range 3 {
		give(desk, laptop, l, t0.Add(time.Hour))
		laptop.reopen()
	}
	desk.disk = nil
	desk.reopen() // has forgotten, and begins anew
	mustIntroduce(t, desk, laptop, phone, t0)
	mustIntroduce(t, tablet, laptop, phone, t0)
	carry(t0, desk, laptop)
	carry(t0, tablet, laptop)
	if len(laptop.book.Accepted(t0)) > 0 || laptop.only().State != EndDeclined {
		t.Errorf("it comes back: %+v", laptop.book.Received())
	}
	if s := desk.book.Given()[0].Ends[0].State; s != EndDeclined {
		t.Errorf("a device that is not an own one learns %v, want declined", s)
	}
	if s := tablet.book.Given()[0].Ends[0].State; s != EndRemoved {
		t.Errorf("an own device learns %v, want removed", s)
	}
	for _, e := range laptop.events[1:] {
		t.Errorf("its user hears of it: %+v", e)
	}
}

// TestReplays holds that a copy of an introduction changes nothing, also when the first was
// declined or has led to a pair that is over, and that an altered copy is refused.
func TestReplays(t *testing.T) {
	desk, laptop, phone := circle(t)
	mustIntroduce(t, desk, laptop, phone, t0)
	l := desk.book.Pending(t0, laptop.Self())[0]
	give(desk, laptop, l, t0)
	laptop.decide(false, t0)
	saves := laptop.saves
	for day := range 9 {
		now := t0.Add(time.Duration(day) * 24 * time.Hour)
		tick(now, laptop)
		if s := give(desk, laptop, l, now); s != StatusOK && s != StatusOver {
			t.Errorf("day %d: %v", day, s)
		}
		if len(laptop.book.Accepted(now)) > 0 || len(laptop.events) != 1 {
			t.Fatalf("day %d: a copy counts", day)
		}
	}
	if laptop.saves > saves+1 { // the end of its memory
		t.Errorf("copies cost %d writes", laptop.saves-saves)
	}
	desk, laptop, phone = circle(t)
	mustIntroduce(t, desk, laptop, phone, t0)
	l = desk.book.Pending(t0, laptop.Self())[0]
	give(desk, laptop, l, t0)
	l.Introduction.Name = "somebody else"
	l.Introduction.resign(desk)
	if s := give(desk, laptop, l, t0); s != StatusRefused || laptop.only().Name != "phone" {
		t.Errorf("an altered copy: %v, now %q", s, laptop.only().Name)
	}
}

// TestAlready holds that introducing two devices that are paired changes nothing, and says
// so; and that both orders, and twice, are one introduction.
func TestAlready(t *testing.T) {
	desk, laptop, phone := circle(t)
	g := mustIntroduce(t, desk, laptop, phone, t0)
	for range 2 {
		again, begun, err := desk.book.Introduce(t0.Add(time.Minute), phone.Self(), laptop.Self())
		if err != nil || begun || again.ID != g.ID {
			t.Fatalf("again: %v, %v, %v", again.ID, begun, err)
		}
	}
	knows(laptop, phone)
	carry(t0, desk, laptop)
	tick(t0, desk)
	if now := desk.book.Given()[0]; !now.Good() || !now.Over() || now.Ends[0].State != EndAlready {
		t.Errorf("desk: %+v", now)
	}
	if len(laptop.book.Received())+len(phone.book.Received()) > 0 {
		t.Error("somebody was asked")
	}
}

// TestTwoIntroducers holds that of two introductions of one device both end when it is
// paired.
func TestTwoIntroducers(t *testing.T) {
	desk, laptop, phone := circle(t)
	tablet := newDevice(t, "tablet")
	knows(tablet, laptop)
	knows(tablet, phone)
	mustIntroduce(t, desk, laptop, phone, t0)
	mustIntroduce(t, tablet, phone, laptop, t0)
	carry(t0, desk, laptop, phone, tablet)
	for _, d := range []*device{laptop, phone} {
		for _, r := range d.book.Received() {
			if _, err := d.book.Decide(t0, r.Number, true); err != nil {
				t.Fatal(err)
			}
		}
		if len(d.book.Accepted(t0)) != 2 {
			t.Fatalf("%s carries out %d", d.name, len(d.book.Accepted(t0)))
		}
	}
	knows(laptop, phone)
	for _, d := range [][2]*device{{laptop, phone}, {phone, laptop}} {
		if err := d[0].book.Paired(d[1].Self(), desk.Self()); err != nil {
			t.Fatal(err)
		}
		if len(d[0].book.Accepted(t0)) > 0 {
			t.Error("one goes on")
		}
	}
	carry(t0, desk, laptop, phone, tablet)
	if a, b := desk.book.Given()[0], tablet.book.Given()[0]; !a.Good() || !b.Good() || a.Ends[0].State != EndPaired || b.Ends[0].State != EndAlready {
		t.Errorf("desk %+v, tablet %+v", a, b)
	}
}

// TestDeclined holds that a no of one side ends it on the other, and that a yes can be
// taken back.
func TestDeclined(t *testing.T) {
	desk, laptop, phone := circle(t)
	mustIntroduce(t, desk, laptop, phone, t0)
	carry(t0, desk, laptop, phone)
	laptop.decide(true, t0)
	carry(t0, desk, laptop, phone)
	if s := desk.book.Given()[0].Ends[0].State; s != EndAccepted {
		t.Errorf("desk knows %v", s)
	}
	laptop.decide(false, t0)
	carry(t0, desk, laptop, phone)
	if s := phone.only(); s.State != EndWithdrawn || s.Why != EndDeclined {
		t.Errorf("phone: %+v", s)
	}
	if g := desk.book.Given()[0]; !g.Over() || g.Good() {
		t.Errorf("desk: %+v", g)
	}
	if _, err := phone.book.Decide(t0, phone.only().Number, true); !errors.Is(err, ErrOver) {
		t.Errorf("a yes to what is over: %v", err)
	}
	if _, err := phone.book.Decide(t0, 99, true); !errors.Is(err, ErrNotFound) {
		t.Errorf("a number that there is not: %v", err)
	}
}

// TestHostileNames holds that names of the introducer cannot paint on a terminal.
func TestHostileNames(t *testing.T) {
	for name, want := range map[string]string{
		"a\x1b[2Jb": "a[2Jb", "x\u202egpj.exe": "xgpj.exe", "line\nline": "line line", "\x00\x07": "unnamed", "": "unnamed", "a:b/c": "a-b-c",
	} {
		desk, laptop, phone := circle(t)
		desk.mark(phone, func(p *Peer) { p.Name = name })
		laptop.mark(desk, own)
		mustIntroduce(t, desk, laptop, phone, t0)
		carry(t0, desk, laptop)
		if got := laptop.only().Name; got != want {
			t.Errorf("%q is shown as %q, want %q", name, got, want)
		}
		n := Notice{ID: newID(), Peer: phone.Self(), Name: name, OS: name, Method: name, Introducer: name, Paired: t0}
		if s := give(desk, laptop, Letter{Kind: LetterNotice, Notice: n}, t0); s != StatusOK {
			t.Fatal(s)
		}
		_, _, heard := laptop.book.Recent(t0)
		for _, text := range []string{heard[0].Notice.Name, heard[0].Notice.OS, heard[0].Notice.Method, heard[0].Notice.Introducer} {
			if strings.ContainsAny(text, "\x1b\x00\x07\n\u202e") {
				t.Errorf("%q is shown as %q", name, text)
			}
		}
	}
}

// TestFlood holds that one device can make this one keep, write and say only so much.
func TestFlood(t *testing.T) {
	desk, laptop, _ := circle(t)
	laptop.mark(desk, own)
	laptop.mark(desk, func(p *Peer) { p.Own = false })
	for i := range 1000 {
		in := Introduction{
			ID: newID(), By: desk.Self(), To: laptop.Self(), Other: identity.DeviceID{byte(i), byte(i >> 8), 1}, Name: fmt.Sprint(i), Expires: t0.Add(Life),
		}
		in.resign(desk)
		give(desk, laptop, Letter{Kind: LetterIntroduce, Introduction: in}, t0)
		if i%2 == 0 { // and takes it back, to make room
			give(desk, laptop, Letter{Kind: LetterWithdraw, ID: in.ID, End: EndDeclined}, t0)
		}
	}
	if n := len(laptop.book.Received()); n > maxReceivedFrom || laptop.saves > 2*maxReceivedFrom || len(laptop.events) > 2*maxReceivedFrom {
		t.Errorf("%d kept, %d writes, %d lines", n, laptop.saves, len(laptop.events))
	}
	laptop.saves, laptop.events = 0, nil
	laptop.mark(desk, own)
	for range 1000 {
		n := Notice{ID: newID(), Peer: identity.DeviceID{7}, Name: "x", Paired: t0}
		give(desk, laptop, Letter{Kind: LetterNotice, Notice: n}, t0)
		n.Ended = true
		give(desk, laptop, Letter{Kind: LetterNotice, Notice: n}, t0)
	}
	_, _, heard := laptop.book.Recent(t0)
	if len(heard) > maxHeardFrom || laptop.saves > 2*maxHeardFrom || len(laptop.events) > 2*maxHeardFrom {
		t.Errorf("%d notices kept, %d writes, %d lines", len(heard), laptop.saves, len(laptop.events))
	}
	if raw, err := laptop.book.s.encode(); err != nil || len(raw) > 100<<10 {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
}

// TestFloodThatExpires holds that introductions which are over at once count as long as
// others: a person is asked about 64 in a week, not in a day.
func TestFloodThatExpires(t *testing.T) {
	desk, laptop, _ := circle(t)
	for at := time.Duration(0); at < Life; at += time.Hour {
		now := t0.Add(at)
		in := Introduction{ID: newID(), By: desk.Self(), To: laptop.Self(), Other: identity.DeviceID{byte(at / time.Hour), 1}, Name: "x", Expires: now.Add(time.Minute)}
		in.resign(desk)
		give(desk, laptop, Letter{Kind: LetterIntroduce, Introduction: in}, now)
		tick(now.Add(time.Hour), laptop)
	}
	if n := len(laptop.events); n != maxReceivedFrom {
		t.Errorf("%d were shown in seven days, want %d", n, maxReceivedFrom)
	}
}

// TestIntroduceErrors holds what cannot be introduced.
func TestIntroduceErrors(t *testing.T) {
	desk, laptop, phone := circle(t)
	stranger := newDevice(t, "stranger")
	desk.mark(phone, func(p *Peer) { p.Blocked = true })
	for name, pair := range map[string][2]*device{
		"a device with itself": {laptop, laptop}, "a stranger": {laptop, stranger}, "a blocked one": {phone, laptop},
	} {
		if _, _, err := desk.book.Introduce(t0, pair[0].Self(), pair[1].Self()); !errors.Is(err, ErrMay) {
			t.Errorf("%s: %v, want ErrMay", name, err)
		}
	}
	desk.mark(phone, func(p *Peer) { p.Blocked = false })
	for i := range maxGiven + 1 {
		d := newDevice(t, fmt.Sprint("device ", i))
		knows(desk, d)
		_, _, err := desk.book.Introduce(t0, laptop.Self(), d.Self())
		if full := i == maxGiven; full != errors.Is(err, ErrFull) {
			t.Fatalf("introduction %d: %v", i, err)
		}
	}
}
