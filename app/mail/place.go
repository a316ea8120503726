package mail

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// A Place is where a keeper is.
type Place struct {
	ID     string            // no other place has it; a place with a new one is a new connection
	Name   string            // for people
	Device identity.DeviceID // which device it is; zero for a hub
	// Dial connects to it; the connection speaks the protocol at once.
	Dial func(ctx context.Context) (net.Conn, error)
	// Ping has the connection asked for a sign of life once in that time and a fifth; 0
	// where something else tells that it is dead.
	Ping time.Duration
}

// A PlaceStatus is how a keeper does.
type PlaceStatus struct {
	Name   string            `json:"name"`
	Device identity.DeviceID `json:"device,omitzero"`
	Ready  bool              `json:"ready"`
	Off    bool              `json:"off,omitempty"`   // it does not keep mail
	Error  string            `json:"error,omitempty"` // why it is not ready, or did not take the last letter
	// Sent are letters of this device that wait there, Waiting those for it; nil if the
	// keeper did not say.
	Sent    *Count `json:"sent,omitempty"`
	Waiting *Count `json:"waiting,omitempty"`
}

const (
	placeDial     = 20 * time.Second
	placeRetry    = time.Second      // after the first failure, then ever longer
	placeLastWait = 5 * time.Minute  // at most
	placeOff      = 30 * time.Minute // after it said that it keeps no mail
	newsFree      = 8                // fetches in vain until there are pauses
	newsFirst     = time.Second      // the first of them, then ever longer
	newsLast      = 5 * time.Minute  // at most
)

// place is one keeper, and what holds its connection.
type place struct {
	Place
	s      *Service
	ctx    context.Context //nolint:containedctx // ends with the place
	cancel context.CancelFunc
	kick   chan struct{}
	again  chan struct{} // it has more than was fetched

	// Guarded by s.mu.
	client *Client // nil: no connection
	tried  bool    // the first try has ended
	err    error   // of the last try
	put    error   // of the last letter left there

	mu      sync.Mutex // guards the fields below
	useless int        // fetches in a row that it asked for in vain
	asked   bool       // it has asked for one
	from    cursor     // where the next fetch begins
}

func newPlace(s *Service, where Place) *place {
	p := &place{Place: where, s: s, kick: make(chan struct{}, 1), again: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(s.ctx)
	return p
}

// about returns a time between four and six fifths of d.
func about(d time.Duration) time.Duration {
	return d*4/5 + rand.N(d*2/5+1) //nolint:gosec // no secret
}

func (p *place) run() {
	defer p.cancel()
	wait := placeRetry
	for {
		began := time.Now()
		err := p.once()
		if p.ctx.Err() != nil {
			return
		}
		p.s.cfg.Logger.Debug("no mail keeper", "keeper", p.Name, "err", err)
		if time.Since(began) > placeLastWait {
			wait = placeRetry
		}
		pause := about(wait)
		if errors.Is(err, ErrRefused) {
			pause = about(placeOff)
		}
		wait = min(2*wait, placeLastWait)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.kick:
			wait = placeRetry
		case <-p.ctx.Done():
		}
		timer.Stop()
		if p.ctx.Err() != nil {
			return
		}
	}
}

// once connects and serves until the connection ends, and returns why.
func (p *place) once() (err error) {
	defer func() {
		p.set(nil, err)
	}()
	ctx, cancel := context.WithTimeout(p.ctx, placeDial)
	defer cancel()
	conn, err := p.Dial(ctx)
	if err != nil {
		return err
	}
	c, err := NewClient(ctx, conn)
	if err != nil {
		return err
	}
	defer c.Close()
	until, err := p.watch(c)
	if err != nil {
		return err
	}
	p.set(c, nil)
	p.s.cfg.Logger.Debug("mail keeper ready", "keeper", p.Name)
	p.s.cfg.Ready()
	return p.serve(c, until)
}

// set notes whether there is a connection.
func (p *place) set(c *Client, err error) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.client, p.tried, p.err = c, true, err
	if c != nil {
		p.put = nil
		p.mu.Lock()
		p.from = cursor{} // the order is that of one run of the keeper
		p.mu.Unlock()
	}
	p.s.signalLocked()
}

// note remembers whether the keeper took a letter.
func (p *place) note(err error) {
	p.s.mu.Lock()
	p.put = err
	p.s.mu.Unlock()
	if err != nil {
		p.s.cfg.Logger.Debug("letter not left", "keeper", p.Name, "err", err)
	}
}

// watch names the boxes of these days, and returns until when that holds.
func (p *place) watch(c *Client) (time.Duration, error) {
	now := p.s.cfg.Now()
	ctx, cancel := context.WithTimeout(p.ctx, placeDial)
	defer cancel()
	tokens := tokensOf(p.s.cfg.Keys.From(now))
	if len(tokens) > maxWatch {
		tokens = tokens[len(tokens)-maxWatch:]
	}
	return now.UTC().Truncate(day).Add(day).Sub(now), c.Watch(ctx, tokens)
}

// serve waits for what the keeper says, until the connection ends. It wakes up for
// that, once a day, and to ask for a sign of life.
func (p *place) serve(c *Client, tomorrow time.Duration) error {
	next := time.NewTimer(about(time.Minute) + tomorrow)
	defer next.Stop()
	ping := time.NewTimer(time.Hour)
	defer ping.Stop()
	rest := func() {
		if ping.Stop(); p.Ping > 0 {
			ping.Reset(about(p.Ping))
		}
	}
	rest()
	var calm <-chan time.Time // until the app is told of news
	arrived := func() {
		if gap := p.calm(); calm == nil && gap > 0 {
			calm = time.After(gap)
		} else if calm == nil {
			p.s.cfg.Arrived()
		}
	}
	for {
		var rewatch bool
		select {
		case <-p.ctx.Done():
			return p.ctx.Err()
		case <-c.Ended():
			return c.Err()
		case <-next.C:
			rewatch = true
		case <-p.kick:
			rewatch = true
		case <-ping.C:
			ctx, cancel := context.WithTimeout(p.ctx, placeDial)
			err := c.Ping(ctx)
			cancel()
			if err != nil {
				return err
			}
			rest()
		case <-c.News():
			arrived()
		case <-p.again:
			arrived()
		case <-calm:
			calm = nil
			p.s.cfg.Arrived()
		}
		if rewatch {
			until, err := p.watch(c)
			if err != nil {
				return err
			}
			next.Reset(about(time.Minute) + until)
		}
	}
}

// calm returns for how long the app is not to be bothered with what the keeper says.
func (p *place) calm() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = true
	if p.useless < newsFree {
		return 0
	}
	return min(newsFirst<<min(p.useless-newsFree, 16), newsLast)
}

// begin returns where a fetch begins.
func (p *place) begin() cursor {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.from
}

// fetched notes how many letters there were that are not done with, and where the next
// fetch is to begin: at the beginning if that was all. A keeper that says again and again that there is
// something, and has nothing, is asked ever less often.
func (p *place) fetched(useful int, next cursor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case useful > 0:
		p.useless = 0
	case p.asked:
		p.useless++
	}
	if p.asked, p.from = false, next; next == (cursor{}) {
		return
	}
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// Status returns how the keepers do, by name. It asks them what waits there, as long as
// ctx allows.
func (s *Service) Status(ctx context.Context) []PlaceStatus {
	now := s.cfg.Now()
	sent, from := tokensOf(s.cfg.Keys.Sent(now)), tokensOf(s.cfg.Keys.From(now))
	s.mu.Lock()
	out := make([]PlaceStatus, 0, len(s.places))
	clients, ids := make(map[string]*Client), make([]string, 0, len(s.places))
	for _, p := range s.places {
		st := PlaceStatus{Name: p.Name, Device: p.Device, Ready: p.client != nil, Off: errors.Is(p.err, ErrOff)}
		if err := firstOf(p.err, p.put); err != nil {
			st.Error = err.Error()
		}
		if p.client != nil {
			clients[p.ID] = p.client
		}
		out, ids = append(out, st), append(ids, p.ID)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for i := range out {
		if c := clients[ids[i]]; c != nil {
			wg.Go(func() { out[i].Sent, out[i].Waiting = total(ctx, c, sent), total(ctx, c, from) })
		}
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b PlaceStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// total returns what is in all boxes together, or nil if the keeper does not say.
func total(ctx context.Context, c *Client, tokens [][32]byte) *Count {
	counts, err := c.Count(ctx, tokens)
	if err != nil {
		return nil
	}
	sum := new(Count)
	for _, one := range counts {
		sum.Letters += one.Letters
		sum.Bytes += one.Bytes
	}
	return sum
}
