package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/kithproject/kith/identity"
)

// What this file repairs: while nothing gets through, the stack repeats the oldest
// unacknowledged data ever more seldom, and halves the threshold up to which it may
// send ever faster each time it does, down to two packets. (RFC 5681 section 3.1
// has the threshold stay as it is from the second repetition on.) So when a path is
// there again, a connection says nothing for up to maxRTO, and then takes half a
// minute to find its speed.
const (
	// silence is how long nothing may have come from a peer for its connections to be
	// looked at when something does: as long as the stack's first two repetitions,
	// the second of which does the harm, take.
	silence = 500 * time.Millisecond
	// memory is for how long a last word is kept: a connection that still waits for
	// an answer has said it again by then.
	memory = 2 * maxRTO
	// maxWords is of how many connections the last word is kept, and maxSaid how many
	// of them are said again at once, in number.
	maxWords = 1024
	maxSaid  = 64
)

// A flow is one direction of a TCP connection.
type flow struct {
	peer  netip.Addr
	ports uint32 // ours and the peer's
}

// A word is a packet with data, as it was given to WireGuard.
type word struct {
	packet []byte
	at     time.Time
}

// lastWords remembers of each connection the last small packet with data. When a
// connection waits for an answer that does not come, this is what it waits for:
// the stack repeats one packet alone. It is safe for concurrent use.
type lastWords struct {
	mu     sync.Mutex
	of     map[flow]*word
	pruned time.Time
}

// isWord reports whether a packet waits for an answer: it has data, or begins a
// connection.
func isWord(p []byte) bool {
	if len(p) < tcpRest || p[0]>>4 != header.IPv6Version || p[ipNext] != byte(header.TCPProtocolNumber) {
		return false
	}
	return len(p) > ipHeader+int(p[tcpOffset]>>4)*4 || header.TCPFlags(p[tcpFlags])&header.TCPFlagSyn != 0
}

// note keeps a packet that isWord.
func (l *lastWords) note(now time.Time, p []byte) {
	f := flow{netip.AddrFrom16([16]byte(p[ipTarget:])), binary.BigEndian.Uint32(p[tcpPorts:])}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.of[f]
	if w == nil {
		if len(l.of) >= maxWords && !l.prune(now) {
			return
		}
		if l.of == nil {
			l.of = make(map[flow]*word)
		}
		w = &word{}
		l.of[f] = w
	}
	w.packet, w.at = append(w.packet[:0], p...), now
}

// prune drops what is too old, at most once a second, and reports whether there is
// room. The caller holds mu.
func (l *lastWords) prune(now time.Time) bool {
	if now.Sub(l.pruned) < time.Second {
		return false
	}
	l.pruned = now
	for f, w := range l.of {
		if now.Sub(w.at) > memory {
			delete(l.of, f)
		}
	}
	return len(l.of) < maxWords
}

// to returns copies of the last words to a peer, of the flows that fit.
func (l *lastWords) to(now time.Time, peer netip.Addr, fits func(ports uint32) bool) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all [][]byte
	for f, w := range l.of {
		if f.peer == peer && now.Sub(w.at) <= memory && len(all) < maxSaid && fits(f.ports) {
			all = append(all, bytes.Clone(w.packet))
		}
	}
	return all
}

// say queues a packet again, unless the queue is full.
func (n *nic) say(p []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
	select {
	case n.queue <- pkt:
	default:
		pkt.DecRef()
	}
}

// hearing remembers when something last came from each peer. It is safe for
// concurrent use.
type hearing struct {
	mu   sync.RWMutex
	last map[netip.Addr]time.Time
}

// heard reports whether a peer had been silent.
func (h *hearing) heard(now time.Time, peer netip.Addr) bool {
	h.mu.RLock()
	last, known := h.last[peer]
	h.mu.RUnlock()
	// Not each batch needs the lock for writing.
	if known && now.Sub(last) < silence/10 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil {
		h.last = make(map[netip.Addr]time.Time)
	}
	h.last[peer] = now
	return known && now.Sub(last) > silence
}

func (h *hearing) forget(peer netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.last, peer)
}

// Revive lets a device's connections go on at once, without waiting for their next
// repetition: to be called when a path to it is there again, or another one. What
// they said last is sent once more, and those that had no answer for longer look for
// the path's speed from the start. Without a call the same happens as soon as something
// comes from the device after a silence. It does nothing for an unknown device.
func (t *Tunnel) Revive(id identity.DeviceID) {
	if _, err := t.peer(id); err == nil {
		t.revive(id, true)
	}
}

// revive is Revive. A connection that does not wait says nothing again: it would
// take the answer for a loss. Of those that the program has closed already nobody
// knows whether they wait; they say their last word if that is asked for.
func (t *Tunnel) revive(id identity.DeviceID, closed bool) {
	t.mu.Lock()
	conns := keys(t.conns[id])
	t.mu.Unlock()
	waiting := make(map[uint32]bool, len(conns))
	for _, c := range conns {
		waiting[c.ports()] = c.restart()
	}
	fits := func(ports uint32) bool {
		waits, open := waiting[ports]
		return waits || closed && !open
	}
	for _, p := range t.nic.words.to(time.Now(), id.Addr(), fits) {
		t.nic.say(p)
	}
}

// back is called when something came from an address that had been silent.
func (t *Tunnel) back(addr netip.Addr) {
	if id, ok := t.Peer(addr); ok {
		t.revive(id, false)
	}
}

// collapsed is the threshold that is left after the second repetition, in packets.
const collapsed = 2

// restart reports whether a connection has repeated data without an answer, or has
// not begun yet. One that has done so twice looks for the path's speed anew.
//
// Choosing a congestion control is what resets one. To do so in another state
// could leave a connection without any limit: one that repairs single losses takes
// the threshold for its window at the end, and here the threshold is infinite.
// After a single repetition, which a full queue on the way causes as well, the
// threshold is right, unless so little was on the way that it says nothing.
func (c *tracked) restart() bool {
	var info tcpip.TCPInfoOption
	if c.ep.GetSockOpt(&info) != nil {
		return false
	}
	if info.State == tcpip.EndpointState(tcp.StateSynSent) {
		return true
	}
	if info.CcState != tcpip.RTORecovery {
		return false
	}
	if info.SndSsthresh <= collapsed {
		cc := congestionControl
		_ = c.ep.SetSockOpt(&cc) // fails for an unknown name only
	}
	return true
}

// ports returns the connection's ports, as a flow has them.
func (c *tracked) ports() uint32 {
	return uint32(c.local.Port())<<16 | uint32(c.remote.Port())
}
