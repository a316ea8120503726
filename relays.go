package kith

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/link/relay"
)

// relays opens relays while at least one peer needs one, and closes them when
// none did for a while.
type relays struct {
	n    *Node
	kick chan struct{}

	mu   sync.Mutex // guards the fields below
	need map[*peer]struct{}
	more []relayPlace            // that run does not keep yet
	less []hubaddr.Address       // hubs whose places run is to give up
	open map[string]*relay.Relay // by name
}

// relayLinger is how long a relay stays open when no peer needs it any more: a
// path that just became straight may not last.
const relayLinger = 30 * time.Second

// relayReview is how often it is asked whether peers that need a relay can still
// be hoped for.
const relayReview = time.Minute

func newRelays(n *Node) *relays {
	return &relays{n: n, kick: make(chan struct{}, 1), need: make(map[*peer]struct{}), open: make(map[string]*relay.Relay)}
}

// want tells whether a peer has no straight path, and can be hoped for.
func (r *relays) want(p *peer, needed bool) {
	r.mu.Lock()
	_, was := r.need[p]
	if needed {
		r.need[p] = struct{}{}
	} else {
		delete(r.need, p)
	}
	r.mu.Unlock()
	if was != needed {
		poke(r.kick)
	}
}

func (r *relays) wanted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.need) > 0 && r.n.cfg.Relay != RelayNever
}

// names returns those of the servers that are open.
func (r *relays) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.open))
}

// check asks open relays whether they are still there.
func (r *relays) check() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.open {
		one.Check()
	}
	poke(r.kick)
}

// A relayPlace is one server, with its URLs in the order of preference.
type relayPlace struct {
	name string
	hub  hubaddr.Address // the zero value: none
	cfgs []relay.Config
}

func hubPlace(h hubaddr.Address, log *slog.Logger) relayPlace {
	place := relayPlace{name: h.Host, hub: h}
	for _, u := range h.TURNURLs() {
		place.cfgs = append(place.cfgs, relay.Config{URL: u, Secret: h.TURNSecret(), TLS: h.TLSConfig(), Logger: log})
	}
	return place
}

// add has one more server kept from now on.
func (r *relays) add(place relayPlace) {
	r.mu.Lock()
	r.more = append(r.more, place)
	r.mu.Unlock()
	poke(r.kick)
}

// remove has a hub's server given up.
func (r *relays) remove(h hubaddr.Address) {
	r.mu.Lock()
	more := len(r.more)
	if r.more = slices.DeleteFunc(r.more, func(p relayPlace) bool { return p.hub == h }); len(r.more) == more {
		r.less = append(r.less, h)
	}
	r.mu.Unlock()
	poke(r.kick)
}

func (r *relays) places() []relayPlace {
	var out []relayPlace
	for _, h := range r.n.cfg.Hubs {
		out = append(out, hubPlace(h, r.n.cfg.Logger))
	}
	for _, t := range r.n.cfg.TURN {
		cfg := t.config()
		cfg.Logger = r.n.cfg.Logger
		out = append(out, relayPlace{name: t.URL, cfgs: []relay.Config{cfg}})
	}
	return out
}

// A keptPlace is a server that has a goroutine.
type keptPlace struct {
	hub  hubaddr.Address
	kick chan struct{}
	end  context.CancelFunc
}

// run keeps one goroutine per server, each of which opens it while wanted.
func (r *relays) run() {
	var wg sync.WaitGroup
	defer wg.Wait()
	var kept []keptPlace
	keep := func(places []relayPlace) {
		for _, place := range places {
			ctx, cancel := context.WithCancel(r.n.ctx)
			kick := make(chan struct{}, 1)
			kept = append(kept, keptPlace{place.hub, kick, cancel})
			wg.Go(func() {
				defer cancel()
				r.keep(ctx, place, kick)
			})
		}
	}
	keep(r.places())
	review := time.NewTicker(relayReview)
	defer review.Stop()
	for {
		select {
		case <-r.n.ctx.Done():
			return
		case <-review.C:
			for _, p := range r.n.allPeers() {
				p.post(p.needRelay)
			}
		case <-r.kick:
			r.mu.Lock()
			more, less := r.more, r.less
			r.more, r.less = nil, nil
			r.mu.Unlock()
			kept = slices.DeleteFunc(kept, func(k keptPlace) bool {
				gone := !k.hub.IsZero() && slices.Contains(less, k.hub)
				if gone {
					k.end()
				}
				return gone
			})
			keep(more)
			for _, k := range kept {
				poke(k.kick)
			}
		}
	}
}

const (
	relayRetry    = time.Second
	relayLastWait = time.Minute
	// relayStagger is how long a URL of a server waits for the better one before it.
	relayStagger = 250 * time.Millisecond
	relayDial    = 10 * time.Second
)

// keep opens one server while it is wanted, until ctx ends.
func (r *relays) keep(ctx context.Context, place relayPlace, kick chan struct{}) {
	wait := relayRetry
	for {
		for !r.wanted() {
			select {
			case <-ctx.Done():
				return
			case <-kick:
			}
		}
		one, port, err := r.dial(ctx, place)
		if err == nil {
			wait = relayRetry
			r.serve(ctx, place, one, port, kick)
			continue
		}
		r.n.cfg.Logger.Info("relay not opened", "relay", place.name, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-kick:
			wait = relayRetry
		case <-time.After(wait):
			wait = min(2*wait, relayLastWait)
		}
	}
}

// A late is what a relay delivers to once it is attached.
type late struct {
	mu   sync.RWMutex
	port *link.Port
}

func (l *late) receive(from netip.AddrPort, packet []byte) {
	l.mu.RLock()
	port := l.port
	l.mu.RUnlock()
	if port != nil {
		port.Deliver(from, packet)
	}
}

// dial races the server's URLs, each a little after the one before it.
func (r *relays) dial(ctx context.Context, place relayPlace) (*relay.Relay, *late, error) {
	ctx, cancel := context.WithTimeout(ctx, relayDial)
	defer cancel()
	type outcome struct {
		relay *relay.Relay
		to    *late
		err   error
	}
	results := make(chan outcome)
	next := make([]chan struct{}, len(place.cfgs)+1) // closed when that URL may begin
	for i := range next {
		next[i] = make(chan struct{})
	}
	close(next[0])
	for i, cfg := range place.cfgs {
		go func() {
			select {
			case <-next[i]:
			case <-ctx.Done():
				results <- outcome{err: ctx.Err()}
				return
			}
			timer := time.AfterFunc(relayStagger, func() { close(next[i+1]) })
			to := new(late)
			cfg.Receive = to.receive
			one, err := relay.Dial(ctx, cfg)
			if err != nil && timer.Stop() {
				close(next[i+1])
			}
			results <- outcome{one, to, err}
		}()
	}
	var best outcome
	for range place.cfgs { // each sends one outcome, soon after ctx has ended
		o := <-results
		switch {
		case o.err != nil:
			// What a URL said weighs more than that time was up.
			if best.err == nil || ctx.Err() == nil {
				best.err = o.err
			}
		case best.relay != nil:
			_ = o.relay.Close() // the other was first
		default:
			best = o
			cancel()
		}
	}
	if best.relay == nil {
		return nil, nil, best.err
	}
	return best.relay, best.to, nil
}

// serve uses a relay until it is lost, not wanted for a while, or ctx ends.
func (r *relays) serve(ctx context.Context, place relayPlace, one *relay.Relay, to *late, kick chan struct{}) {
	port := r.n.socket.AttachRelay(one, place.name, one.Addr())
	to.mu.Lock()
	to.port = port
	to.mu.Unlock()
	r.mu.Lock()
	r.open[place.name] = one
	r.mu.Unlock()
	r.n.cfg.Logger.Info("relay opened", "relay", place.name, "addr", one.Addr())
	r.n.addressesChanged()
	defer func() {
		r.mu.Lock()
		if r.open[place.name] == one { // and not what has taken its place
			delete(r.open, place.name)
		}
		r.mu.Unlock()
		port.Detach()
		tx, rx := one.Stats()
		r.n.relayed.add(tx, rx)
		_ = one.Close() // what it was to release is gone with it
		r.n.cfg.Logger.Info("relay closed", "relay", place.name, "err", one.Err(), "sent", tx, "received", rx)
		r.n.addressesChanged()
	}()
	var idle <-chan time.Time
	for {
		switch wanted := r.wanted(); {
		case wanted:
			idle = nil
		case idle == nil:
			idle = time.After(relayLinger)
		}
		select {
		case <-ctx.Done():
			return
		case <-one.Done():
			return
		case <-idle:
			return
		case <-kick:
		}
	}
}

// traffic counts bytes through relays that are closed.
type traffic struct {
	mu     sync.Mutex
	tx, rx uint64
}

func (t *traffic) add(tx, rx uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tx += tx
	t.rx += rx
}

// relayedBytes returns what went through relays since the node was opened.
func (n *Node) relayedBytes() (tx, rx uint64) {
	n.relayed.mu.Lock()
	tx, rx = n.relayed.tx, n.relayed.rx
	n.relayed.mu.Unlock()
	r := n.reach.relays
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.open {
		t, x := one.Stats()
		tx, rx = tx+t, rx+x
	}
	return tx, rx
}
