package chat

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unicode/utf8"

	"github.com/kithproject/kith/identity"
)

const (
	batchJobs  = 256     // jobs that are written at once
	batchBytes = 1 << 20 // and about how many bytes
	maxPending = 256     // entries of a conversation that wait for one before them
)

// A convo is one conversation. Service.mu guards what changes; its book's entries are
// changed by the writer alone.
type convo struct {
	id      ConvID
	vault   *vault
	loading sync.Mutex // held while the book is read

	book    *book // nil: not read yet
	conv    Conv
	ids     map[identity.DeviceID]bool // of members
	gone    bool
	own     LogID // the log that is written; zero: none yet
	jobs    []*job
	running bool          // the writer
	changed chan struct{} // closed and made anew when something changes
	pending map[logKey]map[uint64]*entry
	waiting int   // entries in pending
	anew    int64 // bytes of the file when it was written anew by this run; only the writer uses it
	unbound int   // entries up to which it is not tried to let go of some, as that has failed
	pulls   map[logKey]*pull
	watched bool                       // pulls are
	kept    map[receiptKey]*receipt    // of members of a room for those who are away
	stale   map[identity.DeviceID]bool // authors of whom there is something newer to say than in the receipt
}

func (c *convo) present() bool { return c.ids != nil && !c.gone }

// tell wakes whoever waits for a change. s.mu is held.
func (c *convo) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// A job is something to be written. Its entries and starts are known to be genuine.
type job struct {
	kind    byte // of an entry to be composed; 0: none
	body    []byte
	entries []*entry
	starts  []*start
	notes   []item // that need not be durable at once
	forget  bool
	from    *link // nil: not by a connection
	done    chan result
}

func (j *job) size() int { return len(j.body) + maxEntry*len(j.entries) + 64*len(j.notes) }

// A result says what became of a job.
type result struct {
	message Message
	gap     bool  // an entry waits for one before it
	refused bool  // an entry cannot be
	err     error // nothing was written
}

// submit hands a job to the conversation's writer, whose order it keeps. s.mu is held.
func (s *Service) submit(c *convo, j *job) error {
	j.done = make(chan result, 1)
	if !c.running {
		if !s.start(func() { s.write(c) }) {
			return ErrClosed
		}
		c.running = true
	}
	c.jobs = append(c.jobs, j)
	return nil
}

// write does the jobs of a conversation until there are none.
func (s *Service) write(c *convo) {
	for {
		s.mu.Lock()
		n, size := 0, 0
		for n < len(c.jobs) && n < batchJobs && size < batchBytes {
			size += c.jobs[n].size()
			n++
		}
		jobs := c.jobs[:n:n]
		c.jobs = c.jobs[n:]
		if n == 0 {
			c.jobs, c.running = nil, false
			s.mu.Unlock()
			return
		}
		p := newPlan(s, c)
		s.mu.Unlock()
		for _, j := range jobs {
			p.add(j)
		}
		s.finish(c, p)
		if err := s.bound(c, p.forget); err != nil {
			s.cfg.Logger.Warn("conversation not bounded", "err", err)
			for _, j := range jobs {
				if j.forget {
					p.results[j] = result{err: err}
				}
			}
		}
		for _, j := range jobs {
			j.done <- p.results[j]
		}
	}
}

// A plan is what some jobs come to. It sees the book as it will be.
type plan struct {
	s        *Service
	c        *convo
	members  map[identity.DeviceID]bool
	gone     bool
	room     bool
	own      LogID
	heads    map[logKey]head
	newLogs  map[identity.DeviceID]int
	highest  uint64
	items    []item
	sync     bool
	composed map[int]*job // by the number of the item
	entries  map[int]*entry
	from     map[int]*link
	results  map[*job]result
	forget   bool
}

// newPlan begins a plan. s.mu is held.
func newPlan(s *Service, c *convo) *plan {
	return &plan{
		s: s, c: c, members: c.ids, gone: c.gone, room: c.conv.Room, own: c.own, highest: c.book.highest, heads: make(map[logKey]head),
		newLogs: make(map[identity.DeviceID]int), composed: make(map[int]*job), entries: make(map[int]*entry),
		from: make(map[int]*link), results: make(map[*job]result),
	}
}

// head returns the end of a log, and whether there is such a log.
func (p *plan) head(k logKey) (head, bool) {
	if h, ok := p.heads[k]; ok {
		return h, true
	}
	if l := p.c.book.logs[k]; l != nil {
		return head{l.last, l.lamport}, true
	}
	return head{}, false
}

func (p *plan) put(k logKey, h head, known bool) {
	if !known {
		p.newLogs[k.author]++
	}
	p.heads[k] = h
	p.highest = max(p.highest, h.lamport)
}

func (p *plan) add(j *job) {
	var r result
	switch {
	case j.kind != 0:
		r.err = p.compose(j)
	case j.forget:
		p.forget = true
	}
	for _, st := range j.starts {
		if !p.begin(st) {
			r.refused = true
		}
	}
	for _, e := range j.entries {
		switch gap, ok := p.enter(e, j.from); {
		case !ok:
			r.refused = true
		case gap:
			r.gap = true
		}
	}
	p.items = append(p.items, j.notes...)
	p.results[j] = r
}

// may reports whether a log may be there.
func (p *plan) may(k logKey, known bool) bool {
	if k.author != p.s.self && !p.members[k.author] {
		return false
	}
	return known || p.c.book.perAuth[k.author]+p.newLogs[k.author] < maxLogs
}

// compose writes an entry of this device.
func (p *plan) compose(j *job) error {
	if p.gone {
		return ErrNoConv
	}
	if p.own == (LogID{}) {
		if err := p.beginLog(); err != nil {
			return err
		}
	}
	k := logKey{p.s.self, p.own}
	h, known := p.head(k)
	e := &entry{
		conv: p.c.id, logKey: k, seq: h.seq + 1, lamport: nextLamport(p.highest, h.seq, h.lamport),
		time: uint64(min(max(p.s.cfg.Now().UnixMilli(), 0), year10000-1)), kind: j.kind, body: j.body,
	}
	e.sign(p.s.cfg.Self)
	p.composed[len(p.items)] = j
	p.keep(e, known, nil)
	return nil
}

// beginLog chooses the log that this device writes: one of its own for each run, so that
// an old store never goes on with a log that others know more of. After ownLogs it is one
// that all others have whole, from a number on that is the time, so that none is used
// twice.
func (p *plan) beginLog() error {
	if p.c.book.perAuth[p.s.self] >= ownLogs {
		for _, l := range p.c.book.list {
			h, _ := p.head(l.logKey)
			st := &start{conv: p.c.id, logKey: l.logKey, seq: max(h.seq+1, uint64(max(p.s.cfg.Now().UnixMilli(), 0))), lamport: h.lamport}
			if l.author != p.s.self || h.seq == 0 || st.seq > maxSeq/2 || !p.whole(l) {
				continue
			}
			st.sign(p.s.cfg.Self)
			if p.begin(st); p.heads[l.logKey].seq == st.seq {
				p.own = l.log
				return nil
			}
		}
	}
	if _, err := rand.Read(p.own[:]); err != nil {
		return fmt.Errorf("chat: %w", err)
	}
	return nil
}

// whole reports whether all others have a log of this device, or whether there are so many
// that it matters no more.
func (p *plan) whole(l *logState) bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.c.book.perAuth[p.s.self] >= maxLogs {
		return true
	}
	for _, m := range p.c.conv.Members {
		if m.ID != p.s.self && p.c.book.members[m.ID][l.log].delivered < l.last {
			return false
		}
	}
	return true
}

// keep appends an entry that is the next of its log.
func (p *plan) keep(e *entry, known bool, from *link) {
	body := binary.BigEndian.AppendUint64(nil, uint64(max(p.s.cfg.Now().UnixMilli(), 0)))
	p.entries[len(p.items)], p.from[len(p.items)] = e, from
	p.items = append(p.items, item{itemEntry, append(body, e.encode()...)})
	p.put(e.logKey, head{e.seq, e.lamport}, known)
	p.sync = true
}

// enter takes an entry of another device. It reports whether it waits for one before
// it, and false if it cannot be.
func (p *plan) enter(e *entry, from *link) (gap, ok bool) {
	h, known := p.head(e.logKey)
	switch {
	case e.seq <= h.seq:
		return false, true
	case !p.may(e.logKey, known):
		return false, true // of nobody, or no more: no harm, and nothing
	case e.seq > h.seq+1:
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		p.c.wait(e)
		return true, true
	case !e.follows(h.seq, h.lamport):
		return false, false
	}
	if e.logKey == (logKey{p.s.self, p.own}) {
		p.own = LogID{} // somebody knows more of it than this device: it is not to go on
	}
	p.keep(e, known, from)
	for {
		p.s.mu.Lock()
		next := p.c.unwait(e.logKey, e.seq+1)
		p.s.mu.Unlock()
		if next == nil || !next.follows(e.seq, e.lamport) {
			return false, true
		}
		e = next
		p.keep(e, true, from)
	}
}

// begin takes where a log starts. What this device has lost of its own logs nobody has to
// sign, but for a log that it knows: otherwise others could void its lines.
func (p *plan) begin(st *start) bool {
	h, known := p.head(st.logKey)
	if h.seq >= st.seq || !p.may(st.logKey, known) {
		return true
	}
	mine := st.author == p.s.self
	signed := !mine || st.genuine()
	if known && !signed {
		return true
	}
	from, steps := uint64(maxFirst), st.seq-1
	if h.seq > 0 {
		from, steps = h.lamport, st.seq-h.seq
	}
	if st.lamport > from && (st.lamport-from)/maxStep > steps {
		return false
	}
	if st.lamport > max(from, p.highest)+maxAhead {
		return true
	}
	if mine && st.log == p.own {
		p.own = LogID{} // as in enter
	}
	it := item{itemStart, st.encode()}
	if !signed {
		it = item{itemState, appendKey(nil, st.logKey, st.seq, st.lamport, 0)}
	}
	p.items = append(p.items, it)
	p.put(st.logKey, head{st.seq, st.lamport}, known)
	p.sync = true
	return true
}

// wait keeps an entry until those before it have come. s.mu is held.
func (c *convo) wait(e *entry) {
	if c.waiting >= maxPending {
		c.pending, c.waiting = make(map[logKey]map[uint64]*entry), 0 // what is missing is asked for again
	}
	of := c.pending[e.logKey]
	if of == nil {
		of = make(map[uint64]*entry)
		c.pending[e.logKey] = of
	}
	if of[e.seq] == nil {
		of[e.seq] = e
		c.waiting++
	}
}

// unwait returns an entry that has waited. s.mu is held.
func (c *convo) unwait(k logKey, seq uint64) *entry {
	of := c.pending[k]
	e := of[seq]
	if e == nil {
		return nil
	}
	delete(of, seq)
	c.waiting--
	if len(of) == 0 {
		delete(c.pending, k)
	}
	return e
}

// finish writes what was planned, and then has it be so.
func (s *Service) finish(c *convo, p *plan) {
	var places []place
	var err error
	s.pass(c, p)
	if len(p.items) > 0 {
		places, err = c.vault.write(p.items, p.sync)
	}
	if err != nil {
		for j, r := range p.results {
			if j.kind != 0 || len(j.entries)+len(j.starts) > 0 {
				r.err = err
				p.results[j] = r
			}
		}
		s.cfg.Logger.Warn("conversation not written", "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.own = p.own
	var fresh []*entry
	for i, it := range p.items {
		c.book.take(places[i], it.kind, it.body)
		e := p.entries[i]
		if e == nil {
			continue
		}
		fresh = append(fresh, e)
		m := e.show()
		if r := c.book.find(e.logKey, e.seq); r != nil {
			c.book.fill(&m, r, c.conv.Members)
		}
		if j := p.composed[i]; j != nil {
			r := p.results[j]
			r.message = m
			p.results[j] = r
		}
		if e.shown() {
			s.publish(Event{Kind: EventMessage, Message: &m})
		}
	}
	if len(fresh) > 0 || p.sync {
		s.stored(c, p)
		s.publishConv(c)
		c.tell()
	}
}

// Send writes a line in a conversation and returns when it is durable here. It goes to
// the others by itself, now or when they are there. It errs with ErrText for text that
// is no line, with ErrNoConv, after Close, and if the disk does; if ctx ends first the
// line may be kept all the same.
func (s *Service) Send(ctx context.Context, conv ConvID, text string) (Message, error) {
	wait, err := s.Submit(conv, text)
	if err != nil {
		return Message{}, err
	}
	return wait(ctx)
}

// Submit is Send in two steps, for many lines one after the other: lines are kept in
// the order of Submit, and wait returns when the line is durable. Both err as Send does.
func (s *Service) Submit(conv ConvID, text string) (wait func(context.Context) (Message, error), err error) {
	clean := CleanText(text)
	if clean == "" || len(text) > MaxText || !utf8.ValidString(text) {
		return nil, ErrText
	}
	return s.compose(conv, kindText, []byte(clean))
}

// SendFile writes in a conversation that a file is offered. It errs as Send does, and
// for a name of more than 255 bytes, an offer of more than 64, or a size below -1.
func (s *Service) SendFile(ctx context.Context, conv ConvID, f FileRef) (Message, error) {
	f.Name = CleanText(f.Name)
	if f.Name == "" || len(f.Name) > maxName || len(f.Offer) > maxOffer || f.Size < -1 || !utf8.ValidString(f.Offer) {
		return Message{}, errors.New("chat: a file has a name of 1 to 255 bytes, a size, and an offer of at most 64 bytes")
	}
	wait, err := s.compose(conv, kindFile, encodeFile(f))
	if err != nil {
		return Message{}, err
	}
	return wait(ctx)
}

func (s *Service) compose(conv ConvID, kind byte, body []byte) (func(context.Context) (Message, error), error) {
	c, err := s.asked(conv)
	if err != nil {
		return nil, err
	}
	j := &job{kind: kind, body: body}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.submit(c, j); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (Message, error) {
		select {
		case r := <-j.done:
			j.done <- r
			return r.message, r.err
		case <-ctx.Done():
			return Message{}, ctx.Err()
		}
	}, nil
}
