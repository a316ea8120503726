package chat

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// A Mail keeps letters for devices that are away. It seals them, so that who keeps them
// learns neither what is in them nor of whom they are.
type Mail interface {
	// Leave puts a letter of at most MaxLetter bytes where the device will look. It errs
	// if nobody keeps it.
	Leave(ctx context.Context, to identity.DeviceID, body []byte) error
	// Fetch returns the letters to this device that are kept. It errs if none of those
	// who keep letters can be asked.
	Fetch(ctx context.Context) ([]Letter, error)
}

// A Letter is one that was left for this device.
type Letter struct {
	From identity.DeviceID               // who has sealed it
	Body []byte                          // at most MaxLetter bytes
	Done func(ctx context.Context) error // has it deleted where it is kept; errs if that fails
}

const (
	// MaxLetter is the longest letter, in bytes.
	MaxLetter = 60_000

	awayBefore = 2 * time.Second // how long a device must be away
	mailRetry  = 5 * time.Second
	mailSlow   = 10 * time.Minute
	leaveTime  = time.Minute
	fetchTurns = 3 // how often letters are gone through of which one waits for another
	// maxGaps is how many letters of a device may wait for one before them, that somebody
	// else may keep. What is in others comes when the two meet.
	maxGaps = 16
)

// mailing is what a mailer knows of a device. Service.mu guards it.
type mailing struct {
	online bool
	away   time.Time // since when it is away; zero while it is there
	after  time.Time // when to try again
	retry  time.Duration
	news   map[ConvID]map[logKey]struct{} // logs of it of which there is more here
}

// A mailer leaves letters for devices that are away.
type mailer struct {
	s        *Service
	wake     chan struct{}
	fetching sync.Mutex // orders FetchMail
}

func newMailer(s *Service) *mailer { return &mailer{s: s, wake: make(chan struct{}, 1)} }

func (m *mailer) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// presence takes note of whether a device is there. s.mu is held.
func (s *Service) presence(p *peer, online bool) {
	if s.mail == nil {
		return
	}
	if online = online || p.link != nil; online {
		p.mailing = mailing{online: true}
		return
	}
	if p.mailing.away.IsZero() {
		p.mailing.online, p.mailing.away = false, time.Now()
		s.mail.poke()
	}
}

// news says that there is more here of a log, which its author may want to know. s.mu is
// held.
func (m *mailer) news(c *convo, k logKey) {
	p := m.s.peers[k.author]
	if p == nil || p.mailing.away.IsZero() {
		return
	}
	if p.mailing.news == nil {
		p.mailing.news = make(map[ConvID]map[logKey]struct{})
	}
	of := p.mailing.news[c.id]
	if of == nil {
		of = make(map[logKey]struct{})
		p.mailing.news[c.id] = of
	}
	of[k] = struct{}{}
	m.poke()
}

func (m *mailer) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		to, wait := m.next()
		if to != nil {
			m.leave(to)
			continue
		}
		timer.Reset(wait)
		select {
		case <-m.wake:
		case <-timer.C:
		case <-m.s.ctx.Done():
			return
		}
	}
}

// next returns a device that is to get a letter, or how long none is.
func (m *mailer) next() (to *peer, wait time.Duration) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	wait = time.Hour
	for _, p := range m.s.peers {
		if p.mailing.away.IsZero() || !m.due(p) {
			continue
		}
		at := p.mailing.away.Add(awayBefore)
		if p.mailing.after.After(at) {
			at = p.mailing.after
		}
		left := time.Until(at)
		if left <= 0 {
			return p, 0
		}
		wait = min(wait, left)
	}
	return nil, wait
}

// due reports whether there is something for a device. s.mu is held.
func (m *mailer) due(p *peer) bool {
	if len(p.mailing.news) > 0 {
		return true
	}
	for _, c := range m.s.convs {
		if !c.present() || !c.ids[p.id] {
			continue
		}
		if c.book == nil {
			return true // to be read, and looked at
		}
		for _, log := range c.book.list {
			if log.author == m.s.self && max(c.book.unmailed(p.id, log), log.base) < log.last {
				return true
			}
		}
	}
	return false
}

// unmailed returns after which entry of a log of this device a member gets mail.
func (b *book) unmailed(member identity.DeviceID, log *logState) uint64 {
	p := b.members[member][log.log]
	return max(p.delivered, p.mailed)
}

// leave leaves one letter.
func (m *mailer) leave(p *peer) {
	s := m.s
	s.mu.Lock()
	var load []*convo
	for _, c := range s.convs {
		if c.book == nil && c.present() && c.ids[p.id] {
			load = append(load, c)
		}
	}
	s.mu.Unlock()
	for _, c := range load {
		if err := s.load(c); err != nil {
			m.failed(p, err)
			return
		}
	}
	body, sent := m.compose(p)
	if len(body) == 0 {
		if len(sent) > 0 { // none of it can be read
			m.failed(p, ErrNotKept)
		}
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, leaveTime)
	defer cancel()
	if err := s.cfg.Mail.Leave(ctx, p.id, body); err != nil {
		m.failed(p, err)
		return
	}
	s.mu.Lock()
	p.mailing.retry, p.mailing.after = 0, time.Time{}
	for _, at := range sent {
		if at.c.book.advance(p.id, at.log, progress{mailed: at.to}) {
			_ = s.submit(at.c, &job{notes: []item{progressItem(p.id, at.log, at.c.book.members[p.id][at.log])}}) // after Close it is left again
			s.publishConv(at.c)
			at.c.tell()
		}
	}
	s.mu.Unlock()
	for _, at := range sent {
		s.publishStates(at.c, at.log, at.from, at.to)
	}
}

func (m *mailer) failed(p *peer, err error) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	p.mailing.retry = min(max(2*p.mailing.retry, mailRetry), mailSlow)
	p.mailing.after = time.Now().Add(p.mailing.retry)
	m.s.cfg.Logger.Debug("letter not left", "peer", p.id.Short(), "err", err)
}

// mailed are entries of a log that a letter has.
type mailed struct {
	c        *convo
	log      LogID
	from, to uint64
}

// compose writes a letter to a device: what it lacks of this device's logs, and what
// this device has of its.
func (m *mailer) compose(p *peer) (body []byte, sent []mailed) {
	s := m.s
	s.mu.Lock()
	var plan []mailed
	for _, c := range s.convs {
		if !c.present() || c.book == nil || !c.ids[p.id] {
			continue
		}
		var claims []claim
		for k := range p.mailing.news[c.id] {
			if log := c.book.logs[k]; log != nil && len(claims) < maxHas/4 {
				claims = append(claims, claim{k, log.last, min(log.read, log.last)})
			}
		}
		if len(claims) > 0 && len(body) < MaxLetter/4 {
			body = appendVector(body, c.id, false, claims)
		}
		for _, log := range c.book.list {
			if log.author != s.self {
				continue
			}
			from := c.book.unmailed(p.id, log) + 1
			if from <= log.base && log.base < log.last && log.started != nil {
				body = appendFrame(body, frameStart, log.started.encode())
			}
			from = max(from, log.base+1)
			if from <= log.last {
				plan = append(plan, mailed{c, log.log, from, log.last})
			}
		}
	}
	p.mailing.news = nil
	s.mu.Unlock()
	for _, part := range plan {
		at := part
		at.to = at.from - 1
		for seq := part.from; seq <= part.to; seq++ {
			raw, ok := s.raw(part.c, logKey{s.self, part.log}, seq)
			if ok && len(body)+5+len(raw) > MaxLetter {
				return body, append(sent, at)
			}
			if ok {
				body = appendFrame(body, frameEntry, raw)
			}
			at.to = seq // what is not here any more is not left either
		}
		sent = append(sent, at)
	}
	return body, sent
}

// FetchMail takes the letters that were left for this device. It is to be called when
// one who keeps letters can be reached. It errs if none can be asked, if the disk does,
// and after Close; without Config.Mail it does nothing.
func (s *Service) FetchMail(ctx context.Context) error {
	if s.mail == nil {
		return nil
	}
	s.mail.fetching.Lock()
	defer s.mail.fetching.Unlock()
	letters, err := s.cfg.Mail.Fetch(ctx)
	if err != nil && len(letters) == 0 {
		return fmt.Errorf("chat: fetch mail: %w", err)
	}
	var left []opened
	for _, l := range letters {
		o, err := s.openLetter(l)
		if err != nil {
			return err
		}
		left = append(left, o)
	}
	slices.SortStableFunc(left, func(x, y opened) int { return cmp.Compare(x.first, y.first) })
	for range fetchTurns {
		var waiting []opened
		for _, o := range left {
			gap, err := s.takeLetter(o)
			if err != nil {
				return err
			}
			if gap {
				waiting = append(waiting, o)
				continue
			}
			s.done(ctx, o.Letter)
		}
		left = waiting
	}
	gaps := make(map[identity.DeviceID]int)
	for _, o := range left {
		if gaps[o.From]++; gaps[o.From] > maxGaps {
			s.done(ctx, o.Letter)
		}
	}
	return nil
}

// done has a letter deleted.
func (s *Service) done(ctx context.Context, l Letter) {
	if err := l.Done(ctx); err != nil { // it comes again, which is no harm
		s.cfg.Logger.Debug("letter not deleted", "err", err)
	}
}

// opened is a letter, and what it has that is genuine and not here yet.
type opened struct {
	Letter
	jobs  map[*convo]*job
	first uint64 // the lowest Lamport number
}

// openLetter opens a letter. Its error is that of the disk; a letter that is none has
// nothing.
func (s *Service) openLetter(letter Letter) (opened, error) {
	in := bufio.NewReader(bytes.NewReader(letter.Body))
	jobs := make(map[*convo]*job)
	for {
		kind, body, err := readFrame(in)
		if err != nil {
			break
		}
		if err := s.takeFrame(letter.From, kind, body, jobs); errors.Is(err, errHostile) || errors.Is(err, errFrame) || errors.Is(err, errEntry) {
			s.cfg.Logger.Warn("letter refused", "peer", letter.From.Short(), "err", err)
			return opened{Letter: letter}, nil
		} else if err != nil {
			return opened{}, err
		}
	}
	o := opened{letter, jobs, maxSeq}
	for _, j := range jobs {
		for _, e := range j.entries {
			o.first = min(o.first, e.lamport)
		}
	}
	return o, nil
}

// takeLetter keeps what is in a letter. It reports whether something before it is
// missing. Its error is that of the disk.
func (s *Service) takeLetter(o opened) (gap bool, err error) {
	for c, j := range o.jobs {
		s.mu.Lock()
		err := s.submit(c, j)
		s.mu.Unlock()
		if err != nil {
			return false, err
		}
		r := <-j.done
		if r.err != nil {
			return false, r.err
		}
		gap = gap || r.gap
	}
	return gap, nil
}

// partnerIn returns a conversation in which a device is, read; nil: there is none.
func (s *Service) partnerIn(id ConvID, member identity.DeviceID) (*convo, error) {
	c, err := s.open(id)
	if errors.Is(err, ErrNoConv) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.present() || !c.ids[member] {
		return nil, nil
	}
	return c, nil
}

// knows reports whether a log is here up to an entry.
func (s *Service) knows(c *convo, k logKey, seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := c.book.logs[k]
	return log != nil && log.last >= seq
}

func (s *Service) takeFrame(from identity.DeviceID, kind byte, body []byte, jobs map[*convo]*job) error {
	switch kind {
	case frameEntry:
		e, err := decodeEntry(body)
		if err != nil {
			return err
		}
		c, err := s.partnerIn(e.conv, from)
		if c == nil || err != nil || s.knows(c, e.logKey, e.seq) {
			return err
		}
		if !e.genuine() {
			return errHostile
		}
		j := letterJob(jobs, c)
		j.entries = append(j.entries, &e)
	case frameStart:
		st, err := decodeStart(body)
		if err != nil {
			return err
		}
		c, err := s.partnerIn(st.conv, from)
		if c == nil || err != nil || s.knows(c, st.logKey, st.seq) {
			return err
		}
		if !st.genuine() {
			return errHostile
		}
		j := letterJob(jobs, c)
		j.starts = append(j.starts, &st)
	case frameVector:
		conv, _, claims, err := decodeVector(body)
		if err != nil {
			return err
		}
		c, err := s.partnerIn(conv, from)
		if c == nil || err != nil {
			return err
		}
		s.takeClaims(c, from, claims)
	}
	return nil
}

func letterJob(jobs map[*convo]*job, c *convo) *job {
	j := jobs[c]
	if j == nil {
		j = &job{}
		jobs[c] = j
	}
	return j
}

// MailReady tells that one who keeps letters can be reached now: letters that could not be
// left are tried again at once.
func (s *Service) MailReady() {
	if s.mail == nil {
		return
	}
	s.mu.Lock()
	for _, p := range s.peers {
		p.mailing.after, p.mailing.retry = time.Time{}, 0
	}
	s.mu.Unlock()
	s.mail.poke()
}
