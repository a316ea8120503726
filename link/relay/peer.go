package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun/v4"
)

const (
	maxPeers    = 1024 // known at a time
	maxBinding  = 16   // new ones at a time
	maxQueue    = 8    // packets per new peer
	maxRenewing = 16   // renewals at a time
)

// The ways to a peer. A peer that can be written to (byChannel, byIndication)
// stays so while its binding is renewed.
const (
	wayNone       uint32 = iota // nothing was asked, or it was let go
	wayAsked                    // packets queue
	wayChannel                  // by ChannelData
	wayIndication               // by Send indications
	wayForbidden                // until peer.again
)

// A peer is an address that we sent to.
type peer struct {
	addr   netip.AddrPort
	number uint16 // of its channel

	way     atomic.Uint32
	used    atomic.Bool   // since the last sweep
	dropped atomic.Uint64 // packets
	serial  atomic.Uint64 // of indications

	mu    sync.Mutex // guards the fields below, and writing way
	queue [][]byte
	bound time.Time     // when the binding was answered last
	idle  time.Duration // for how long it carried nothing
	again time.Time     // wayForbidden ends
	why   error         // of wayForbidden
	renew bool          // a renewal is under way
	gone  bool          // no longer in peers
}

// indication returns a transaction ID. Nothing answers indications, so that it
// need be neither random nor secret, only new.
func (p *peer) indication() (id [12]byte) {
	binary.BigEndian.PutUint64(id[4:], p.serial.Add(1))
	return id
}

// peers are all that we know, by address and by channel.
type peers struct {
	mu      sync.RWMutex
	addrs   map[netip.AddrPort]*peer
	numbers map[uint16]*peer
	next    uint16
	binding chan struct{} // capacity maxBinding: a token per new peer
}

func (ps *peers) init() {
	ps.addrs = make(map[netip.AddrPort]*peer)
	ps.numbers = make(map[uint16]*peer)
	ps.next = firstNumber
	ps.binding = make(chan struct{}, maxBinding)
}

func (ps *peers) byNumber(n uint16) *peer {
	ps.mu.RLock()
	defer ps.mu.RUnlock()
	return ps.numbers[n]
}

func (ps *peers) find(a netip.AddrPort) *peer {
	ps.mu.RLock()
	defer ps.mu.RUnlock()
	return ps.addrs[a]
}

// add returns the peer, a new one if need be; nil if there are too many.
func (ps *peers) add(a netip.AddrPort) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.addrs[a]; p != nil {
		return p
	}
	if len(ps.addrs) >= maxPeers {
		return nil
	}
	for ps.numbers[ps.next] != nil { // it ends: there are more numbers than peers
		ps.advance()
	}
	p := &peer{addr: a, number: ps.next}
	ps.advance()
	ps.addrs[a], ps.numbers[p.number] = p, p
	return p
}

// advance leaves a number alone as long as possible, so that it does not soon
// mean another peer.
func (ps *peers) advance() {
	if ps.next++; ps.next > lastNumber {
		ps.next = firstNumber
	}
}

func (ps *peers) remove(p *peer) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.addrs, p.addr)
	delete(ps.numbers, p.number)
}

func (ps *peers) all() []*peer {
	ps.mu.RLock()
	defer ps.mu.RUnlock()
	out := make([]*peer, 0, len(ps.addrs))
	for _, p := range ps.addrs {
		out = append(out, p)
	}
	return out
}

// Send sends packets to a peer, in order. It does not wait for the server: the
// first packets to a new peer are copied and wait for its answer, at most 8; what
// is more is dropped, as is what a full TCP connection has no room for. The
// packets are not kept. With no packets it only opens the way for what the peer
// sends. It errs with ErrFamily, ErrForbidden, ErrTooLong, ErrBusy, what ended
// the Relay, or what the system says of the first packet that it refused.
func (r *Relay) Send(bufs [][]byte, to netip.AddrPort) error {
	p := r.peers.find(to)
	if p == nil {
		var err error
		if p, err = r.newPeer(to); err != nil {
			return err
		}
	}
	size := 0
	for _, b := range bufs {
		if len(b) > maxPacket {
			return ErrTooLong
		}
		size += len(b)
	}
	if r.quiet.Load() && r.quiet.CompareAndSwap(true, false) {
		poke(r.woken)
	}
	way := p.way.Load()
	if way != wayChannel && way != wayIndication {
		var err error
		if way, err = r.open(p, bufs); err != nil || way == wayAsked {
			return err
		}
	}
	return r.write(p, way, bufs, size)
}

// write sends to a peer whose way is open.
func (r *Relay) write(p *peer, way uint32, bufs [][]byte, size int) error {
	if !p.used.Load() {
		p.used.Store(true)
	}
	number := p.number
	if way == wayIndication {
		number = 0
	}
	r.tx.Add(uint64(size))
	if err := r.conn.packets(bufs, p, number); err != nil {
		select {
		case <-r.done:
			return r.Err()
		default:
		}
		poke(r.doubts)
		return fmt.Errorf("relay: send: %w", err)
	}
	return nil
}

// newPeer notes an address that was not sent to before.
func (r *Relay) newPeer(to netip.AddrPort) (*peer, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
	if err := r.Err(); err != nil {
		return nil, err
	}
	if !to.IsValid() || to.Addr().Is4() != r.addr.Addr().Is4() {
		return nil, ErrFamily
	}
	if p := r.peers.add(to); p != nil {
		return p, nil
	}
	return nil, ErrBusy
}

// open queues packets for a peer that has no way yet, and asks for it. It
// returns a way if one came about meanwhile.
func (r *Relay) open(p *peer, bufs [][]byte) (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone { // between our look and now
		return wayNone, ErrBusy
	}
	switch way := p.way.Load(); way {
	case wayChannel, wayIndication:
		return way, nil
	case wayForbidden:
		if time.Now().Before(p.again) {
			return way, p.why
		}
		fallthrough
	case wayNone:
		select {
		case r.peers.binding <- struct{}{}:
		default:
			return way, ErrBusy
		}
		if !r.start(func() { r.bindNew(p) }) {
			<-r.peers.binding
			return way, r.Err()
		}
		p.way.Store(wayAsked)
	}
	for _, b := range bufs {
		if len(p.queue) == maxQueue {
			p.dropped.Add(1)
			continue
		}
		p.queue = append(p.queue, append([]byte(nil), b...))
	}
	return wayAsked, nil
}

// bindNew asks for the way to a new peer and sends what waited.
func (r *Relay) bindNew(p *peer) {
	defer func() { <-r.peers.binding }()
	way, err := r.bind(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	queue := p.queue
	p.queue = nil
	if err != nil {
		r.refusedLocked(p, err)
		return
	}
	p.bound, p.idle = time.Now(), 0
	size := 0
	for _, b := range queue {
		size += len(b)
	}
	// Before the way is open to others: they wait for the lock, and order is kept.
	// An error is of the network, as of any datagram.
	_ = r.write(p, way, queue, size)
	p.way.Store(way)
}

// refusedLocked notes that there is no way to a peer.
func (r *Relay) refusedLocked(p *peer, err error) {
	r.log.Debug("relay peer refused", "peer", p.addr, "err", err)
	switch {
	case errors.Is(err, ErrForbidden), errors.Is(err, ErrFamily):
		p.again, p.why = time.Now().Add(r.times.refused), err
		p.way.Store(wayForbidden)
	case errors.Is(err, errSilent):
		p.way.Store(wayNone)
		poke(r.doubts)
	default:
		p.way.Store(wayNone)
		r.perhapsLost(err)
	}
}

// perhapsLost ends the Relay if the server does not know it any more.
func (r *Relay) perhapsLost(err error) {
	if errors.Is(err, ErrLost) || errors.Is(err, ErrCredentials) {
		r.lost(err)
	}
}

// bind asks for a channel and, if there is none, for permission.
func (r *Relay) bind(p *peer) (uint32, error) {
	if p.way.Load() != wayIndication {
		_, err := r.ask(nil, stun.MethodChannelBind, r.times.request, channelNumber(p.number), peerAddress(p.addr))
		switch code := stun.ErrorCode(codeOf(err)); {
		case err == nil:
			return wayChannel, nil
		case code == 0, code == stun.CodeForbidden, code == stun.CodeAllocMismatch, code == stun.CodeWrongCredentials,
			code == stun.CodePeerAddrFamilyMismatch:
			return wayNone, err
		}
		// No channel left (508), or it is one that we should not have asked for (400).
		// 401 is what pion's server says of a forbidden peer: this answers with 403.
	}
	if _, err := r.ask(nil, stun.MethodCreatePermission, r.times.request, peerAddress(p.addr)); err != nil {
		return wayNone, err
	}
	return wayIndication, nil
}

// sweep renews what is used and lets go what is not.
func (r *Relay) sweep() {
	ticker := time.NewTicker(r.times.sweep)
	defer ticker.Stop()
	slots := make(chan struct{}, maxRenewing)
	for {
		select {
		case <-r.done:
			return
		case now := <-ticker.C:
			for _, p := range r.peers.all() {
				if !r.due(p, now) {
					continue
				}
				select {
				case slots <- struct{}{}:
				case <-r.done:
					return
				}
				if !r.start(func() { r.rebind(p); <-slots }) {
					return
				}
			}
		}
	}
}

// due reports whether a peer's binding is to be renewed now, and notes that.
func (r *Relay) due(p *peer, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used.Swap(false) {
		p.idle = 0
	} else {
		p.idle += r.times.sweep
	}
	switch p.way.Load() {
	case wayChannel, wayIndication:
		if p.renew || now.Sub(p.bound) < r.times.rebind {
			return false
		}
		if p.idle < r.times.unused {
			p.renew = true
			return true
		}
		p.way.Store(wayNone) // the next Send asks anew
	case wayNone, wayForbidden:
		if now.Sub(p.bound) >= r.times.forget && now.After(p.again) {
			p.gone = true
			r.peers.remove(p)
		}
	}
	return false
}

// rebind renews a binding. What is sent meanwhile goes the old way.
func (r *Relay) rebind(p *peer) {
	way, err := r.bind(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renew = false
	if err == nil {
		p.bound = time.Now()
		p.way.Store(way)
		return
	}
	// Silence is not the end of a binding that lives for minutes more: the next
	// sweep asks again, and the keeper finds out about the server.
	if errors.Is(err, errSilent) && time.Since(p.bound) < r.times.forget/3 {
		poke(r.doubts)
		return
	}
	r.refusedLocked(p, err)
}
