package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// A Direction says on which device a forward listens.
type Direction string

const (
	// Forward makes a port of another device a port of this machine.
	Forward Direction = "forward"
	// Expose makes a service of this machine a port of another device.
	Expose Direction = "expose"
)

// A Spec is one forward of a configuration. Specs are compared with ==: a change of
// anything starts the forward anew.
type Spec struct {
	ID        string    `json:"id"`                  // unique in its Set, and stays through changes
	Direction Direction `json:"direction,omitempty"` // default Forward
	Protocol  Protocol  `json:"protocol"`            // default TCP
	// Address is host:port: of this machine, where a Forward listens, with port 0 for
	// any that is free; or of the service that is exposed.
	Address string `json:"address"`
	// Device and Port are the other side: what a Forward dials, and where an Expose
	// has the device listen.
	Device string `json:"device"`
	Port   uint16 `json:"port"` // port number
}

// check errs if a Spec cannot be run.
func (s *Spec) check() error {
	s.Direction = cmp.Or(s.Direction, Forward)
	s.Protocol = cmp.Or(s.Protocol, TCP)
	switch {
	case s.ID == "":
		return errors.New("forward: an entry has no ID")
	case s.Direction != Forward && s.Direction != Expose:
		return fmt.Errorf("forward: %s: %q is neither forward nor expose", s.ID, s.Direction)
	case s.Protocol != TCP && s.Protocol != UDP:
		return fmt.Errorf("forward: %s: %q is neither tcp nor udp", s.ID, s.Protocol)
	case s.Device == "" || s.Port == 0:
		return fmt.Errorf("forward: %s: the device or its port is missing", s.ID)
	}
	if _, _, err := net.SplitHostPort(s.Address); err != nil {
		return fmt.Errorf("forward: %s: %q is not ADDRESS:PORT: %w", s.ID, s.Address, err)
	}
	return nil
}

// A Network is the other devices, as a Set sees them.
type Network interface {
	// Dial opens a connection to a port of a device. It errs if there is no way
	// there; ctx bounds how long it waits for the device.
	Dial(ctx context.Context, protocol Protocol, device string, port uint16) (net.Conn, error)
	// Expose makes the service at spec.Address a port of a device until ctx ends, and
	// tries again by itself. report is told where the device listens, or why it does
	// not. Expose errs if it cannot be tried at all.
	Expose(ctx context.Context, spec Spec, o Options, report func(listening string, err error)) error
}

// Status is how one forward of a Set is doing.
type Status struct {
	Spec
	// Listening is where it accepts connections; empty while it cannot.
	Listening string `json:"listening,omitempty"`
	// Err says why it is not listening, and Hint what to do; it is tried again by
	// itself. Both are for a person.
	Err  string `json:"error,omitempty"`
	Hint string `json:"hint,omitempty"`
	// Cause is what Err says, for a program.
	Cause error `json:"-"`
	// LastFailure is why the last connection that failed was not carried, at
	// FailedAt; empty if none did.
	LastFailure string    `json:"last_failure,omitempty"`
	FailedAt    time.Time `json:"failed_at,omitzero"`
	Traffic
}

// Retries of a port that cannot be listened on.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 15 * time.Second
)

// SetConfig is what a Set needs. Network must be set.
type SetConfig struct {
	Network Network
	// DialTimeout is how long a connection waits for its device; default 15 s.
	DialTimeout time.Duration
	// Changed is told, from any goroutine, when a forward begins or fails to
	// listen; nil tells nobody. It must not call Apply or Close.
	Changed func(Status)
}

// A Set runs the forwards of a configuration. All methods are safe for concurrent
// use.
type Set struct {
	cfg SetConfig

	apply  sync.Mutex // one Apply or Close at a time
	mu     sync.Mutex
	runs   map[string]*run
	closed bool
}

// NewSet returns a Set without forwards, to be closed by its Close.
func NewSet(cfg SetConfig) *Set {
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = 15 * time.Second
	}
	return &Set{cfg: cfg, runs: make(map[string]*run)}
}

// Apply makes specs the forwards that run: those that are new begin, those that are
// gone end with their connections, and so do those that have changed before they
// begin anew. The others are not touched. A port that cannot be listened on is no
// error of Apply: Status tells it, and it is tried again. Apply errs, and changes
// nothing, if an entry is wrong or an ID occurs twice, and with net.ErrClosed.
func (s *Set) Apply(specs []Spec) error {
	specs = slices.Clone(specs)
	want := make(map[string]Spec, len(specs))
	for i := range specs {
		if err := specs[i].check(); err != nil {
			return err
		}
		if _, twice := want[specs[i].ID]; twice {
			return fmt.Errorf("forward: two entries have the ID %s", specs[i].ID)
		}
		want[specs[i].ID] = specs[i]
	}
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("forward: %w", net.ErrClosed)
	}
	var end []*run
	for id, r := range s.runs {
		if spec, keep := want[id]; !keep || spec != r.spec {
			end = append(end, r)
			delete(s.runs, id)
		}
	}
	s.mu.Unlock()
	stopAll(end) // before others begin: they may want the same port
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, spec := range specs {
		if s.runs[spec.ID] == nil {
			s.runs[spec.ID] = s.start(spec)
		}
	}
	return nil
}

// Status returns how each forward is doing, sorted by ID.
func (s *Set) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Status, 0, len(s.runs))
	for _, r := range s.runs {
		out = append(out, r.status())
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Close ends all forwards and waits for them.
func (s *Set) Close() error {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	s.closed = true
	var end []*run
	for id, r := range s.runs {
		end = append(end, r)
		delete(s.runs, id)
	}
	s.mu.Unlock()
	stopAll(end)
	return nil
}

func stopAll(runs []*run) {
	for _, r := range runs {
		r.cancel()
	}
	for _, r := range runs {
		<-r.done
	}
}

// A run is one forward that runs.
type run struct {
	spec     Spec
	set      *Set
	cancel   context.CancelFunc
	done     chan struct{}
	counters Counters

	mu        sync.Mutex
	listening string
	err       error
	failure   error
	failedAt  time.Time
}

func (s *Set) start(spec Spec) *run {
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{spec: spec, set: s, cancel: cancel, done: make(chan struct{})}
	go func() { // ends with cancel; stopAll waits for it
		defer close(r.done)
		r.run(ctx)
	}()
	return r
}

// run listens and serves until ctx ends, again and again where it fails.
func (r *run) run(ctx context.Context) {
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		began := time.Now()
		err := r.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		r.became("", err)
		if time.Since(began) > lastRetry {
			retry = firstRetry // it had worked
		}
		t := time.NewTimer(retry)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// serve listens and serves. It errs when it can no longer.
func (r *run) serve(ctx context.Context) error {
	o := Options{Counters: &r.counters, Failed: r.failed}
	if r.spec.Direction == Expose {
		return r.set.cfg.Network.Expose(ctx, r.spec, o, r.became)
	}
	var lc net.ListenConfig
	if r.spec.Protocol == UDP {
		pc, err := lc.ListenPacket(ctx, "udp", r.spec.Address)
		if err != nil {
			return explainListen(r.spec.Address, err)
		}
		r.became(pc.LocalAddr().String(), nil)
		return ServeUDP(ctx, pc, r.dialDevice, o)
	}
	ln, err := lc.Listen(ctx, "tcp", r.spec.Address)
	if err != nil {
		return explainListen(r.spec.Address, err)
	}
	r.became(ln.Addr().String(), nil)
	return ServeTCP(ctx, ln, r.dialDevice, o)
}

func (r *run) dialDevice(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.set.cfg.DialTimeout)
	defer cancel()
	return r.set.cfg.Network.Dial(ctx, r.spec.Protocol, r.spec.Device, r.spec.Port)
}

func (r *run) became(listening string, err error) {
	r.mu.Lock()
	r.listening, r.err = listening, err
	r.mu.Unlock()
	if r.set.cfg.Changed != nil {
		r.set.cfg.Changed(r.status())
	}
}

func (r *run) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure, r.failedAt = err, time.Now()
}

func (r *run) status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{Spec: r.spec, Listening: r.listening, FailedAt: r.failedAt, Traffic: r.counters.Traffic()}
	if r.failure != nil {
		s.LastFailure = r.failure.Error()
	}
	if r.err != nil {
		s.Err, s.Cause = r.err.Error(), r.err
		var listen *ListenError
		if errors.As(r.err, &listen) {
			s.Hint = listen.Hint
		}
	}
	return s
}
