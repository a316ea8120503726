package chat

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

const (
	// answerTimeout is how long a device may take to say that it has something.
	answerTimeout = 30 * time.Second
	// pingTimeout is how long it may take to answer when it has just come or gone.
	pingTimeout = 5 * time.Second
	// writeTimeout is how long a device may not read.
	writeTimeout = 30 * time.Second
	// laterDelay is how long news wait that are not for the author, and in a conversation of
	// more than smallRoom members all news: so many answers at once would be in the way of
	// the line itself.
	laterDelay = 200 * time.Millisecond
	smallRoom  = 16
	// writeBytes is about how much is written at once.
	writeBytes = 64 << 10
	// maxRefusals is how many conversations of a connection are refused with an answer.
	maxRefusals = 64
	// maxClaims is how many logs a device may say of a conversation that it has.
	maxClaims = 16 * maxLogs
)

// errHostile reports a device that does not keep to the protocol.
var errHostile = errors.New("chat: the device does not keep to the protocol")

// A link is a connection with a device. Service.mu guards its fields from shared on.
type link struct {
	s            *Service
	peer         *peer
	id           identity.DeviceID
	conn         net.Conn
	lesserCalled bool          // the device of the lesser ID opened it
	wake         chan struct{} // holds one token while there may be something to write
	gone         chan struct{} // closed when nothing more is read

	shared   map[ConvID]*shared
	out      []byte // frames that go first
	due      time.Time
	pinged   bool
	left     bool
	refusals int
}

// shared is a conversation in which both sides of a link are.
type shared struct {
	c        *convo
	tellAll  bool                      // a whole vector is to go
	theirs   bool                      // theirs has come
	has      map[logKey]uint64         // what they say they have
	claimed  map[identity.DeviceID]int // logs in has, by author
	pulls    int                       // parts of logs that they are asked for
	told     map[logKey]claim          // what they were told
	now      map[logKey]struct{}       // of which they are to be told at once
	later    map[logKey]struct{}       // or with other news
	push     map[logKey]struct{}       // logs of this device that have more for them
	sent     map[logKey]uint64         // up to where; until they say that they have it
	serve    map[logKey]sending        // what they have asked for
	receipts bool                      // there may be receipts for them
	stamps   map[receiptKey]uint64     // of those that they were given
	asked    time.Time                 // when a gap was told last
}

// sending is a part of a log: entries from next up to upto.
type sending struct{ next, upto uint64 }

type receiptKey struct{ by, author identity.DeviceID }

func newLink(s *Service, p *peer, conn net.Conn, lesserCalled bool) *link {
	return &link{
		s: s, peer: p, id: p.id, conn: conn, lesserCalled: lesserCalled, wake: make(chan struct{}, 1), gone: make(chan struct{}),
		shared: make(map[ConvID]*shared), out: appendFrame(nil, frameHello, []byte{wireVersion}),
	}
}

// share begins a conversation on the link. s.mu is held.
func (l *link) share(c *convo) {
	l.shared[c.id] = &shared{
		c: c, tellAll: true, has: make(map[logKey]uint64), claimed: make(map[identity.DeviceID]int), told: make(map[logKey]claim), now: make(map[logKey]struct{}),
		later: make(map[logKey]struct{}), push: make(map[logKey]struct{}), sent: make(map[logKey]uint64),
		serve: make(map[logKey]sending), stamps: make(map[receiptKey]uint64),
	}
	l.poke()
}

// soon has the other side told what is due later. s.mu is held.
func (l *link) soon() {
	if l.due.IsZero() {
		l.due = time.Now().Add(laterDelay)
		l.poke()
	}
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// ping asks whether the other side is still there. s.mu is held.
func (l *link) ping() {
	if l.pinged {
		return
	}
	l.pinged = true
	l.out = appendFrame(l.out, framePing, make([]byte, 8))
	_ = l.conn.SetReadDeadline(time.Now().Add(pingTimeout)) // a connection without is ended by the next write
	l.poke()
}

// run serves the link until it ends.
func (l *link) run() {
	defer context.AfterFunc(l.s.ctx, func() { l.conn.Close() })()
	var wg sync.WaitGroup
	wg.Go(l.write)
	err := l.read()
	close(l.gone)
	l.s.mu.Lock()
	if errors.Is(err, errHostile) || errors.Is(err, errFrame) || errors.Is(err, errEntry) {
		l.peer.shut = time.Now().Add(penalty)
		l.peer.retry = max(l.peer.retry, penalty)
	}
	l.s.leave(l)
	l.s.mu.Unlock()
	wg.Wait()
	l.s.cfg.Logger.Debug("chat connection ended", "peer", l.id.Short(), "err", err)
}

// outstanding reports whether the other side owes an answer. s.mu is held.
func (l *link) outstanding() bool {
	if l.pinged {
		return true
	}
	for _, sh := range l.shared {
		if len(sh.sent) > 0 {
			return true
		}
	}
	return false
}

// await sets how long the other side may be silent. s.mu is held.
func (l *link) await() {
	deadline := time.Time{}
	if l.outstanding() {
		deadline = time.Now().Add(answerTimeout)
	}
	_ = l.conn.SetReadDeadline(deadline) // as in ping
}

// A part is something to write: bytes, or an entry.
type part struct {
	raw []byte
	c   *convo
	spot
}

// write writes what there is to write until the link ends.
func (l *link) write() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		parts, load, wait := l.gather()
		for _, c := range load {
			if err := l.s.load(c); err != nil {
				l.s.cfg.Logger.Error("conversation not read", "conv", c.id, "err", err)
				l.conn.Close()
				return
			}
		}
		if len(parts) > 0 {
			if err := l.send(parts); err != nil {
				l.conn.Close()
				return
			}
		}
		if len(parts) > 0 || len(load) > 0 {
			continue
		}
		timer.Reset(wait)
		select {
		case <-l.wake:
		case <-timer.C:
		case <-l.gone:
			return
		}
	}
}

func (l *link) send(parts []part) error {
	var buf []byte
	for _, p := range parts {
		if p.c == nil {
			buf = append(buf, p.raw...)
		} else if raw, ok := l.s.raw(p.c, p.logKey, p.seq); ok {
			buf = appendFrame(buf, frameEntry, raw)
		} else {
			// It was let go of just now. What follows would be a gap: begin anew.
			l.s.mu.Lock()
			if sh := l.shared[p.c.id]; sh != nil {
				delete(sh.sent, p.logKey)
			}
			l.s.mu.Unlock()
			return errStale
		}
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("chat: %w", err)
	}
	if err := writeFrames(l.conn, buf); err != nil {
		return err
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if !l.pinged {
		l.await()
	}
	return nil
}

// gather collects what there is to write, and conversations that have to be read first.
// If there is nothing, it says when to look again.
func (l *link) gather() (parts []part, load []*convo, wait time.Duration) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	buf := l.out
	l.out = nil
	later := !l.due.IsZero() && !time.Now().Before(l.due)
	if later {
		l.due = time.Time{}
	}
	for _, sh := range l.shared {
		if sh.c.book == nil {
			load = append(load, sh.c)
			continue
		}
		buf = l.vectors(buf, sh, later)
		if later && sh.theirs && sh.receipts && sh.c.conv.Room {
			buf = l.receipts(buf, sh)
		}
	}
	if len(buf) > 0 {
		parts = append(parts, part{raw: buf})
	}
	for _, sh := range l.shared {
		if sh.theirs && sh.c.book != nil && len(parts) < writeBytes/512 {
			parts = l.entries(parts, sh)
		}
	}
	wait = time.Hour
	if !l.due.IsZero() {
		wait = max(time.Until(l.due), 0)
	}
	return parts, load, wait
}

// vectors appends what the other side is to be told of what is here.
func (l *link) vectors(buf []byte, sh *shared, later bool) []byte {
	b := sh.c.book
	if sh.tellAll {
		sh.tellAll = false
		clear(sh.now)
		clear(sh.later)
		var claims []claim
		for _, log := range b.list {
			c := claim{log.logKey, log.last, min(log.read, log.last)}
			sh.told[log.logKey] = c
			claims = append(claims, c)
		}
		return appendVector(buf, sh.c.id, true, claims)
	}
	var claims []claim
	news := func(keys map[logKey]struct{}, all bool) {
		for k := range keys {
			log := b.logs[k]
			if log == nil || !all && k.author != l.id && sh.has[k] >= log.last {
				continue
			}
			if c := (claim{k, log.last, min(log.read, log.last)}); sh.told[k] != c {
				sh.told[k] = c
				claims = append(claims, c)
			}
		}
		clear(keys)
	}
	news(sh.now, true)
	if later {
		news(sh.later, false)
	}
	if len(claims) == 0 {
		return buf
	}
	return appendVector(buf, sh.c.id, false, claims)
}

// entries appends entries that the other side lacks or has asked for.
func (l *link) entries(parts []part, sh *shared) []part {
	b := sh.c.book
	own := make([]*logState, 0, len(sh.push))
	for k := range sh.push {
		if log := b.logs[k]; log != nil {
			own = append(own, log)
		}
	}
	slices.SortFunc(own, func(x, y *logState) int { return int(x.index) - int(y.index) })
	for _, log := range own {
		if len(parts) >= writeBytes/512 {
			return parts
		}
		next := max(sh.sent[log.logKey], sh.has[log.logKey]) + 1
		var ok bool
		if parts, next, ok = l.part(parts, sh, log, next, log.last); ok {
			sh.sent[log.logKey] = next - 1
		}
		if next > log.last || !ok {
			delete(sh.push, log.logKey)
		}
	}
	for k, want := range sh.serve {
		if len(parts) >= writeBytes/512 {
			return parts
		}
		log := b.logs[k]
		ok := log != nil
		if ok {
			parts, want.next, ok = l.part(parts, sh, log, want.next, want.upto)
			sh.serve[k] = want
		}
		if !ok || want.next > want.upto {
			delete(sh.serve, k)
		}
	}
	return parts
}

// part appends some entries of a log, and where it starts if that is after next. It
// reports what comes next, and false if that cannot be had here.
func (l *link) part(parts []part, sh *shared, log *logState, next, upto uint64) ([]part, uint64, bool) {
	if next <= log.base {
		st := log.started
		if st == nil || st.seq != log.base {
			st = &start{conv: sh.c.id, logKey: log.logKey, seq: log.base, lamport: log.baseLamport}
			switch log.author {
			case l.s.self:
				st.sign(l.s.cfg.Self)
				log.started = st
			case l.id: // it needs no signature of its own
			default:
				return parts, next, false
			}
		}
		parts = append(parts, part{raw: appendFrame(nil, frameStart, st.encode())})
		next = log.base + 1
	}
	for ; next <= min(upto, log.last) && len(parts) < writeBytes/512; next++ {
		parts = append(parts, part{c: sh.c, spot: spot{log.logKey, next}})
	}
	return parts, next, true
}

// read serves what comes until the connection ends or breaks the protocol.
func (l *link) read() error {
	in := bufio.NewReaderSize(l.conn, 32<<10)
	kind, body, err := readFrame(in)
	if err != nil {
		return err
	}
	if kind != frameHello || len(body) < 1 || body[0] != wireVersion {
		return fmt.Errorf("%w: it is of another version", errHostile)
	}
	b := batch{l: l}
	for {
		if b.size() > 0 && (b.size() >= batchJobs || !buffered(in)) {
			if err := b.flush(); err != nil {
				return err
			}
		}
		kind, body, err := readFrame(in)
		if err != nil {
			return err
		}
		if err := l.slow(1 + float64(len(body))/2048); err != nil {
			return err
		}
		if kind != frameEntry && kind != frameStart {
			if err := b.flush(); err != nil {
				return err
			}
			if err := l.take(kind, body); err != nil {
				return err
			}
		} else if err := b.add(kind, body); err != nil {
			return err
		}
		l.s.mu.Lock()
		l.pinged = l.pinged && kind != framePong
		if !l.pinged {
			l.await()
		}
		l.s.mu.Unlock()
	}
}

// slow waits until the other side may have sent that much.
func (l *link) slow(frames float64) error {
	wait := l.s.allow(l.peer, frames)
	if wait == 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-l.s.ctx.Done():
		return ErrClosed
	}
}

// take serves a frame that is no entry.
func (l *link) take(kind byte, body []byte) error {
	switch kind {
	case frameVector:
		conv, flags, claims, err := decodeVector(body)
		if err != nil {
			return err
		}
		return l.takeVector(conv, flags, claims)
	case frameWant:
		conv, k, has, err := decodeWant(body)
		if err != nil {
			return err
		}
		l.takeWant(conv, k, has)
	case frameRefused:
		if len(body) != 16 {
			return errFrame
		}
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		if sh := l.shared[ConvID(body)]; sh != nil {
			sh.theirs = false
			clear(sh.sent)
			clear(sh.push)
			clear(sh.serve)
		}
	case frameReceipt:
		r, err := decodeReceipt(body)
		if err != nil {
			return err
		}
		return l.takeReceipt(&r)
	case framePing:
		if len(body) != 8 {
			return errFrame
		}
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		if len(l.out) < writeBytes {
			l.out = appendFrame(l.out, framePong, binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(body)))
			l.poke()
		}
	}
	return nil
}
