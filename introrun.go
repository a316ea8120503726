package kith

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
)

const (
	// offerTurn is how long an offerer waits on the topic of one introduction, if several
	// devices introduce the same one: one at a time, so that two handshakes never cross.
	offerTurn = 20 * time.Second
	// commitPatience is how long a handshake that is durable here stays to see the other
	// side follow; after that the pair's own topics finish it.
	commitPatience = time.Minute
	// firstAgain and slowestAgain bound the wait after a handshake that failed.
	firstAgain   = 2 * time.Second
	slowestAgain = 5 * time.Minute
)

// meetings are the introductions that are being carried out: one for each device that
// this one offers to, and one for each introduction by which it joins.
type meetings struct {
	n   *Node
	all map[string]*meeting
	wg  sync.WaitGroup
}

// A meeting looks for one device.
type meeting struct {
	cancel context.CancelFunc
	news   chan struct{} // holds a token: its introductions are others than before
	key    string        // names them
}

// adjust begins and ends meetings, so that they are those that were accepted.
func (m *meetings) adjust() {
	want := make(map[string][]kin.Introduction)
	for _, in := range m.n.kin.book.Accepted(time.Now()) {
		name := "join " + in.ID.String()
		if in.Offers() {
			name = "offer " + in.Other.String()
		}
		want[name] = append(want[name], in)
	}
	for name, now := range m.all {
		switch key := keyOf(want[name]); {
		case key == "":
			now.cancel()
			delete(m.all, name)
		case key != now.key:
			now.key = key
			select {
			case now.news <- struct{}{}:
			default:
			}
		}
	}
	for name, list := range want {
		if m.all[name] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(m.n.ctx)
		one := &meeting{key: keyOf(list), cancel: cancel, news: make(chan struct{}, 1)}
		m.all[name] = one
		in := list[0]
		m.wg.Go(func() {
			if in.Offers() {
				m.n.offerTo(ctx, in.Other, one.news)
			} else {
				m.n.joinTo(ctx, in)
			}
		})
	}
}

func (m *meetings) close() {
	for _, one := range m.all {
		one.cancel()
	}
	m.wg.Wait()
}

func keyOf(list []kin.Introduction) string {
	keys := make([]string, 0, len(list))
	for _, in := range list {
		keys = append(keys, in.ID.String())
	}
	slices.Sort(keys)
	return strings.Join(keys, " ")
}

// accepted returns the introductions to one device that are to be carried out.
func (n *Node) accepted(id identity.DeviceID) []kin.Introduction {
	return slices.DeleteFunc(n.kin.book.Accepted(time.Now()), func(in kin.Introduction) bool { return in.Other != id })
}

// offerTo offers to a device until it is paired, by one introduction at a time. It goes
// on while a pair with it is not finished: only a device that has no record of that one
// joins again.
func (n *Node) offerTo(ctx context.Context, id identity.DeviceID, news <-chan struct{}) {
	wait := firstAgain
	for turn := 0; ctx.Err() == nil; turn++ {
		list := n.accepted(id)
		if len(list) == 0 {
			select {
			case <-news:
			case <-ctx.Done():
			}
			continue
		}
		switch n.runIntroduction(ctx, list[turn%len(list)], news) {
		case runPaired:
			return
		case runTime:
			wait = firstAgain
		case runFailed:
			if !pause(ctx, &wait) {
				return
			}
		}
	}
}

// joinTo joins by one introduction until there is a record of a pair with the device.
// What is not finished is finished on the pair's own topics: two pairs with one device
// must not cross.
func (n *Node) joinTo(ctx context.Context, in kin.Introduction) {
	for wait := firstAgain; ctx.Err() == nil; {
		if !n.awaitNoRecord(ctx, in.Other) {
			return
		}
		switch n.runIntroduction(ctx, in, nil) {
		case runPaired:
			return
		case runTime:
			wait = firstAgain
		case runFailed:
			if !pause(ctx, &wait) {
				return
			}
		}
	}
}

// turn is how long an introduction may be tried at a stretch.
func (n *Node) turn(in kin.Introduction) time.Duration {
	left := time.Until(in.Expires)
	if in.Offers() && len(n.accepted(in.Other)) > 1 {
		left = min(left, offerTurn)
	}
	return left
}

// awaitNoRecord waits until there is no record of a pair with a device. It reports false
// when ctx has ended.
func (n *Node) awaitNoRecord(ctx context.Context, id identity.DeviceID) bool {
	changes, end := n.store.Watch()
	defer end()
	for {
		if _, ok := n.store.ByID(id); !ok {
			return ctx.Err() == nil
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return false
		}
	}
}

// pause waits before another try, longer each time. It reports false when ctx has ended.
func pause(ctx context.Context, wait *time.Duration) bool {
	t := time.NewTimer(*wait)
	defer t.Stop()
	*wait = min(2**wait, slowestAgain)
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// runEnd is how a handshake of an introduction ended.
type runEnd uint8

const (
	runFailed runEnd = iota
	runPaired
	runTime // its time was over, here
)

// runIntroduction runs one handshake of an introduction, for its turn.
func (n *Node) runIntroduction(ctx context.Context, in kin.Introduction, news <-chan struct{}) runEnd {
	window := n.turn(in)
	if window <= 0 {
		return runFailed
	}
	began, role := time.Now(), pairing.Joiner
	if in.Offers() {
		role = pairing.Offerer
	}
	p, err := n.pair(n.ctx, code.Code{}, n.media, pairing.Config{
		Role: role, Keys: []code.Keys{code.IntroKeys(in.Secret)}, Method: code.MethodIntro, Lifetime: time.Until(in.Expires),
		AutoAccept: true, Pin: &pairing.Pin{ID: in.Other, WireGuard: in.WireGuard},
	}, findHow{hidden: true, vouchedBy: in.By, name: in.Name})
	if err != nil {
		n.cfg.Logger.Warn("introduction not carried out", "peer", in.Other.Short(), "err", err)
		return runFailed
	}
	timer := time.NewTimer(window)
	defer timer.Stop()
	records, end := n.store.Watch()
	defer end()
	prepared := false
	for {
		select {
		case <-ctx.Done():
			if rec, ok := n.store.ByID(in.Other); ok && prepared && rec.State == registry.Active {
				time.AfterFunc(linger, p.cancel) // the other side may still need this side's last message
			} else {
				p.cancel()
			}
			return runFailed
		case <-news:
			list := n.accepted(in.Other)
			if !slices.ContainsFunc(list, func(now kin.Introduction) bool { return now.ID == in.ID }) {
				p.cancel()
				return runTime
			}
			if !prepared {
				timer.Reset(n.turn(in))
			}
		case <-records:
			rec, there := n.store.ByID(in.Other)
			if there && role == pairing.Joiner && (rec.VouchedBy != in.By || rec.Created.Before(began)) {
				p.cancel() // it is of another way: two pairs with one device must not cross
				return runTime
			}
		case <-timer.C:
			p.cancel()
			return runTime
		case ev, ok := <-p.events:
			switch {
			case !ok || ev.Kind == pairing.EventFailed:
				p.cancel()
				return runFailed
			case ev.Kind == pairing.EventPaired:
				return runPaired // it lingers, and ends by itself
			case ev.Kind == pairing.EventPrepared:
				prepared = true
				timer.Reset(commitPatience)
			case ev.Kind == pairing.EventSecondDevice:
				n.warnStranger(in)
			}
		}
	}
}

// warnStranger says that somebody else than the introduced device has the secret.
func (n *Node) warnStranger(in kin.Introduction) {
	n.cfg.Logger.Warn("another device answers an introduction", "introducer", in.By.Short(), "peer", in.Other.Short())
	if rec, ok := n.store.ByID(in.By); ok && rec.State == registry.Active {
		n.tell(EventIntroduced, n.device(rec), "another device than \""+in.Name+"\" answered with the secret of this introduction; it was ignored")
	}
}
