package link

import (
	"bytes"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// A route is where data goes: one carrier and the way it names the peer.
type route struct {
	carrier carrier
	ep      conn.Endpoint
}

// A held packet is a WireGuard handshake message that came before there was a
// path: one end may have a path a moment before the other, and WireGuard would
// repeat a lost message only after five seconds.
type held struct {
	packet []byte
	since  time.Time
}

// holdFor is how long a held packet is of use.
const holdFor = time.Second

// A carrier takes datagrams to endpoints of its own kind: the UDP socket, or a relay.
type carrier interface {
	carry(bufs [][]byte, ep conn.Endpoint) error
}

// transmit sends data on the selected path.
func (l *Link) transmit(bufs [][]byte) error {
	r := l.route.Load()
	if !l.sent.Load() {
		l.sent.Store(true)
		l.poke()
	}
	if r == nil {
		if len(bufs) != 1 || !isHandshake(bufs[0]) || l.ended() {
			return ErrNoPath
		}
		l.held.Store(&held{packet: bytes.Clone(bufs[0]), since: time.Now()})
		if l.route.Load() != nil { // it has come since we looked
			l.release()
		}
		return nil
	}
	if l.waiting.Load() == 0 {
		l.waiting.Store(int64(time.Since(l.born)) | 1)
	}
	if err := r.carrier.carry(bufs, r.ep); err != nil {
		l.order(func(o *orders) { o.failed = true })
		return err
	}
	size := 0
	for _, b := range bufs {
		size += len(b)
	}
	l.meter.sent.Add(uint64(size))
	return nil
}

func isHandshake(b []byte) bool {
	const longest = 256 // bytes; an initiation has 148, a response 92
	return isWireGuard(b) && b[0] <= 2 && len(b) <= longest
}

// release sends the held packet, if there is one that is still of use.
func (l *Link) release() {
	if h := l.held.Swap(nil); h != nil && time.Since(h.since) < holdFor {
		_ = l.transmit([][]byte{h.packet}) // lost like any datagram
	}
}

func (l *Link) ended() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// received notes that data came from one of the peer's addresses.
func (l *Link) received(t *tally) {
	if l.waiting.Load() != 0 {
		l.waiting.Store(0)
	}
	l.meter.arrive(t)
	if !l.heard.Load() {
		l.heard.Store(true)
		l.poke()
	}
}
