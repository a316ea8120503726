package mail

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

const (
	// MaxFetch is how much one Fetch takes from each keeper, in bytes, or a little more.
	MaxFetch = 16 << 20

	leaveGrace = time.Second // for the other keepers, once one has the letter
	leaveTime  = 20 * time.Second
	maxRead    = 16384 // letters that are recognised when they come again
)

// ServiceConfig is what NewService needs. Keys must be set.
type ServiceConfig struct {
	Keys Keys
	// Arrived is called when Fetch has something to fetch; it must not block.
	Arrived func()
	// Ready is called when a keeper has become usable, so that Leave, which may have
	// failed before, can succeed; it must not block.
	Ready func()
	// Now is the clock; default time.Now. Rand: default crypto/rand.
	Now  func() time.Time
	Rand io.Reader
	// Logger: default discard.
	Logger *slog.Logger
}

// A Service is the mail of one device: it holds a connection to each of its keepers. It
// is safe for concurrent use. Close ends it.
type Service struct {
	cfg    ServiceConfig
	ctx    context.Context //nolint:containedctx // ends every goroutine; Close cancels it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	closed  bool
	places  map[string]*place
	changed chan struct{}             // closed and replaced when places do
	read    map[[IDSize]byte]struct{} // letters that are done with
	order   [][IDSize]byte            // the same, oldest first
}

var _ Mail = (*Service)(nil)

// NewService returns a service without keepers; see SetPlaces.
func NewService(cfg ServiceConfig) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, f := range []*func(){&cfg.Arrived, &cfg.Ready} {
		if *f == nil {
			*f = func() {}
		}
	}
	s := &Service{cfg: cfg, places: make(map[string]*place), changed: make(chan struct{}), read: make(map[[IDSize]byte]struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends all connections and waits. Letters that are being left may be lost, and
// Leave says so. It is idempotent, and always returns nil.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	return nil
}

// SetPlaces says at which keepers there is mail from now on: those that are new are
// connected to, those that are gone are let go.
func (s *Service) SetPlaces(places []Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	want := make(map[string]bool, len(places))
	for _, one := range places {
		want[one.ID] = true
		if s.places[one.ID] != nil {
			continue
		}
		p := newPlace(s, one)
		s.places[one.ID] = p
		s.wg.Go(p.run)
	}
	for id, p := range s.places {
		if !want[id] {
			p.cancel()
			delete(s.places, id)
		}
	}
	s.signalLocked()
}

// Changed says that Keys returns something else now, or that the network has changed:
// keepers are told of new boxes, and those that are not connected are tried at once.
func (s *Service) Changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.places {
		select {
		case p.kick <- struct{}{}:
		default:
		}
	}
}

func (s *Service) signalLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// A live place has a connection.
type live struct {
	p *place
	c *Client
}

// live returns the places with connections but for one device's, whether others are
// still being tried for the first time, and what is closed when that changes.
func (s *Service) live(but identity.DeviceID) (out []live, trying bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.places {
		if !but.IsZero() && p.Device == but {
			continue
		}
		if p.client != nil {
			out = append(out, live{p, p.client})
		}
		trying = trying || !p.tried
	}
	slices.SortFunc(out, func(a, b live) int { return strings.Compare(a.p.ID, b.p.ID) })
	return out, trying, s.changed
}

// keepers waits until there is one, or none is being tried.
func (s *Service) keepers(ctx context.Context, but identity.DeviceID) ([]live, error) {
	for {
		all, trying, changed := s.live(but)
		if len(all) > 0 {
			return all, nil
		}
		if !trying {
			return nil, ErrNoKeeper
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errors.Join(ErrNoKeeper, ctx.Err())
		case <-s.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// Leave leaves a letter, see Mail, which says when it errs. It returns when one keeper has the letter and the
// others have had a second more.
func (s *Service) Leave(ctx context.Context, to identity.DeviceID, body []byte) error {
	key, err := s.cfg.Keys.To(to, s.cfg.Now())
	if err != nil {
		return err
	}
	box := BoxOf(key.Token)
	blob, err := Seal(s.cfg.Rand, key.Seal, box, body)
	if err != nil {
		return err
	}
	all, err := s.keepers(ctx, to)
	if err != nil {
		return err
	}
	results := make(chan error, len(all))
	if !s.start(func() {
		pctx, cancel := context.WithTimeout(s.ctx, leaveTime)
		defer cancel()
		var wg sync.WaitGroup
		for _, one := range all {
			wg.Go(func() {
				err := one.c.Put(pctx, box, blob)
				one.p.note(err)
				results <- err
			})
		}
		wg.Wait()
	}) {
		return ErrClosed
	}
	var errs []error
	var grace <-chan time.Time
	for range all {
		select {
		case err := <-results:
			if err != nil {
				errs = append(errs, err)
			} else if grace == nil {
				timer := time.NewTimer(leaveGrace)
				defer timer.Stop()
				grace = timer.C
			}
		case <-grace:
			return nil
		case <-ctx.Done():
			if grace != nil {
				return nil
			}
			return ctx.Err()
		}
	}
	if grace != nil {
		return nil
	}
	return errors.Join(errs...)
}

// start runs f as one of the service's goroutines; it reports false after Close.
func (s *Service) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

// A taken is what one place had.
type taken struct {
	live
	items []Item
	next  cursor
}

// A waiting letter, and where it is.
type waiting struct {
	key  Key
	body []byte
	id   [IDSize]byte
	at   []live
}

// Fetch returns letters that wait, see Mail, which says when it errs. Letters of one sender are in the order in
// which a keeper got them.
func (s *Service) Fetch(ctx context.Context) ([]Letter, error) {
	all, _, _ := s.live(identity.DeviceID{})
	if len(all) == 0 {
		return nil, ctx.Err()
	}
	keys := s.cfg.Keys.From(s.cfg.Now())
	byBox := make(map[Box]Key, len(keys))
	for _, k := range keys {
		byBox[BoxOf(k.Token)] = k
	}
	got := s.takeAll(ctx, all, tokensOf(keys))
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var out []*waiting
	byID := make(map[[BoxSize + IDSize]byte]*waiting)
	useless := make(map[live]map[[32]byte][][IDSize]byte) // to be removed unread
	for _, t := range got {
		useful := 0
		for _, it := range t.items {
			key, ok := byBox[it.Box]
			if !ok {
				continue // it was not asked for
			}
			if w := byID[pendingKey(it.Box, it.ID)]; w != nil {
				if !slices.Contains(w.at, t.live) {
					w.at = append(w.at, t.live)
					useful++
				}
				continue
			}
			var body []byte
			err := error(nil)
			done := s.isDone(it.ID)
			if !done {
				body, err = Open(key.Seal, it.Box, it.Blob)
			}
			if done || err != nil {
				if useless[t.live] == nil {
					useless[t.live] = make(map[[32]byte][][IDSize]byte)
				}
				useless[t.live][key.Token] = append(useless[t.live][key.Token], it.ID)
				continue
			}
			useful++
			w := &waiting{key: key, body: body, id: it.ID, at: []live{t.live}}
			byID[pendingKey(it.Box, it.ID)] = w
			out = append(out, w)
		}
		t.p.fetched(useful, t.next)
	}
	s.discard(useless)
	letters := make([]Letter, 0, len(out))
	for _, w := range out {
		letters = append(letters, Letter{From: w.key.Device, Body: w.body, Done: func(ctx context.Context) error { return s.done(ctx, w) }})
	}
	return letters, nil
}

// takeAll asks all places at once. One that does not answer has nothing.
func (s *Service) takeAll(ctx context.Context, all []live, tokens [][32]byte) []taken {
	got := make([]taken, len(all))
	var wg sync.WaitGroup
	for i, one := range all {
		got[i].live = one
		wg.Go(func() {
			items, next, err := one.c.takeMore(ctx, one.p.begin(), tokens)
			if err != nil {
				s.cfg.Logger.Debug("mail not fetched", "keeper", one.p.Name, "err", err)
				return
			}
			got[i].items, got[i].next = items, next
		})
	}
	wg.Wait()
	return got
}

// done removes a letter wherever it was found.
func (s *Service) done(ctx context.Context, w *waiting) error {
	s.remember(w.id)
	var errs []error
	for _, one := range w.at {
		err := one.c.Done(ctx, w.key.Token, [][IDSize]byte{w.id})
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// discard removes what was read before, and what is no letter.
func (s *Service) discard(useless map[live]map[[32]byte][][IDSize]byte) {
	for one, boxes := range useless {
		s.start(func() {
			ctx, cancel := context.WithTimeout(s.ctx, leaveTime)
			defer cancel()
			for token, ids := range boxes {
				if err := one.c.Done(ctx, token, ids); err != nil {
					return // they come again, and again go this way
				}
			}
		})
	}
}

// isDone says whether a letter was read and is done with.
func (s *Service) isDone(id [IDSize]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, done := s.read[id]
	return done
}

// remember keeps what isDone says, of the last maxRead letters.
func (s *Service) remember(id [IDSize]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.read[id]; there {
		return
	}
	s.read[id] = struct{}{}
	s.order = append(s.order, id)
	if len(s.order) > maxRead {
		delete(s.read, s.order[0])
		s.order = s.order[1:]
	}
}

func tokensOf(keys []Key) [][32]byte {
	out := make([][32]byte, 0, len(keys))
	for _, k := range keys {
		out = append(out, k.Token)
	}
	return out
}
