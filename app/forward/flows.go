package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxDatagram is the largest datagram of UDP, in bytes.
	maxDatagram = 65535
	// commonDatagram has room for what the tunnel carries in one packet, in bytes.
	commonDatagram = 2048
	// maxQueued is how many datagrams of a flow wait, for its dial or its far side;
	// maxQueuedBytes is how many bytes wait in all flows of a Flows.
	maxQueued      = 64
	maxQueuedBytes = 8 << 20
	// failedPause is how long a flow whose dial failed swallows datagrams, so that
	// not each of them dials.
	failedPause = time.Second
)

//nolint:gochecknoglobals // pools hold no state, only memory
var (
	commonDatagrams = sync.Pool{New: func() any { return &datagram{space: make([]byte, commonDatagram)} }}
	largeDatagrams  = sync.Pool{New: func() any { return &datagram{space: make([]byte, maxDatagram)} }}
)

// A datagram is a pooled buffer and how many bytes of it count.
type datagram struct {
	space []byte
	n     int
}

func newDatagram(size int) *datagram {
	if size > commonDatagram {
		return largeDatagrams.Get().(*datagram)
	}
	return commonDatagrams.Get().(*datagram)
}

func (d *datagram) release() {
	if len(d.space) > commonDatagram {
		largeDatagrams.Put(d)
		return
	}
	commonDatagrams.Put(d)
}

// FlowsConfig says what the flows of a Flows are.
type FlowsConfig[K comparable] struct {
	// Dial opens the far side of a flow. It errs if there is no way there; the
	// flow's datagrams are then dropped for a second.
	Dial func(ctx context.Context, key K) (net.Conn, error)
	// Reply takes a datagram that came back, which is valid until it returns. It is
	// called from the flow's goroutine.
	Reply func(key K, datagram []byte)
	// Address is who sends a flow, for Options.Admit; it may be nil without one.
	Address func(key K) net.Addr
	Options
}

// Flows carries datagrams of many flows, each over a connection of its own that is
// dialed at its first datagram and closed when it is idle. Datagrams for which there
// is no room are dropped. All methods are safe for concurrent use.
type Flows[K comparable] struct {
	cfg    FlowsConfig[K]
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	start  time.Time
	queued atomic.Int64 // bytes
	wg     sync.WaitGroup

	mu     sync.Mutex
	flows  map[K]*flow[K]
	closed bool
}

// A flow is the datagrams of one key.
type flow[K comparable] struct {
	table  *Flows[K]
	key    K
	queue  chan *datagram
	used   atomic.Int64    // time of the last datagram, in nanoseconds after table.start
	ctx    context.Context //nolint:containedctx // ends with Close of the flow
	cancel context.CancelFunc
}

// NewFlows returns an empty Flows, to be closed by its Close; it ends with ctx, too.
func NewFlows[K comparable](ctx context.Context, cfg FlowsConfig[K]) *Flows[K] {
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = defaultMaxFlows
	}
	if cfg.Idle <= 0 {
		cfg.Idle = defaultIdle
	}
	ctx, cancel := context.WithCancel(ctx) //nolint:gosec // Close cancels
	f := &Flows[K]{cfg: cfg, ctx: ctx, cancel: cancel, flows: make(map[K]*flow[K]), start: time.Now()}
	f.wg.Go(f.sweep)
	return f
}

// Close ends all flows and waits for them.
func (f *Flows[K]) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
	return nil
}

// Send queues a copy of a datagram for the flow of key, which begins if there is
// none.
func (f *Flows[K]) Send(key K, b []byte) {
	d := newDatagram(len(b))
	d.n = copy(d.space, b)
	if f.queued.Add(int64(d.n)) > maxQueuedBytes || !f.push(key, d) {
		f.took(d)
		f.cfg.Counters.drop()
	}
}

// push queues a datagram, and reports whether there was room. Under the lock a flow
// that is in the table will still empty its queue.
func (f *Flows[K]) push(key K, d *datagram) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.flow(key)
	if fl == nil {
		return false
	}
	select {
	case fl.queue <- d:
		fl.touch()
		return true
	default:
		return false
	}
}

// took gives back what a queued datagram held.
func (f *Flows[K]) took(d *datagram) {
	f.queued.Add(-int64(d.n))
	d.release()
}

// flow returns the flow of key, a new one if need be, or nil after Close. The caller
// holds mu.
func (f *Flows[K]) flow(key K) *flow[K] {
	if fl := f.flows[key]; fl != nil {
		return fl
	}
	if f.closed || f.ctx.Err() != nil {
		return nil
	}
	if len(f.flows) >= f.cfg.MaxConns {
		f.evict()
	}
	ctx, cancel := context.WithCancel(f.ctx) //nolint:gosec // run cancels
	fl := &flow[K]{table: f, key: key, queue: make(chan *datagram, maxQueued), ctx: ctx, cancel: cancel}
	fl.touch()
	f.flows[key] = fl
	f.wg.Go(fl.run)
	return fl
}

// evict ends the flow that has been silent for longest. The caller holds mu.
func (f *Flows[K]) evict() {
	var oldest *flow[K]
	for _, fl := range f.flows {
		if oldest == nil || fl.used.Load() < oldest.used.Load() {
			oldest = fl
		}
	}
	delete(f.flows, oldest.key)
	oldest.cancel()
}

// sweep ends flows that are idle.
func (f *Flows[K]) sweep() {
	tick := time.NewTicker(max(f.cfg.Idle/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-tick.C:
		}
		old := int64(time.Since(f.start) - f.cfg.Idle)
		f.mu.Lock()
		for key, fl := range f.flows {
			if fl.used.Load() <= old {
				delete(f.flows, key)
				fl.cancel()
			}
		}
		f.mu.Unlock()
	}
}

func (fl *flow[K]) touch() { fl.used.Store(int64(time.Since(fl.table.start))) }

// Close ends the flow. It is what Options.Admit is given.
func (fl *flow[K]) Close() error {
	fl.cancel()
	return nil
}

// run is the life of a flow.
func (fl *flow[K]) run() {
	f := fl.table
	defer func() {
		fl.cancel()
		f.mu.Lock()
		if f.flows[fl.key] == fl {
			delete(f.flows, fl.key)
		}
		f.mu.Unlock()
		fl.empty()
	}()
	if err := fl.carry(); err != nil {
		f.cfg.fail(fl.ctx, err)
		pause := time.NewTimer(failedPause)
		defer pause.Stop()
		for {
			select {
			case d := <-fl.queue:
				f.took(d)
				f.cfg.Counters.drop()
			case <-pause.C:
				return
			case <-fl.ctx.Done():
				return
			}
		}
	}
}

func (fl *flow[K]) empty() {
	for {
		select {
		case d := <-fl.queue:
			fl.table.took(d)
			fl.table.cfg.Counters.drop()
		default:
			return
		}
	}
}

// carry dials and carries until the flow ends. It errs if it cannot dial.
func (fl *flow[K]) carry() error {
	cfg := &fl.table.cfg
	var from net.Addr
	if cfg.Address != nil {
		from = cfg.Address(fl.key)
	}
	done, err := cfg.admit(from, fl)
	if err != nil {
		return err
	}
	defer done()
	far, err := cfg.Dial(fl.ctx, fl.key)
	if err != nil {
		return err
	}
	defer cfg.Counters.began()()
	stop := context.AfterFunc(fl.ctx, func() { far.Close() })
	defer stop()
	defer far.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer fl.cancel()
	wg.Go(func() { fl.receive(far) })
	for {
		select {
		case <-fl.ctx.Done():
			return nil
		case d := <-fl.queue:
			cfg.Counters.send(d.n) // before its answer is counted
			_, err := far.Write(d.space[:d.n])
			if err != nil {
				cfg.Counters.send(-d.n)
				cfg.Counters.drop()
			}
			fl.table.took(d)
			if over(err) {
				return nil
			}
		}
	}
}

// receive passes on what comes back, until the far side ends.
func (fl *flow[K]) receive(far net.Conn) {
	defer fl.cancel()
	d := largeDatagrams.Get().(*datagram)
	defer d.release()
	for {
		n, err := far.Read(d.space)
		switch {
		case err == nil:
			fl.touch()
			fl.table.cfg.Counters.receive(n)
			fl.table.cfg.Reply(fl.key, d.space[:n])
		case !refused(err):
			return
		}
	}
}

// refused reports that nobody took a datagram (ICMP port unreachable): the next one
// may find somebody.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// over reports that a connection of datagrams has ended. Any other error of a write
// is the loss of one datagram: too large, or no room for it now.
func over(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.EPIPE)
}
