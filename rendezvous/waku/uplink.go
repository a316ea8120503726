package waku

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	pingInterval   = time.Minute            // of a connection that is quiet
	checkLeast     = 300 * time.Millisecond // for the answer of a node that is asked whether it is there:
	checkMost      = 2 * time.Second        // as long as connecting took, which is several round trips
	soonFor        = 5 * time.Minute        // after a loss, attempts to connect follow each other fast
	soonRetry      = time.Second
	firstRetry     = 500 * time.Millisecond
	longestRetry   = 30 * time.Second
	usefulRetry    = 50 * time.Millisecond // after a connection that carried a message
	steady         = 30 * time.Second      // a connection that lasts so long is a good one
	refusedRetry   = 10 * time.Minute      // of a node that does not want us
	subscribeRetry = 5 * time.Second       // after a subscription was refused
	metadataFresh  = 6 * time.Hour         // 66/WAKU2-METADATA
	pushesAtOnce   = 32                    // to one node
	topicsAtOnce   = 10                    // in one request: what all implementations take
	pageSize       = 20                    // messages of one store request
	smallPage      = 4                     // where one of pageSize is too large
	maxPages       = 3
	storeLimit     = 1 << 20  // bytes of one page
	identifyLimit  = 64 << 10 // bytes
)

// An owner is what an uplink works for: an Exchange or a Service.
type owner interface {
	// wants reports whether a content topic is to be subscribed.
	wants(topic string) bool
	// topics lists all of them.
	topics() []string
	// arrived takes a message of a topic that is wanted. stored says that it came
	// from the node's store.
	arrived(u *uplink, pubsub string, m *message, stored bool)
	// changed says that the node is there, or no longer; again that it was before.
	changed(u *uplink, up, again bool)
}

// An uplink keeps a connection to one node, as its client. Its methods are safe
// for concurrent use.
type uplink struct {
	o    owner
	h    *host
	addr address
	net  Network
	log  *slog.Logger

	ctx     context.Context //nolint:containedctx // ends with the owner's Close
	wg      *sync.WaitGroup // the owner's
	wake    chan struct{}   // holds a token while there is something to do
	pushing chan struct{}   // one token for each push under way

	mu       sync.Mutex      // guards the fields below
	link     *link           // nil: not connected
	err      error           // why not
	refused  error           // why the node is of no use though it is connected
	fatal    error           // why the connection is being given up
	verified time.Time       // when its metadata were good
	speaks   map[string]bool // the protocols that it told then; nil: not known. It does not change
	dirty    map[string]struct{}
	asking   bool          // Check is at work
	forgot   bool          // Check found that the node has none of our subscriptions
	hurry    bool          // an attempt to connect is wanted at once
	did      bool          // the connection has carried a message
	was      bool          // there was a connection before
	lost     time.Time     // when a good one ended
	took     time.Duration // to connect
}

func newUplink(ctx context.Context, wg *sync.WaitGroup, o owner, h *host, a address, n Network, log *slog.Logger) *uplink {
	return &uplink{
		o: o, h: h, addr: a, net: n, log: log.With("node", a.text), ctx: ctx, wg: wg,
		wake: make(chan struct{}, 1), pushing: make(chan struct{}, pushesAtOnce), dirty: make(map[string]struct{}),
	}
}

func (u *uplink) nudge() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// changedTopic says that a topic may be wanted now, or no longer.
func (u *uplink) changedTopic(topic string) {
	u.mu.Lock()
	u.dirty[topic] = struct{}{}
	u.mu.Unlock()
	u.nudge()
}

// state returns the connection, or why there is none.
func (u *uplink) state() (*link, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.link != nil && u.refused == nil && u.fatal == nil {
		return u.link, nil
	}
	if err := cmp.Or(u.fatal, u.refused, u.err); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("waku: %s: %w", u.addr.text, ErrConnecting)
}

// run keeps the connection until the context ends.
func (u *uplink) run() {
	failures := 0
	for u.ctx.Err() == nil {
		start := time.Now()
		u.mu.Lock()
		u.did, u.hurry = false, false
		u.mu.Unlock()
		l, err := u.connect()
		if err == nil {
			u.mu.Lock()
			u.took = time.Since(start)
			u.mu.Unlock()
			err = u.live(l)
		}
		if u.ctx.Err() != nil {
			return
		}
		u.mu.Lock()
		failures++
		if u.did {
			failures = 0
		} else if time.Since(start) > steady {
			failures = 1
		}
		u.err = explain(u.addr.text, err)
		wait := u.backoff(failures)
		u.mu.Unlock()
		u.log.Debug("node not connected", "err", err)
		u.pause(wait)
	}
}

// backoff returns how long to wait after so many attempts that came to nothing.
func (u *uplink) backoff(failures int) time.Duration {
	longest := longestRetry
	switch {
	case errors.Is(u.err, ErrCluster) || errors.Is(u.err, ErrProof):
		return refusedRetry
	case failures == 0:
		return usefulRetry
	case !u.lost.IsZero() && time.Since(u.lost) < soonFor:
		longest = soonRetry
	}
	wait := min(firstRetry<<min(failures-1, 10), longest)
	return wait*3/4 + rand.N(wait/2) //nolint:gosec // jitter
}

// pause waits, until Check says that it is time.
func (u *uplink) pause(wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-u.ctx.Done():
			return
		case <-u.wake:
		}
		u.mu.Lock()
		hurry := u.hurry
		u.mu.Unlock()
		if hurry {
			return
		}
	}
}

// connect opens the connection and makes sure that the node is of the network.
func (u *uplink) connect() (*link, error) {
	ctx, cancel := context.WithTimeout(u.ctx, connectTimeout)
	defer cancel()
	conn, err := u.h.dial(ctx, u.addr)
	if err != nil {
		return nil, err
	}
	return newLink(u.h, conn, map[string]handler{protoFilter: u.pushed, protoMetadata: u.metadata}, clientStreams), nil
}

// live uses a connection until it ends.
func (u *uplink) live(l *link) (err error) {
	ctx, cancel := context.WithCancel(u.ctx)
	var serving sync.WaitGroup
	serving.Go(func() {
		l.serve(ctx)
		cancel()
	})
	defer serving.Wait()
	defer cancel()
	if err := u.greet(ctx, l); err != nil {
		return err
	}
	began, up := time.Now(), false
	defer func() {
		if !up {
			return
		}
		u.mu.Lock()
		u.link = nil
		if u.did || time.Since(began) > steady {
			u.lost = time.Now()
		}
		if u.fatal != nil {
			err = u.fatal
		}
		u.fatal, u.refused = nil, nil
		u.mu.Unlock()
		u.o.changed(u, false, false)
	}()
	return u.follow(ctx, l, func() {
		u.mu.Lock()
		u.link, u.err, u.refused, u.fatal = l, nil, nil, nil
		again := u.was
		u.was, up = true, true
		u.mu.Unlock()
		u.log.Info("node connected")
		u.o.changed(u, true, again)
	})
}

// greet asks the node what it speaks (libp2p's identify), and compares the
// networks (66/WAKU2-METADATA), unless that was done lately.
func (u *uplink) greet(ctx context.Context, l *link) error {
	u.mu.Lock()
	fresh := !u.verified.IsZero() && time.Since(u.verified) < metadataFresh
	u.mu.Unlock()
	if fresh {
		return nil
	}
	var identity []byte
	var unknown error
	var asking sync.WaitGroup
	asking.Go(func() { identity, unknown = l.request(ctx, protoIdentify, nil, identifyLimit) })
	answer, err := l.request(ctx, protoMetadata, u.ours().append(nil), maxEnvelope)
	asking.Wait()
	var speaks map[string]bool // nil: it does not tell
	if unknown == nil {
		if speaks, unknown = parseIdentify(identity); unknown != nil {
			return unknown
		}
	}
	switch {
	case err == nil:
		m, err := parseMetadata(answer)
		if err != nil {
			return err
		}
		if m.hasCluster && m.cluster != uint64(u.net.Cluster) {
			return fmt.Errorf("%w %d, not of %d", ErrCluster, m.cluster, u.net.Cluster)
		}
	case errors.Is(err, errNotSupported) || speaks != nil && !speaks[protoMetadata]:
		// The requests themselves will tell.
	default:
		return err
	}
	if speaks != nil && !speaks[protoSubscribe] && !speaks[protoPush2] && !speaks[protoPush3] {
		return ErrService
	}
	u.mu.Lock()
	u.verified, u.speaks = time.Now(), speaks
	u.mu.Unlock()
	return nil
}

// request makes a request, unless the node is known not to speak the protocol.
func (u *uplink) request(ctx context.Context, l *link, name string, msg []byte, limit int) ([]byte, error) {
	u.mu.Lock()
	speaks := u.speaks
	u.mu.Unlock()
	if speaks != nil && !speaks[name] {
		return nil, errNotSupported
	}
	return l.request(ctx, name, msg, limit)
}

func (u *uplink) ours() *metadata {
	return &metadata{cluster: uint64(u.net.Cluster), hasCluster: true, shards: u.net.shards()}
}

// metadata answers a node that asks for ours.
func (u *uplink) metadata(_ *link, s *stream) {
	if b, err := readDelimited(s.r, maxEnvelope); err != nil || len(b) > maxEnvelope {
		return
	}
	s.reply(u.ours().append(nil))
}

// refuse gives a node up that cannot be used: its connection is closed, and the
// next attempt comes late.
func (u *uplink) refuse(err error) {
	u.mu.Lock()
	l := u.link
	u.fatal = err
	u.mu.Unlock()
	if l != nil {
		l.close()
	}
}

// check asks the node whether it is there, and drops the connection if it does
// not answer soon, or if the address that the connection has is gone. Where there
// is no connection it makes an attempt now.
func (u *uplink) check() {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.link
	if l == nil {
		u.hurry = true
		u.nudge()
		return
	}
	if u.asking {
		return
	}
	u.asking = true
	wait := min(max(u.took, checkLeast), checkMost)
	u.wg.Go(func() {
		ctx, cancel := context.WithTimeout(u.ctx, wait)
		defer cancel()
		var err error
		if gone(l.local) {
			err = errors.New("the local address is gone")
		} else if forgot, pinged := u.ping(ctx, l, true); pinged != nil {
			err = pinged
		} else if forgot {
			u.mu.Lock()
			u.forgot = true
			u.mu.Unlock()
			u.nudge()
		}
		if err != nil && u.ctx.Err() == nil {
			u.log.Info("node does not answer")
			l.close()
		}
		u.mu.Lock()
		u.asking = false
		u.mu.Unlock()
	})
}

// gone reports whether the connection's own address is none of ours any more.
func gone(local netip.Addr) bool {
	if !local.IsValid() || local.IsUnspecified() {
		return false
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == local.WithZone("")
	})
}
