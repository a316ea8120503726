package kith

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
)

// Introduce begins to make two devices known to each other, both of which are paired with
// this one by a code. Each gets a signed statement when it is connected, within seven
// days, and asks its user, or accepts by itself if this device is marked as an own one
// there. Then the two pair end to end: this device never has their key. If they are being
// introduced already that introduction is returned, and begun is false.
//
// It errs if a reference fits no device, with kin.ErrMay for a device that was itself
// introduced, is blocked, or is not finished, with kin.ErrFull, and if it could not be
// stored.
func (n *Node) Introduce(one, two string) (g kin.Given, begun bool, err error) {
	var ids [2]identity.DeviceID
	for i, ref := range []string{one, two} {
		rec, err := n.find(ref)
		if err != nil {
			return kin.Given{}, false, err
		}
		if rec.State != registry.Active {
			return kin.Given{}, false, fmt.Errorf("kith: %s %w: pairing with it is not finished", rec.Name, kin.ErrMay)
		}
		ids[i] = rec.ID
	}
	return n.kin.book.Introduce(time.Now(), ids[0], ids[1])
}

// Introductions returns the introductions that this device makes and those that others
// make to it, oldest first, for as long as they are remembered: at least until they
// expire.
func (n *Node) Introductions() (given []kin.Given, received []kin.Received) {
	return n.kin.book.Given(), n.kin.book.Received()
}

// WatchIntroductions returns a channel that holds a token after each change of
// Introductions or Recent, and what ends it.
func (n *Node) WatchIntroductions() (<-chan struct{}, func()) { return n.kin.book.Watch() }

// AcceptIntroduction says yes to one that another device makes, by its number: this
// device looks for the other one from now on, until it is paired or the introduction
// expires. It errs with kin.ErrNotFound, with kin.ErrOver if it was answered or is over,
// and if it could not be stored.
func (n *Node) AcceptIntroduction(number uint64) (kin.Received, error) {
	return n.kin.book.Decide(time.Now(), number, true)
}

// DeclineIntroduction says no, also after a yes that has not led to a pair yet; the
// introducer is told. It errs as AcceptIntroduction does.
func (n *Node) DeclineIntroduction(number uint64) (kin.Received, error) {
	return n.kin.book.Decide(time.Now(), number, false)
}

// Removed returns the devices that do not come back by an introduction, since this
// device's user has ended a pair with them.
func (n *Node) Removed() []identity.DeviceID { return n.kin.removed.list() }

// Forget lets a removed device be introduced again, by its ID or the first characters of
// it, four or more. It errs with registry.ErrNotFound or a *registry.AmbiguousError, or
// if the list could not be written.
func (n *Node) Forget(ref string) (identity.DeviceID, error) {
	var fit []identity.DeviceID
	for _, id := range n.kin.removed.list() {
		if len(ref) >= 4 && len(ref) <= len(id.String()) && id.String()[:len(ref)] == ref || n.tombName(id) == ref {
			fit = append(fit, id)
		}
	}
	switch len(fit) {
	case 0:
		return identity.DeviceID{}, fmt.Errorf("kith: %w among the removed: %q", registry.ErrNotFound, ref)
	case 1:
		return fit[0], n.kin.removed.set(fit[0], false)
	}
	amb := &registry.AmbiguousError{Ref: ref}
	for _, id := range fit {
		amb.Names = append(amb.Names, id.Short())
	}
	return identity.DeviceID{}, amb
}

// RemovedName is what this device called a removed device, or the start of its ID where
// that is no longer known.
func (n *Node) RemovedName(id identity.DeviceID) string {
	if name := n.tombName(id); name != "" {
		return name
	}
	return id.Short()
}

func (n *Node) tombName(id identity.DeviceID) string {
	for _, t := range n.store.Tombs() {
		if t.ID == id {
			return t.Name
		}
	}
	return ""
}

// VouchedFor returns the devices that a device has introduced to this one. It errs if the
// reference fits no device.
func (n *Node) VouchedFor(ref string) ([]Device, error) {
	rec, err := n.find(ref)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(n.Devices(), func(d Device) bool { return d.VouchedBy != rec.ID }), nil
}

// introduced completes the record of a pairing: one by an introduction says who vouched,
// and is refused for a device that was removed; one by a code takes the device off that
// list.
func (p *Pairing) introduced(dev *registry.Device) error {
	removed := &p.n.kin.removed
	if p.how.vouchedBy.IsZero() {
		return removed.set(dev.ID, false)
	}
	if removed.has(dev.ID) {
		return errors.New("kith: the device was removed here")
	}
	old, ok := p.n.store.ByID(dev.ID)
	if ok && old.PairID != dev.PairID && (dev.Joiner || old.State == registry.Active) {
		// Of two pairs with one device each side could end the other one. The joiner follows
		// the offerer, so that it is enough if it has one at a time.
		return errors.New("kith: there is a pair with this device")
	}
	dev.VouchedBy = p.how.vouchedBy
	if p.how.name != "" {
		dev.Name = p.how.name
	}
	return nil
}

// tellKin says what a letter brought.
func (n *Node) tellKin(from identity.DeviceID, ev kin.Event) {
	rec, ok := n.store.ByID(from)
	if !ok {
		return
	}
	name := fmt.Sprintf("%q", ev.Received.Name)
	kind, detail, subject := EventIntroduced, "", ""
	switch ev.Kind {
	case kin.EventIntroduced:
		detail = fmt.Sprintf("a device that it calls %s; to answer: kith introductions accept %d (or decline)", name, ev.Received.Number)
		subject = strconv.FormatUint(ev.Received.Number, 10)
	case kin.EventAccepted:
		detail = fmt.Sprintf("a device that it calls %s; accepted, since %s is your own device", name, rec.Name)
	case kin.EventOver:
		detail = fmt.Sprintf("%s: over", name)
	case kin.EventNotice:
		kind, detail = EventNewPair, fmt.Sprintf("%q%s; if that was not you: kith devices --new", ev.Notice.Name, howPaired(ev.Notice))
		subject = ev.Notice.ID.String()
	case kin.EventEnded:
		kind, detail = EventNewPair, fmt.Sprintf("%q: that pair is over", ev.Notice.Name)
	}
	n.events.publish(Event{Time: time.Now(), Kind: kind, Device: n.device(rec), Subject: subject, Detail: detail})
}

// howPaired says in a few words how a pair was made.
func howPaired(n kin.Notice) string {
	switch {
	case n.Introducer != "":
		return fmt.Sprintf(", introduced by %q", n.Introducer)
	case n.Method == code.MethodIntro.String():
		return ", by an introduction"
	case n.Method != "":
		return fmt.Sprintf(", by %s", n.Method)
	}
	return ""
}

// SetOwn marks a device as this user's own, or not: its introductions are accepted
// without asking, and it and this device tell each other of new pairs, if it has marked
// this one, too. It errs if the reference fits no device, the pair is not finished, or
// the record cannot be written.
func (n *Node) SetOwn(ref string, own bool) (Device, error) {
	rec, err := n.find(ref)
	if err != nil {
		return Device{}, err
	}
	if err := notMember(rec); err != nil {
		return Device{}, err
	}
	if rec.State != registry.Active {
		return Device{}, fmt.Errorf("kith: pairing with %s is not finished", rec.Name)
	}
	if rec, err = n.store.Update(rec.PairID, func(d *registry.Device) { d.Own = own }); err != nil {
		return Device{}, err
	}
	n.reloadPeer(rec.PairID)
	d := n.device(rec)
	what := "no longer marked as your own device"
	if own {
		n.kin.service.Ask(rec.ID)
		what = "marked as your own device"
	}
	n.tell(EventRights, d, what)
	return d, nil
}

// reloadPeer has a pair at work take over what was written to its record.
func (n *Node) reloadPeer(id registry.PairID) {
	n.mu.Lock()
	p := n.peers[id]
	n.mu.Unlock()
	if p != nil {
		p.post(p.reload)
	}
}

var (
	// ErrNoNumber reports a pair of an older version, which has kept no check number.
	ErrNoNumber = errors.New("kith: this pair has no check number: it was made by an older version")
	// ErrNumber reports a check number that is not the pair's.
	ErrNumber = errors.New("kith: the check numbers differ")
)

// CheckNumber returns twelve digits of the handshake that made a pair. The other device
// has the same, unless somebody was between the two. They are more than the six that are
// compared while a code lives, since an introducer has days to search for handshakes whose
// numbers are alike. It errs if the reference fits no
// finished pair, and with ErrNoNumber.
func (n *Node) CheckNumber(ref string) (Device, string, error) {
	rec, err := n.find(ref)
	if err != nil {
		return Device{}, "", err
	}
	if err := notMember(rec); err != nil {
		return Device{}, "", err
	}
	if rec.State != registry.Active {
		return Device{}, "", fmt.Errorf("kith: pairing with %s is not finished", rec.Name)
	}
	if rec.Check == "" {
		return Device{}, "", ErrNoNumber
	}
	return n.device(rec), rec.Check, nil
}

// Verify marks a device as verified if the number, which its screen shows, is that of
// CheckNumber. It errs with ErrNumber if not, and as CheckNumber does.
func (n *Node) Verify(ref, number string) (Device, error) {
	d, want, err := n.CheckNumber(ref)
	if err != nil {
		return Device{}, err
	}
	if !pairing.SameDigits(number, want) {
		return d, ErrNumber
	}
	rec, err := n.store.Update(d.pairID, func(r *registry.Device) { r.Verified = true })
	if err != nil {
		return Device{}, err
	}
	n.reloadPeer(rec.PairID)
	return n.device(rec), nil
}

// A NewPair is a pair of the last 24 hours, of this device or of one of its user's own.
type NewPair struct {
	kin.Notice
	// On is what this device calls the one that has the pair; "" is this device.
	On string `json:"on,omitempty"`
	// OnID is that device's ID; zero for this one.
	OnID identity.DeviceID `json:"on_id,omitzero"`
	// Undo says how far a request to end it is: asked, refused, or "".
	Undo string `json:"undo,omitempty"`
}

// Recent returns the pairs of the last 24 hours, newest first: of this device, and those
// that devices which are marked as own ones here told of.
func (n *Node) Recent() []NewPair {
	own, _, heard := n.kin.book.Recent(time.Now())
	out := make([]NewPair, 0, len(own)+len(heard))
	for _, o := range own {
		out = append(out, NewPair{Notice: o})
	}
	for _, h := range heard {
		p := NewPair{Notice: h.Notice, OnID: h.From, On: h.From.Short()}
		if rec, ok := n.store.ByID(h.From); ok {
			p.On = rec.Name
		}
		switch h.Undo {
		case kin.UndoAsked:
			p.Undo = "asked"
		case kin.UndoRefused:
			p.Undo = "refused"
		case kin.UndoNone, kin.UndoDone:
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b NewPair) int { return b.Paired.Compare(a.Paired) })
	return out
}

// Undo ends a pair of Recent, named by its OnID and ID. For one of another own device it
// asks that device, which ends the pair if it has marked this one as its own; it waits for
// the answer until ctx ends, and the request is kept for 24 hours. done says whether the
// pair is over. It errs with kin.ErrNotFound, kin.ErrOver, kin.ErrMay if the other device
// refuses, and if the request could not be stored.
func (n *Node) Undo(ctx context.Context, on identity.DeviceID, id kin.ID) (done bool, err error) {
	if on.IsZero() {
		return n.undoHere(ctx, id)
	}
	changes, end := n.kin.book.Watch()
	defer end()
	h, err := n.kin.book.AskUndo(time.Now(), on, id)
	for err == nil {
		switch h.Undo {
		case kin.UndoDone:
			return true, nil
		case kin.UndoRefused:
			return false, fmt.Errorf("kith: %w: it has not marked this device as its own", kin.ErrMay)
		case kin.UndoNone, kin.UndoAsked:
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return false, nil
		}
		_, _, heard := n.kin.book.Recent(time.Now())
		i := slices.IndexFunc(heard, func(h kin.Heard) bool { return h.From == on && h.Notice.ID == id })
		if i < 0 {
			return false, nil // it is older than 24 hours by now
		}
		h = heard[i]
	}
	return false, err
}

// undoHere ends a new pair of this device.
func (n *Node) undoHere(ctx context.Context, id kin.ID) (done bool, err error) {
	own, pairs, _ := n.kin.book.Recent(time.Now())
	i := slices.IndexFunc(own, func(o kin.Notice) bool { return o.ID == id })
	switch {
	case i < 0:
		return false, fmt.Errorf("kith: %w", kin.ErrNotFound)
	case own[i].Ended:
		return false, fmt.Errorf("kith: %w", kin.ErrOver)
	}
	_, err = n.Unpair(ctx, fmt.Sprintf("%x", pairs[i]))
	return err == nil, err
}

// undoFor ends a pair since an own device asks for it.
func (n *Node) undoFor(from identity.DeviceID, id kin.ID) kin.Status {
	pair, status := n.kin.book.Undoable(time.Now(), from, id)
	if status != kin.StatusOK {
		return status
	}
	rec, ok := n.store.Get(pair)
	if !ok || rec.State == registry.Tomb {
		return kin.StatusOver
	}
	ctx, cancel := context.WithCancel(n.ctx)
	cancel() // the other side is told in the background
	if _, err := n.Unpair(ctx, fmt.Sprintf("%x", pair)); err != nil {
		n.cfg.Logger.Warn("pair not undone", "peer", rec.ID.Short(), "err", err)
		return kin.StatusBusy
	}
	if by, ok := n.store.ByID(from); ok {
		n.tell(EventUndone, n.device(rec), "the new pair was undone on "+by.Name)
	}
	return kin.StatusOK
}
