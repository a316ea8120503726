package tunnel

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// A resendBind is a conn.Bind that repairs lost handshake messages, by means of a
// resender. All else passes through.
type resendBind struct {
	conn.Bind
	waiting atomic.Int32 // initiations without an answer: while there is none, data is not looked at

	mu      sync.Mutex // guards the fields below; not held while sending
	open    bool
	core    *resender
	timer   *time.Timer
	sending sync.WaitGroup // timers that are sending
}

func newResendBind(b conn.Bind) *resendBind { return &resendBind{Bind: b, core: newResender()} }

// Open wraps the receive functions of the Bind below.
func (r *resendBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := r.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	r.mu.Lock()
	r.open = true
	r.mu.Unlock()
	wrapped := make([]conn.ReceiveFunc, len(fns))
	for i, receive := range fns {
		wrapped[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := receive(packets, sizes, eps)
			for j := range n {
				b := packets[j][:sizes[j]]
				if t := messageType(b); t == 0 || (t == typeTransport && r.waiting.Load() == 0) {
					continue // nearly every packet
				}
				if r.received(b, eps[j]) {
					sizes[j] = 0
				}
			}
			return n, err
		}
	}
	return wrapped, actual, nil
}

// received reports whether WireGuard must not see a packet.
func (r *resendBind) received(b []byte, ep conn.Endpoint) bool {
	r.mu.Lock()
	reply, hide := r.core.received(time.Now(), b, ep)
	r.schedule()
	r.mu.Unlock()
	if reply != nil {
		_ = r.Bind.Send([][]byte{reply}, ep) // lost again: the next copy brings another
	}
	return hide
}

// Send passes packets on and remembers handshake messages, which always go alone.
func (r *resendBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if len(bufs) == 1 {
		if t := messageType(bufs[0]); t == typeInitiation || t == typeResponse {
			r.mu.Lock()
			if r.open {
				r.core.sent(time.Now(), bufs[0], ep)
				r.schedule()
			}
			r.mu.Unlock()
		}
	}
	return r.Bind.Send(bufs, ep)
}

// schedule sets the timer. The caller holds mu.
func (r *resendBind) schedule() {
	r.waiting.Store(int32(len(r.core.waiting)))
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	if next := r.core.nextDue(); !next.IsZero() && r.open {
		r.timer = time.AfterFunc(time.Until(next), r.resend)
	}
}

// resend sends the initiations that are due.
func (r *resendBind) resend() {
	r.mu.Lock()
	if !r.open {
		r.mu.Unlock()
		return
	}
	r.sending.Add(1)
	defer r.sending.Done()
	now := time.Now()
	var due []initiation
	for w := r.core.due(now); w != nil; w = r.core.due(now) {
		due = append(due, *w)
	}
	r.schedule()
	r.mu.Unlock()
	for _, w := range due {
		_ = r.Bind.Send([][]byte{w.message}, w.to) // no path: another one follows
	}
}

// forget drops what is remembered of an endpoint.
func (r *resendBind) forget(ep conn.Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.core.forget(ep)
	r.schedule()
}

// Close ends all repeats and closes the Bind below; a repeat that is being sent is
// waited for.
func (r *resendBind) Close() error {
	r.mu.Lock()
	r.open = false
	r.core.reset()
	r.schedule()
	r.mu.Unlock()
	err := r.Bind.Close()
	r.sending.Wait()
	return err
}
