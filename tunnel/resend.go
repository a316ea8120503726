package tunnel

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// WireGuard's handshake messages (whitepaper section 5.4).
const (
	typeInitiation = 1
	typeResponse   = 2
	typeTransport  = 4

	initiationSize = 148 // bytes
	responseSize   = 92  // bytes
)

const (
	// resendFirst is how long an initiation waits for its response before the
	// same bytes go out again, doubled each time up to resendLongest. WireGuard
	// itself tries again only after 5 s. The first is short because the other side
	// may just not have been ready.
	resendFirst   = 50 * time.Millisecond
	resendLongest = 400 * time.Millisecond
	resendTimes   = 12
)

func messageType(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

// A resendBind repeats handshake messages that may have been lost. An initiation
// is sent again until something comes back; its receiver, whose device would take
// the copy for a replay, sends the same response again.
type resendBind struct {
	conn.Bind
	waiting atomic.Int32 // initiations without a response: nothing to look up while it is zero

	mu     sync.Mutex // guards the fields below; not held while sending
	closed bool
	peers  map[string]*handshakes // by endpoint
}

// handshakes are the last handshake messages with one endpoint.
type handshakes struct {
	initiation []byte // ours that waits for a response
	left       int    // how often it may be sent again
	wait       time.Duration
	timer      *time.Timer
	received   []byte // their last initiation
	response   []byte // our response to it
}

func newResendBind(b conn.Bind) *resendBind {
	return &resendBind{Bind: b, peers: make(map[string]*handshakes)}
}

func (r *resendBind) peer(ep conn.Endpoint) *handshakes {
	key := string(ep.DstToBytes())
	h := r.peers[key]
	if h == nil {
		h = &handshakes{}
		r.peers[key] = h
	}
	return h
}

// Open wraps the receive functions of the Bind below.
func (r *resendBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := r.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	r.mu.Lock()
	r.closed = false
	r.mu.Unlock()
	for i, receive := range fns {
		fns[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := receive(packets, sizes, eps)
			for j := range n {
				r.received(packets[j][:sizes[j]], &sizes[j], eps[j])
			}
			return n, err
		}
	}
	return fns, actual, nil
}

// received looks at one packet; it sets size to zero if WireGuard need not see it.
func (r *resendBind) received(b []byte, size *int, ep conn.Endpoint) {
	switch t := messageType(b); {
	case t == typeTransport && r.waiting.Load() == 0:
		return // nearly every packet
	case t == typeTransport, t == typeResponse && len(b) == responseSize:
		r.answered(ep)
	case t == typeInitiation && len(b) == initiationSize:
		if again := r.repeat(b, ep); again != nil {
			*size = 0
			_ = r.Bind.Send([][]byte{again}, ep) // lost again: the next copy brings another
		}
	}
}

func (r *resendBind) answered(ep conn.Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop(r.peer(ep))
}

// stop gives up on an initiation. The caller holds mu.
func (r *resendBind) stop(h *handshakes) {
	if h.initiation != nil {
		h.initiation = nil
		h.timer.Stop()
		r.waiting.Add(-1)
	}
}

// repeat returns the response to an initiation that has been answered before.
func (r *resendBind) repeat(b []byte, ep conn.Endpoint) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.peer(ep)
	if bytes.Equal(h.received, b) {
		return h.response
	}
	h.received, h.response = bytes.Clone(b), nil
	return nil
}

// Send passes packets on and remembers handshake messages.
func (r *resendBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if len(bufs) == 1 {
		switch b := bufs[0]; {
		case len(b) == initiationSize && messageType(b) == typeInitiation:
			r.remember(b, ep)
		case len(b) == responseSize && messageType(b) == typeResponse:
			r.mu.Lock()
			r.peer(ep).response = bytes.Clone(b)
			r.mu.Unlock()
		}
	}
	return r.Bind.Send(bufs, ep)
}

func (r *resendBind) remember(b []byte, ep conn.Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	h := r.peer(ep)
	r.stop(h)
	h.initiation, h.left, h.wait = bytes.Clone(b), resendTimes, resendFirst
	r.waiting.Add(1)
	sent := h.initiation
	h.timer = time.AfterFunc(resendFirst, func() { r.again(h, sent, ep) })
}

// again sends an initiation that is still waiting.
func (r *resendBind) again(h *handshakes, sent []byte, ep conn.Endpoint) {
	r.mu.Lock()
	if r.closed || h.initiation == nil || &h.initiation[0] != &sent[0] {
		r.mu.Unlock()
		return
	}
	if h.left--; h.left < 0 {
		r.stop(h)
		r.mu.Unlock()
		return
	}
	h.wait = min(2*h.wait, resendLongest)
	h.timer.Reset(h.wait)
	r.mu.Unlock()
	_ = r.Bind.Send([][]byte{sent}, ep)
}

// forget drops what is remembered of an endpoint.
func (r *resendBind) forget(ep conn.Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := string(ep.DstToBytes())
	if h := r.peers[key]; h != nil {
		r.stop(h)
		delete(r.peers, key)
	}
}

// Close stops all repeats and closes the Bind below.
func (r *resendBind) Close() error {
	r.mu.Lock()
	r.closed = true
	for _, h := range r.peers {
		r.stop(h)
	}
	r.mu.Unlock()
	return r.Bind.Close()
}
