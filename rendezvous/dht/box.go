package dht

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

const (
	hotFor       = 2 * time.Minute        // polling is fast after Join and Check
	warmFor      = 15 * time.Second       // and after Publish
	quickFor     = 30 * time.Second       // and fastest for this long
	quickPoll    = 750 * time.Millisecond // at first
	hotPoll      = 2 * time.Second        // while hot
	linkedPoll   = 3 * time.Second        // at least, while frames come directly
	slowPoll     = time.Minute            // in the end
	republish    = 55 * time.Minute       // of a frame that is still the newest (BEP 44: hourly)
	putBurst     = 3                      // frames that are put at once
	putPace      = time.Second            // between frames after those
	putSlow      = 5 * time.Second        // between frames when that has gone on for long, or they go directly
	putQuiet     = 30 * time.Second       // without a frame, and the pace is fast again
	linger       = 3 * time.Second        // that a frame may still be put after the last session has closed
	rejoinMost   = time.Hour              // age of a frame that a later session is still given
	keepLeast    = 100 * time.Millisecond // between two looks after the place
	announceFor  = 20 * time.Minute       // between announcements
	announceSoon = 30 * time.Second       // between announcements when the network may have changed
)

// A box is one topic in the DHT, for all sessions of this device that use it.
type box struct {
	e      *Exchange
	topic  rendezvous.Topic
	keys   *keys
	places []*place
	cancel context.CancelFunc
	wakeR  chan struct{} // to read now
	wakeW  chan struct{} // to put now
	wakeK  chan struct{} // to look after the place now
	wakeD  chan struct{} // to look after the direct ways now

	mu        sync.Mutex // guards the fields below
	sessions  map[*session]struct{}
	hotSince  time.Time
	hotUntil  time.Time
	warmed    time.Time // when another topic's frame last made this one hot
	out       [2]outgoing
	in        [2]incoming
	announced time.Time
	direct    direct
}

// outgoing is the newest frame of a slot that this device writes.
type outgoing struct {
	frame  []byte
	dirty  bool  // not put yet
	busy   bool  // being put
	seq    int64 // of the last put; 0 before the first
	stale  bool  // a node has a newer one: ask before the next put
	put    time.Time
	came   time.Time // when the frame was published
	began  time.Time // when frames began to follow each other
	used   int       // of the burst
	failed int       // puts in a row that nobody took
}

// incoming is the newest frame of a slot that this device reads.
type incoming struct {
	seq   int64
	frame []byte
	at    time.Time
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func newBox(e *Exchange, topic rendezvous.Topic) *box {
	b := &box{
		e: e, topic: topic, keys: derive(topic), sessions: make(map[*session]struct{}),
		wakeR: make(chan struct{}, 1), wakeW: make(chan struct{}, 1), wakeK: make(chan struct{}, 1), wakeD: make(chan struct{}, 1),
	}
	for _, eng := range e.engines {
		b.places = append(b.places, &place{e: eng, keys: b.keys})
	}
	return b
}

// start runs the box until ctx ends.
func (b *box) start(ctx context.Context) {
	ctx, b.cancel = context.WithCancel(ctx)
	loops := []func(context.Context){b.readAll, b.writeAll, b.keep}
	if !b.e.cfg.NoShortcut {
		loops = append(loops, b.directAll)
	}
	for _, loop := range loops {
		b.e.wg.Go(func() { loop(ctx) })
	}
}

// heat makes polling fast for a while.
func (b *box) heat(d time.Duration) {
	now := time.Now()
	b.mu.Lock()
	anew := now.After(b.hotUntil) || now.Sub(b.hotSince) > quickFor
	if anew {
		b.hotSince = now
		b.direct.again(now)
	}
	if until := now.Add(d); until.After(b.hotUntil) {
		b.hotUntil = until
	}
	b.mu.Unlock()
	if anew {
		b.wake()
	}
}

// wake has everything looked after at once.
func (b *box) wake() {
	for _, c := range []chan struct{}{b.wakeR, b.wakeW, b.wakeK, b.wakeD} {
		poke(c)
	}
}

// warm is heat because of another topic's frame: the answer may come here. It
// counts once a minute.
func (b *box) warm() {
	b.mu.Lock()
	now := time.Now()
	again := now.Sub(b.warmed) > slowPoll
	if again {
		b.warmed = now
	}
	b.mu.Unlock()
	if again {
		b.heat(warmFor)
	}
}

func (b *box) hot(now time.Time) bool { return now.Before(b.hotUntil) }

// interval is how long to wait until the next reading; b.mu is held.
func (b *box) interval(now time.Time) time.Duration {
	wait := hotPoll
	switch {
	case b.hot(now) && now.Sub(b.hotSince) < quickFor:
		wait = quickPoll
	case !b.hot(now):
		wait = min(hotPoll+now.Sub(b.hotUntil)/3, slowPoll)
	}
	if b.direct.proven(now) {
		wait = max(wait, linkedPoll)
	}
	return wait*9/10 + rand.N(wait/5) //nolint:gosec // jitter
}

// uses says which slots the open sessions write and read; b.mu is held.
func (b *box) uses() (write, read [2]bool) {
	for s := range b.sessions {
		if s.writes() {
			write[s.slot] = true
		}
		if s.reads() {
			read[s.readSlot()] = true
		}
	}
	return write, read
}

// readAll polls the slots that are read.
func (b *box) readAll(ctx context.Context) {
	for {
		b.mu.Lock()
		_, read := b.uses()
		b.mu.Unlock()
		for slot := range read {
			if read[slot] {
				b.readSlot(ctx, slot)
			}
		}
		b.mu.Lock()
		wait := b.interval(time.Now())
		b.mu.Unlock()
		if sleep(ctx, wait, b.wakeR) != nil {
			return
		}
	}
}

// sleep waits, or until woken. It errs when ctx ends.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (b *box) readSlot(ctx context.Context, slot int) {
	b.mu.Lock()
	have := b.in[slot].seq
	b.mu.Unlock()
	width := readFrom
	switch n := b.e.topics(); {
	case n > 2*fewTopics:
		width = 1
	case n > fewTopics:
		width = 2
	}
	var wg sync.WaitGroup
	for _, p := range b.places {
		wg.Go(func() {
			if frame, seq, ok := p.read(ctx, slot, have, width); ok {
				b.received(slot, seq, frame)
			}
		})
	}
	wg.Wait()
}

// received delivers a frame of the mailbox, each sequence number once.
func (b *box) received(slot int, seq int64, frame []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if seq <= b.in[slot].seq {
		return
	}
	b.in[slot] = incoming{seq, frame, time.Now()}
	b.e.stats.fromItems.Add(1)
	b.deliver(slot, frame, netip.AddrPort{})
}

// deliver hands a frame to the sessions that read a slot; b.mu is held.
func (b *box) deliver(slot int, frame []byte, from netip.AddrPort) {
	for s := range b.sessions {
		if s.reads() && s.readSlot() == slot {
			s.Deliver(rendezvous.Message{Frame: bytes.Clone(frame), Exchange: b.e.Name(), From: from})
		}
	}
}

// publish makes a frame the newest of a slot.
func (b *box) publish(slot int, frame []byte) {
	now := time.Now()
	b.mu.Lock()
	o := &b.out[slot]
	if !bytes.Equal(o.frame, frame) { // the same one again is there already
		o.frame, o.dirty = frame, true
	}
	if now.Sub(o.came) > putQuiet {
		o.began, o.used = now, 0
	}
	o.came = now
	send := b.direct.publish(now, b.voices(), o.frame, slot)
	b.mu.Unlock()
	b.e.transmit(b.keys, send)
	b.heat(warmFor)
	poke(b.wakeW)
}

// due says when the frame of a slot should be put; b.mu is held.
func (b *box) due(now time.Time, o *outgoing) time.Time {
	switch {
	case o.frame == nil:
		return now.Add(republish)
	case !o.dirty:
		return o.put.Add(republish)
	case o.failed > 0:
		return o.put.Add(min(time.Duration(o.failed)*time.Second, slowPoll))
	case o.used < putBurst:
		return now
	case b.direct.proven(now):
		return o.put.Add(putSlow)
	}
	return o.put.Add(min(max(now.Sub(o.began)/10, putPace), putSlow))
}

// writeAll puts what is published, at a bounded pace, and what is old again.
func (b *box) writeAll(ctx context.Context) {
	for {
		next := time.Now().Add(republish)
		for slot := range b.out {
			b.mu.Lock()
			due := b.due(time.Now(), &b.out[slot])
			b.mu.Unlock()
			if !due.After(time.Now()) {
				b.writeSlot(ctx, slot)
				b.mu.Lock()
				due = b.due(time.Now(), &b.out[slot])
				b.mu.Unlock()
			}
			if due.Before(next) {
				next = due
			}
		}
		if sleep(ctx, max(time.Until(next), time.Millisecond), b.wakeW) != nil {
			return
		}
	}
}

func (b *box) writeSlot(ctx context.Context, slot int) {
	var nodes [][]*near
	count := 0
	for _, p := range b.places {
		all := p.all()
		nodes = append(nodes, all)
		count += len(all)
	}
	b.mu.Lock()
	o := &b.out[slot]
	if write, _ := b.uses(); count == 0 || !write[slot] && !o.dirty { // whoever left publishes no more
		o.put = time.Now() // told when the place is found
		if count == 0 {
			o.failed++
		}
		b.mu.Unlock()
		return
	}
	frame, ask, last := o.frame, o.seq == 0 || o.stale, o.seq
	again := !o.dirty
	o.dirty, o.stale, o.busy = false, false, true
	if !again {
		o.used++
	}
	b.mu.Unlock()

	seq := max(b.e.clock().UnixMilli()+b.keys.shift, last+1)
	if again && !ask {
		seq = last // the same item once more, so that it is kept
	}
	if ask {
		seq = max(seq, b.highest(ctx, nodes, slot, max(seq, last))+1)
	}
	took, newer := b.writeTo(ctx, nodes, slot, seq, frame)
	b.mu.Lock()
	defer b.mu.Unlock()
	o.seq, o.put, o.busy = seq, time.Now(), false
	o.stale = newer && !ask
	switch {
	case ctx.Err() != nil:
	case 2*took >= min(count, storeGroups):
		o.failed = 0
		b.e.stats.puts.Add(1)
	default: // the other side may not ask those few that took it
		o.failed++
		o.dirty = true
	}
	if o.stale { // under a higher number
		o.dirty = true
	}
}

func (b *box) highest(ctx context.Context, nodes [][]*near, slot int, now int64) int64 {
	out := make([]int64, len(b.places))
	var wg sync.WaitGroup
	for i, p := range b.places {
		wg.Go(func() { out[i] = p.seen(ctx, nodes[i], slot, now) })
	}
	wg.Wait()
	return slices.Max(append(out, now-1))
}

func (b *box) writeTo(ctx context.Context, nodes [][]*near, slot int, seq int64, frame []byte) (took int, newer bool) {
	items := b.keys.items(slot, seq, frame)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, p := range b.places {
		wg.Go(func() {
			n, ahead := p.write(ctx, nodes[i], slot, seq, items)
			mu.Lock()
			defer mu.Unlock()
			took, newer = took+n, newer || ahead
		})
	}
	wg.Wait()
	return took, newer
}

// keep looks for the place, and announces this device there.
func (b *box) keep(ctx context.Context) {
	for {
		wait := homeFor
		var wg sync.WaitGroup
		for _, p := range b.places {
			wg.Go(func() {
				if now, _ := p.due(time.Now()); now && p.find(ctx) {
					b.moved()
				}
			})
		}
		wg.Wait()
		for _, p := range b.places {
			_, in := p.due(time.Now())
			wait = min(wait, max(in, homeRetry))
		}
		if !b.e.cfg.NoShortcut {
			wait = min(wait, b.meet(ctx))
		}
		wait = max(wait, keepLeast)
		if sleep(ctx, wait+rand.N(wait/10), b.wakeK) != nil { //nolint:gosec // jitter
			return
		}
	}
}

// moved reads and puts what waited for the place, and takes what others had to the
// nodes that are there now.
func (b *box) moved() {
	b.mu.Lock()
	for slot := range b.out {
		if o := &b.out[slot]; !o.dirty || o.failed > 0 {
			o.failed, o.put = 0, time.Time{}
		}
	}
	b.announced = time.Time{}
	b.mu.Unlock()
	poke(b.wakeW)
	poke(b.wakeR)
}

// pendingFrame reports whether a frame was published that too few nodes have yet;
// b.mu is held.
func (b *box) pendingFrame() bool {
	return b.out[0].dirty || b.out[1].dirty || b.out[0].busy || b.out[1].busy
}
