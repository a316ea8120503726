package wan

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// ErrUnsupported reports a system without network namespaces or TUN devices.
var ErrUnsupported = errors.New("wan: needs Linux, and the right to administer the network")

// An End is where the way comes out.
type End struct {
	Namespace string // name, as the command ip knows it
	Interface string // to be made there
	Address   string // of the interface, with its prefix length
}

// Config is what the way is like, in each direction. The zero value is one without
// delay and loss, as fast as this machine.
type Config struct {
	Delay time.Duration // from one end to the other
	Loss  float64       // the share of packets that are lost, each by itself, 0 to 1
	Rate  float64       // bits per second; 0 for no limit
	Queue time.Duration // how long a packet may wait for its turn with a Rate; what would wait longer is dropped
	MTU   int           // of the interfaces, in bytes; default 1500
	Seed  uint64        // of the losses; any number
}

// inFlight is how many packets may be on the way in one direction: 100 ms of 10 Gbit/s.
const inFlight = 100_000

// Join makes both interfaces and carries packets between them until Close. It errs with
// ErrUnsupported, or if an interface cannot be made.
func Join(ctx context.Context, a, b End, cfg Config) (*Way, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	from, err := open(ctx, a, cfg.MTU)
	if err != nil {
		return nil, err
	}
	to, err := open(ctx, b, cfg.MTU)
	if err != nil {
		from.Close()
		return nil, err
	}
	w := &Way{ends: [2]*os.File{from, to}}
	w.carry(from, to, cfg, 1)
	w.carry(to, from, cfg, 2)
	return w, nil
}

// A Way carries packets between its two ends. Its methods are safe for concurrent use.
type Way struct {
	ends [2]*os.File
	wg   sync.WaitGroup

	mu    sync.Mutex // guards stats
	stats Stats
}

// Stats count the packets of both directions.
type Stats struct {
	Carried int // packets that came out
	Lost    int // packets, by Config.Loss
	Dropped int // packets that did not fit the queue
}

// Stats returns what happened so far.
func (w *Way) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// Close ends the way, removes both interfaces and waits. Its error is always nil.
func (w *Way) Close() error {
	for _, f := range w.ends {
		f.Close()
	}
	w.wg.Wait()
	return nil
}

// A packet on its way.
type packet struct {
	data []byte
	at   time.Time // when it comes out
}

func (w *Way) carry(from, to *os.File, cfg Config, stream uint64) {
	pool := sync.Pool{New: func() any { return make([]byte, cfg.MTU) }}
	line := newLine(cfg, stream)
	onTheWay := make(chan packet, inFlight)
	w.wg.Go(func() {
		defer close(onTheWay)
		for {
			buf := pool.Get().([]byte)[:cfg.MTU]
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			at, fate := line.next(time.Now(), n)
			w.count(fate)
			if fate == carried {
				onTheWay <- packet{buf[:n], at}
			} else {
				pool.Put(buf)
			}
		}
	})
	w.wg.Go(func() {
		for p := range onTheWay {
			if d := time.Until(p.at); d > 0 {
				time.Sleep(d)
			}
			_, _ = to.Write(p.data) // fails when the way is closed, and while an interface is down
			pool.Put(p.data)        //nolint:staticcheck // one small allocation for each packet
		}
	})
}

func (w *Way) count(f fate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch f {
	case carried:
		w.stats.Carried++
	case lost:
		w.stats.Lost++
	case dropped:
		w.stats.Dropped++
	}
}

// A fate is what becomes of a packet.
type fate int

const (
	carried fate = iota
	lost
	dropped
)

// A line is one direction: when a packet that goes in comes out. It has no clock.
type line struct {
	cfg    Config
	chance *rand.Rand
	free   time.Time // when the last bit of the queue will have been sent
}

func newLine(cfg Config, stream uint64) *line {
	return &line{cfg: cfg, chance: rand.New(rand.NewPCG(cfg.Seed, stream))} //nolint:gosec // not a secret
}

func (l *line) next(now time.Time, bytes int) (at time.Time, f fate) {
	if l.chance.Float64() < l.cfg.Loss {
		return time.Time{}, lost
	}
	if l.cfg.Rate <= 0 {
		return now.Add(l.cfg.Delay), carried
	}
	if l.free.Before(now) {
		l.free = now
	}
	if l.free.Sub(now) > l.cfg.Queue {
		return time.Time{}, dropped
	}
	l.free = l.free.Add(time.Duration(float64(bytes) * 8 / l.cfg.Rate * float64(time.Second)))
	return l.free.Add(l.cfg.Delay), carried
}

// String returns the way's figures for people.
func (c Config) String() string {
	return fmt.Sprintf("%v round trip, %.2g %% loss, %.0f Mbit/s", 2*c.Delay, 100*c.Loss, c.Rate/1e6)
}
