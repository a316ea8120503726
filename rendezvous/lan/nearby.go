package lan

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/netmon"
)

const (
	nearbyEvery = 3 * time.Second        // between announcements
	nearbyGap   = time.Second            // at least, RFC 6762 section 6
	answerLeast = 20 * time.Millisecond  // before an answer, so that several devices
	answerMost  = 120 * time.Millisecond // do not speak at once (RFC 6762 section 6)
	nearbyRate  = 100                    // messages per second that are looked at
)

// A Device is what a device in pairing mode says of itself on the LAN. All of it
// is a hint that anybody can make up: only the code proves who it is.
type Device struct {
	Name string // cleaned, at most 64 bytes
	Kind string // what it says that it is: "laptop", "phone" or an operating system; cleaned, at most 32 bytes
	// Addrs are where it was heard from, with the port on which it takes frames
	// by unicast; port 0: it takes none. They fit a rendezvous.Point's Endpoints.
	// An announcer leaves them empty.
	Addrs     []netip.AddrPort
	Instance  string    // 16 hexadecimal digits, random per announcement; an announcer leaves it empty
	ShowsCode bool      // it shows a code, and the other enters it; else the other way round
	Seen      time.Time // when it was last heard
}

// nearby announces this device while it is in pairing mode, and finds others
// that are.
type nearby struct {
	tell  func(build func(i netmon.Interface, six bool) []byte) // sends on every medium
	ports func() (port4, port6 uint16)

	mu        sync.Mutex // guards the fields below
	closed    bool
	wg        sync.WaitGroup
	announced map[string]*announcement // by instance
	former    map[string]time.Time     // own instances that ended, and when: they may still come back
	watchers  map[*watcher]struct{}
	table     nearbyTable
	rate      bucket
}

type announcement struct {
	device Device
	asked  chan struct{} // holds a token when somebody asked
	cancel context.CancelFunc
}

type watcher struct {
	changed chan struct{} // holds a token when the list changed
	ask     chan struct{} // holds a token when to ask again
	cancel  context.CancelFunc
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func newNearby(tell func(func(netmon.Interface, bool) []byte), ports func() (uint16, uint16)) *nearby {
	return &nearby{
		tell: tell, ports: ports, announced: make(map[string]*announcement), former: make(map[string]time.Time),
		watchers: make(map[*watcher]struct{}),
	}
}

// AnnounceNearby says on the LAN, by mDNS and kith's own groups, that this device
// is in pairing mode: its name, its kind and whether it shows a code. It does so
// until stop, the end of ctx or Close, and then takes it back. stop waits for
// that, and may be called again. It errs without a name, with net.ErrClosed after
// Close, and where there is neither mDNS nor multicast.
func (e *Exchange) AnnounceNearby(ctx context.Context, d Device) (stop func(), err error) {
	if len(e.allGroups()) == 0 {
		return nil, errNoNearby
	}
	return e.near.announce(ctx, d)
}

// Nearby lists the devices of the LAN that are in pairing mode. The channel gives
// the list at once and after each change, the newest only; it is closed when ctx
// ends or at Close. A device is gone from it when it says so, and 10 seconds after
// it was heard last. The list has at most 64 devices, and of one address at most 4.
// It errs with net.ErrClosed after Close, and where there is neither mDNS nor
// multicast.
func (e *Exchange) Nearby(ctx context.Context) (<-chan []Device, error) {
	if len(e.allGroups()) == 0 {
		return nil, errNoNearby
	}
	return e.near.watch(ctx)
}

var errNoNearby = errors.New("lan: nearby devices are found by mDNS or multicast, and both are off")

func (n *nearby) announce(ctx context.Context, d Device) (func(), error) {
	d.Name, d.Kind = cleanName(d.Name, maxName), cleanName(d.Kind, maxKind)
	if d.Name == "" {
		return nil, errors.New("lan: a device that is announced needs a name")
	}
	var random [instanceLen / 2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	d.Instance = hex.EncodeToString(random[:])
	ctx, cancel := context.WithCancel(ctx)
	a := &announcement{device: d, asked: make(chan struct{}, 1), cancel: cancel}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		cancel()
		return nil, fmt.Errorf("lan: announce: %w", net.ErrClosed)
	}
	maps.DeleteFunc(n.former, func(_ string, end time.Time) bool { return time.Since(end) > nearbyLife })
	n.announced[d.Instance] = a
	done := make(chan struct{})
	n.wg.Go(func() {
		defer close(done)
		n.run(ctx, a)
	})
	return func() {
		cancel()
		<-done
	}, nil
}

// run announces until ctx ends: at once, after a second, and then every three;
// and when somebody asks.
func (n *nearby) run(ctx context.Context, a *announcement) {
	defer a.cancel()
	say := func(bye bool) {
		port4, port6 := n.ports()
		n.tell(func(i netmon.Interface, six bool) []byte {
			port := port4
			if six {
				port = port6
			}
			b, err := pairAnswer(a.device.Instance, a.device, port, i.Addrs, six, bye)
			if err != nil {
				return nil // no instance, and no name, is one that cannot be packed
			}
			return b
		})
	}
	var last time.Time
	wait := time.NewTimer(0)
	defer wait.Stop()
	next := time.Now()
	for first := 2; ; {
		select {
		case <-wait.C:
			say(false)
			last = time.Now()
			next = last.Add(nearbyEvery)
			if first--; first > 0 {
				next = last.Add(nearbyGap)
			}
		case <-a.asked:
			at := time.Now().Add(answerDelay())
			if earliest := last.Add(nearbyGap); at.Before(earliest) {
				at = earliest
			}
			if at.Before(next) {
				next = at
			}
		case <-ctx.Done():
			n.mu.Lock()
			delete(n.announced, a.device.Instance)
			n.former[a.device.Instance] = time.Now()
			n.mu.Unlock()
			say(true)
			return
		}
		wait.Reset(time.Until(next))
	}
}

func answerDelay() time.Duration {
	r, err := rand.Int(rand.Reader, big.NewInt(int64(answerMost-answerLeast)))
	if err != nil {
		return answerMost
	}
	return answerLeast + time.Duration(r.Int64())
}

func (n *nearby) watch(ctx context.Context) (<-chan []Device, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{changed: make(chan struct{}, 1), ask: make(chan struct{}, 1), cancel: cancel}
	out := make(chan []Device, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		cancel()
		return nil, fmt.Errorf("lan: nearby: %w", net.ErrClosed)
	}
	n.watchers[w] = struct{}{}
	out <- n.table.list()
	n.wg.Go(func() {
		defer close(out)
		n.look(ctx, w, out)
	})
	return out, nil
}

// look asks three times, as the announcements go on by themselves, and gives the
// list whenever it changed.
func (n *nearby) look(ctx context.Context, w *watcher, out chan []Device) {
	defer w.cancel()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.watchers, w)
		if len(n.watchers) == 0 {
			n.table = nearbyTable{} // nobody keeps it up
		}
	}()
	asks, gap := 3, time.Second
	ask := time.NewTimer(0)
	defer ask.Stop()
	expiry := time.NewTimer(n.expire())
	defer expiry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.ask:
			n.question()
		case <-ask.C:
			n.question()
			if asks--; asks > 0 {
				ask.Reset(gap)
				gap *= 2
			}
		case <-expiry.C:
			expiry.Reset(n.expire())
		case <-w.changed:
			expiry.Reset(n.expire())
			n.mu.Lock()
			list := n.table.list()
			n.mu.Unlock()
			select {
			case <-out: // a list that nobody took is old now
			default:
			}
			out <- list // there is room: nobody else sends
		}
	}
}

// expire drops what was not refreshed, and returns when to look again.
func (n *nearby) expire() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	changed, next := n.table.expire(now)
	if changed {
		n.tellWatchers()
	}
	if next.IsZero() {
		return nearbyLife
	}
	return next.Sub(now)
}

func (n *nearby) tellWatchers() {
	for w := range n.watchers {
		poke(w.changed)
	}
}

func (n *nearby) question() {
	q, err := pairQuestion()
	if err != nil {
		return // a constant that can be packed
	}
	n.tell(func(netmon.Interface, bool) []byte { return q })
}

// take looks at one message that came from a device of this link.
func (n *nearby) take(b []byte, from netip.Addr) {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.announced)+len(n.watchers) == 0 || !n.rate.take(now, nearbyRate) {
		return
	}
	m, err := parsePair(b)
	if err != nil {
		return
	}
	if m.asks {
		for _, a := range n.announced {
			poke(a.asked)
		}
	}
	if len(n.watchers) == 0 {
		return
	}
	changed := false
	for _, r := range m.heard {
		_, was := n.former[r.instance]
		if n.announced[r.instance] == nil && !was {
			changed = n.table.heard(now, from, r) || changed
		}
	}
	if changed {
		n.tellWatchers()
	}
}

// again announces and asks once more, as after a change of the network.
func (n *nearby) again() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.announced {
		poke(a.asked)
	}
	for w := range n.watchers {
		poke(w.ask)
	}
}

// close takes all announcements back and waits for the goroutines.
func (n *nearby) close() {
	n.mu.Lock()
	n.closed = true
	for _, a := range n.announced {
		a.cancel()
	}
	for w := range n.watchers {
		w.cancel()
	}
	n.mu.Unlock()
	n.wg.Wait()
}
