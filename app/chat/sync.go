package chat

import (
	"time"

	"github.com/kithproject/kith/identity"
)

const (
	// pullTimeout is how long a device may take for the next entry that it was asked for.
	pullTimeout = 10 * time.Second
	// gapPause is how long it is not told again that something is missing.
	gapPause = time.Second
	// maxPulls is how many logs of a conversation one device is asked for at once.
	maxPulls = 64
)

// A pull is a part of a log that a device was asked for.
type pull struct {
	link *link
	sh   *shared // of the link
	upto uint64
	at   time.Time // of the last that came
}

// sharedWith returns a conversation of the link, read; nil: it is none, which the other
// side is told.
func (l *link) sharedWith(id ConvID) (*shared, error) {
	l.s.mu.Lock()
	sh := l.shared[id]
	if sh == nil && l.refusals < maxRefusals {
		l.refusals++
		l.out = appendFrame(l.out, frameRefused, id[:])
		l.poke()
	}
	l.s.mu.Unlock()
	if sh == nil {
		return nil, nil
	}
	return sh, l.s.load(sh.c)
}

// takeVector takes what the other side has.
func (l *link) takeVector(conv ConvID, flags byte, claims []claim) error {
	sh, err := l.sharedWith(conv)
	if sh == nil || err != nil {
		return err
	}
	s, c := l.s, sh.c
	var own []claim
	s.mu.Lock()
	if flags&vectorBegin != 0 {
		clear(sh.has)
		clear(sh.claimed)
		clear(sh.sent)
		sh.theirs = false
	}
	for _, cl := range claims {
		if cl.author != s.self && !c.ids[cl.author] {
			continue
		}
		if _, ok := sh.has[cl.logKey]; !ok {
			if len(sh.has) >= maxClaims || sh.claimed[cl.author] >= maxLogs {
				s.mu.Unlock()
				return errHostile
			}
			sh.claimed[cl.author]++
		}
		has := max(sh.has[cl.logKey], cl.has)
		sh.has[cl.logKey] = has
		if has >= sh.sent[cl.logKey] {
			delete(sh.sent, cl.logKey)
		}
		if cl.author == s.self {
			own = append(own, cl)
		}
	}
	if flags&vectorEnd != 0 {
		sh.theirs, sh.receipts = true, true
		l.peer.retry = 0 // it is well: if it breaks, another is tried soon
		for _, log := range c.book.list {
			if log.author == s.self && max(sh.sent[log.logKey], sh.has[log.logKey]) < log.last {
				sh.push[log.logKey] = struct{}{}
			}
		}
		for k := range sh.has {
			s.consider(c, k)
		}
		l.poke()
		l.soon()
	} else if sh.theirs {
		for _, cl := range claims {
			s.consider(c, cl.logKey)
		}
	}
	s.mu.Unlock()
	s.takeClaims(c, l.id, own)
	return nil
}

// takeClaims takes how far a member is with logs of this device.
func (s *Service) takeClaims(c *convo, member identity.DeviceID, claims []claim) {
	type news struct {
		log      LogID
		from, to uint64 // after from
	}
	var states []news
	var moved []item
	s.mu.Lock()
	for _, cl := range claims {
		if cl.author != s.self {
			continue
		}
		was := c.book.members[member][cl.log]
		if c.book.advance(member, cl.log, progress{delivered: cl.has, read: cl.read}) {
			is := c.book.members[member][cl.log]
			moved = append(moved, progressItem(member, cl.log, is))
			states = append(states, news{cl.log, was.read, is.read}, news{cl.log, max(was.delivered, is.read), is.delivered})
		}
	}
	if len(moved) > 0 {
		_ = s.submit(c, &job{notes: moved}) // after Close it comes again
		s.publishConv(c)
		c.tell()
	}
	s.mu.Unlock()
	for _, n := range states {
		s.publishStates(c, n.log, n.from+1, n.to)
	}
}

func progressItem(member identity.DeviceID, log LogID, p progress) item {
	return item{itemProgress, appendStep(append([]byte(nil), member[:]...), log, p)}
}

// takeWant takes what the other side asks for.
func (l *link) takeWant(conv ConvID, k logKey, has uint64) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	sh := l.shared[conv]
	if sh == nil || sh.c.book == nil {
		return
	}
	if log := sh.c.book.logs[k]; log != nil && has < log.last {
		sh.serve[k] = sending{has + 1, log.last}
		l.poke()
	}
}

// consider asks somebody for a log of which others have more, unless its author is there
// and sends it by itself. Of those who are asked for much already it asks when that is
// over. s.mu is held.
func (s *Service) consider(c *convo, k logKey) {
	if c.book == nil || c.pulls[k] != nil {
		return
	}
	last := uint64(0)
	if log := c.book.logs[k]; log != nil {
		last = log.last
	} else if c.book.perAuth[k.author] >= maxLogs {
		return
	}
	var best *link
	for _, l := range s.links() {
		sh := l.shared[c.id]
		if sh == nil || !sh.theirs || sh.has[k] <= last {
			continue
		}
		if l.id == k.author {
			return
		}
		if sh.pulls < maxPulls && (best == nil || sh.has[k] > best.shared[c.id].has[k]) {
			best = l
		}
	}
	if best == nil {
		return
	}
	if !c.watched {
		s.watchPulls(c)
	}
	sh := best.shared[c.id]
	c.pulls[k] = &pull{link: best, sh: sh, upto: sh.has[k], at: time.Now()}
	sh.pulls++
	best.out = appendWant(best.out, c.id, k, last)
	best.poke()
}

// pulled ends a pull. After the last one of a link it is asked for more. s.mu is held.
func (s *Service) pulled(c *convo, k logKey, pl *pull) {
	delete(c.pulls, k)
	if pl.sh.pulls--; pl.sh.pulls == 0 && !pl.link.left {
		for k := range pl.sh.has {
			s.consider(c, k)
		}
	}
	s.consider(c, k)
}

// watchPulls has others asked when a device does not give what it says it has. s.mu is
// held.
func (s *Service) watchPulls(c *convo) {
	c.watched = true
	time.AfterFunc(pullTimeout, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return
		}
		for k, pl := range c.pulls {
			if time.Since(pl.at) < pullTimeout {
				continue
			}
			if _, ok := pl.sh.has[k]; ok { // it was not true
				delete(pl.sh.has, k)
				pl.sh.claimed[k.author]--
			}
			s.pulled(c, k, pl)
		}
		if c.watched = len(c.pulls) > 0; c.watched {
			s.watchPulls(c)
		}
	})
}

// stored has others told of what is here now. s.mu is held.
func (s *Service) stored(c *convo, p *plan) {
	links := s.links()
	for k, h := range p.heads {
		if pl := c.pulls[k]; pl != nil {
			if pl.at = time.Now(); h.seq >= pl.upto {
				s.pulled(c, k, pl)
			}
		}
		if k.author != s.self {
			s.dirty(c, k)
			continue
		}
		for _, l := range links {
			sh := l.shared[c.id]
			if sh == nil {
				continue
			}
			if has := sh.has[k]; has > 0 {
				c.book.advance(l.id, k.log, progress{delivered: has})
			}
			if sh.has[k] < h.seq {
				sh.push[k] = struct{}{}
				l.poke()
			}
		}
	}
	if s.mail != nil {
		s.mail.poke()
	}
}

// dirty says that what is here of another's log has changed: it is told at once, others
// later. s.mu is held.
func (s *Service) dirty(c *convo, k logKey) {
	if c.stale == nil {
		c.stale = make(map[identity.DeviceID]bool)
	}
	c.stale[k.author] = true
	if s.mail != nil {
		s.mail.news(c, k)
	}
	for _, l := range s.links() {
		sh := l.shared[c.id]
		switch {
		case sh == nil:
		case l.id == k.author && len(c.ids) <= smallRoom:
			sh.now[k] = struct{}{}
			l.poke()
		default:
			sh.later[k] = struct{}{}
			sh.receipts = sh.receipts || l.id != k.author
			l.soon()
		}
	}
}

// pass sends what has come from its author, and can be, on to those who are not connected
// to the author. This device need not have it on disk for that: it does not say so.
func (s *Service) pass(c *convo, p *plan) {
	if s.cfg.Pass == nil || !p.room {
		return
	}
	to := make(map[identity.DeviceID][]identity.DeviceID) // of authors
	for i := range p.items {
		e, from := p.entries[i], p.from[i]
		if e == nil || from == nil || from.id != e.author {
			continue
		}
		if _, known := to[e.author]; !known {
			to[e.author] = s.cfg.Pass(c.id, e.author)
		}
		if len(to[e.author]) == 0 {
			continue
		}
		raw := e.encode()
		s.mu.Lock()
		for _, id := range to[e.author] {
			if l := s.linkTo(id); l != nil && id != e.author {
				l.pass(c, e, raw)
			}
		}
		s.mu.Unlock()
	}
}

// pass writes an entry of another author, unless the other side has it or does not keep up.
// s.mu is held.
func (l *link) pass(c *convo, e *entry, raw []byte) {
	sh := l.shared[c.id]
	if sh == nil || !sh.theirs || sh.has[e.logKey] >= e.seq || len(l.out) > writeBytes {
		return
	}
	l.out = appendFrame(l.out, frameEntry, raw)
	l.poke()
}

// A batch is what has come and is to be kept at once.
type batch struct {
	l       *link
	entries []*entry
	starts  []*start
	order   []ConvID
}

func (b *batch) size() int { return len(b.entries) + len(b.starts) }

// add takes an entry or a start. It errs if it is none.
func (b *batch) add(kind byte, body []byte) error {
	if kind == frameStart {
		st, err := decodeStart(body)
		if err != nil {
			return err
		}
		if err := b.flush(); err != nil { // what came before comes before it
			return err
		}
		b.starts = append(b.starts, &st)
		return b.flush()
	}
	e, err := decodeEntry(body)
	if err != nil {
		return err
	}
	b.entries = append(b.entries, &e)
	return nil
}

// flush keeps what is there, durably. It errs if something is not genuine or the disk
// does.
func (b *batch) flush() error {
	if b.size() == 0 {
		return nil
	}
	s := b.l.s
	jobs := make(map[*shared]*job)
	job := func(conv ConvID) (*shared, *job, error) {
		sh, err := b.l.sharedWith(conv)
		if sh == nil || err != nil {
			return nil, nil, err
		}
		return sh, jobOf(jobs, sh, b.l), nil
	}
	for _, st := range b.starts {
		sh, j, err := job(st.conv)
		switch {
		case err != nil:
			return err
		case sh == nil:
		case st.author != s.self && !st.genuine():
			return errHostile
		default:
			j.starts = append(j.starts, st)
		}
	}
	for _, e := range b.entries {
		sh, j, err := job(e.conv)
		switch {
		case err != nil:
			return err
		case sh == nil || !b.l.wanted(sh, e):
		case !e.genuine():
			return errHostile
		default:
			j.entries = append(j.entries, e)
		}
	}
	b.entries, b.starts = nil, nil
	for sh, j := range jobs {
		if err := b.l.keep(sh, j); err != nil {
			return err
		}
	}
	return nil
}

func jobOf(jobs map[*shared]*job, sh *shared, l *link) *job {
	j := jobs[sh]
	if j == nil {
		j = &job{from: l}
		jobs[sh] = j
	}
	return j
}

// wanted reports whether an entry may be news. One that is here already is said to be
// here.
func (l *link) wanted(sh *shared, e *entry) bool {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if log := sh.c.book.logs[e.logKey]; log != nil && log.last >= e.seq {
		if len(sh.c.ids) <= smallRoom {
			sh.now[e.logKey] = struct{}{}
		} else {
			sh.later[e.logKey] = struct{}{}
			l.soon()
		}
		return false
	}
	return e.author == s.self || sh.c.ids[e.author]
}

// keep writes what has come and says what is missing.
func (l *link) keep(sh *shared, j *job) error {
	s := l.s
	if len(j.entries)+len(j.starts) == 0 {
		l.poke() // to tell what is here already
		return nil
	}
	s.mu.Lock()
	err := s.submit(sh.c, j)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	r := <-j.done
	switch {
	case r.err != nil:
		return r.err
	case r.refused:
		return errHostile
	case r.gap:
		s.mu.Lock()
		defer s.mu.Unlock()
		if time.Since(sh.asked) > gapPause {
			sh.asked, sh.tellAll = time.Now(), true
			l.poke()
		}
	}
	return nil
}
