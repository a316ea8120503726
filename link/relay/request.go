package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

// maxWaiting is how many requests may be under way: 16 binds, the renewals, and
// the keeper's.
const maxWaiting = 64

// A pace says how often a request is sent and how long each waits for an answer;
// double: every further wait is twice the one before it, up to maxWait.
//
// A port where nobody listens is asked again after a shorter time, and either
// given up after some refusals in a row, or tried for a while.
type pace struct {
	tries    int
	wait     time.Duration
	double   bool
	again    time.Duration // the wait after a refusal of the system
	enough   int           // refusals that end it; 0: it goes on for patience
	patience time.Duration // since the first try; then refusals count like silence
}

const maxWait = 1600 * time.Millisecond

type transactionID = [stun.TransactionIDSize]byte

// transactions are the requests that wait for an answer.
type transactions struct {
	mu sync.Mutex
	m  map[transactionID]chan *stun.Message
}

func (t *transactions) init() { t.m = make(map[transactionID]chan *stun.Message) }

// add returns where answers arrive, or nil if too many are waited for.
func (t *transactions) add(id transactionID) chan *stun.Message {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) >= maxWaiting {
		return nil
	}
	c := make(chan *stun.Message, 2) // a retransmission may be answered as well
	t.m[id] = c
	return c
}

func (t *transactions) remove(id transactionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.m, id)
}

// answered gives a response to whom it belongs. The frame is copied.
func (t *transactions) answered(frame []byte) {
	t.mu.Lock()
	c := t.m[transactionID(frame[8:stunHeader])]
	t.mu.Unlock()
	if c == nil {
		return
	}
	m := new(stun.Message)
	if err := stun.Decode(frame, m); err != nil {
		return
	}
	select {
	case c <- m:
	default:
	}
}

// roundTrip sends a request until it is answered; stop ends it. Answers that are
// not good are as if lost; nil: all are. It errs with errSilent, ErrBusy, what
// the system says, or what ended the Relay.
func (r *Relay) roundTrip(stop <-chan struct{}, m *stun.Message, p pace, good func(*stun.Message) bool) (*stun.Message, error) {
	answers := r.waiting.add(m.TransactionID)
	if answers == nil {
		return nil, ErrBusy
	}
	defer r.waiting.remove(m.TransactionID)
	var sys error
	start, refusals := time.Now(), 0
	timer := time.NewTimer(p.wait)
	defer timer.Stop()
	for try, wait := 0, p.wait; try < p.tries; try++ {
		err := r.conn.request(m.Raw)
		if isRefused(err) { // of an earlier packet: this one was not sent
			err = r.conn.request(m.Raw)
		}
		if err != nil {
			sys = err
		}
		pause, refused := wait, isRefused(err)
		if refused || refusals > 0 && p.enough == 0 {
			pause = p.again
		}
		timer.Reset(pause)
	waiting:
		for {
			select {
			case answer := <-answers:
				switch {
				case answer == nil:
					if !refused {
						refused = true
						timer.Reset(p.again)
					}
				case good == nil || good(answer):
					return answer, nil
				}
			case <-timer.C:
				break waiting
			case <-r.done:
				return nil, r.Err()
			case <-stop:
				return nil, errSilent
			}
		}
		if refused {
			refusals++
			sys = errRefused
			if refusals == p.enough {
				break
			}
		}
		if refusals > 0 && time.Since(start) < p.patience {
			try--
			continue
		}
		if p.double {
			wait = min(2*wait, maxWait)
		}
	}
	if sys != nil {
		return nil, fmt.Errorf("%w: %w", errSilent, sys)
	}
	return nil, errSilent
}

// ask sends a signed request and returns its success response. A stale nonce is
// replaced, and so are time-limited credentials that have ended. Answers whose
// integrity is not proved count as lost, except for errors: those which have no
// key yet or no longer can not have any. It errs as roundTrip does, and with a
// ServerError.
func (r *Relay) ask(stop <-chan struct{}, method stun.Method, p pace, attrs ...stun.Setter) (*stun.Message, error) {
	staleLeft, renewLeft := 2, 1
	for {
		m, key, err := r.build(method, attrs)
		if err != nil {
			return nil, fmt.Errorf("relay: request: %w", err)
		}
		answer, err := r.roundTrip(stop, m, p, func(a *stun.Message) bool {
			if a.Type.Method != method {
				return false
			}
			return a.Type.Class == stun.ClassErrorResponse || key == nil || key.Check(a) == nil
		})
		if err != nil {
			return nil, err
		}
		if answer.Type.Class == stun.ClassSuccessResponse {
			r.proved()
			return answer, nil
		}
		code := errorCode(answer)
		fresh := r.auth.challenge(answer)
		switch {
		case code == int(stun.CodeStaleNonce) && fresh && staleLeft > 0:
			staleLeft--
		// Ended credentials: 401, or 400 of pion's server. That one can mean anything,
		// and a server may insist on the old user, so it counts only if they are old.
		case (code == int(stun.CodeUnauthorized) && fresh || code == int(stun.CodeBadRequest) && r.auth.old(r.times.clock())) &&
			renewLeft > 0 && method != stun.MethodAllocate && r.auth.renew(r.times.clock()):
			renewLeft--
			r.log.Debug("relay credentials made anew", "server", r.server.String())
		case code == int(stun.CodeUnauthorized) && fresh && staleLeft > 0 && method != stun.MethodAllocate:
			staleLeft = 0 // some servers say it of a stale nonce
		default:
			return nil, refusal(method, code)
		}
	}
}

// build makes a request, signed if we know how.
func (r *Relay) build(method stun.Method, attrs []stun.Setter) (*stun.Message, stun.MessageIntegrity, error) {
	signature, key := r.auth.sign()
	setters := []stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}
	setters = append(setters, attrs...)
	setters = append(setters, signature...)
	setters = append(setters, stun.Fingerprint)
	m, err := stun.Build(setters...)
	return m, key, err
}

// errorCode returns the code of an error response; 0 if it has none.
func errorCode(m *stun.Message) int {
	var code stun.ErrorCodeAttribute
	if code.GetFrom(m) != nil {
		return 0
	}
	return int(code.Code)
}

func lifetimeOf(m *stun.Message) (seconds uint32, ok bool) {
	v, err := m.Get(stun.AttrLifetime)
	if err != nil || len(v) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(v), true
}

// isNetwork tells the network's errors from those of TLS.
func isNetwork(err error) bool {
	_, op := errors.AsType[*net.OpError](err)
	return op || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// read takes everything from the server. It is the goroutine of Config.Receive.
func (r *Relay) read() {
	for {
		frame, temporary, err := r.conn.read()
		switch {
		case err == nil:
			r.handle(frame)
		case temporary:
			if isRefused(err) {
				r.waiting.refused()
			}
			poke(r.doubts)
		default:
			if errors.Is(err, io.EOF) {
				err = errors.New("the server closed the connection")
			}
			r.lost(err)
			return
		}
	}
}

// handle looks at one frame.
func (r *Relay) handle(frame []byte) {
	switch {
	case isChannel(frame):
		number, data, ok := channelData(frame)
		if !ok {
			return
		}
		if p := r.peers.byNumber(number); p != nil {
			p.used.Store(true)
			r.deliver(p.addr, data)
		}
	case !isSTUN(frame):
	case binary.BigEndian.Uint16(frame) == dataIndication:
		if from, data, ok := indication(frame); ok {
			r.deliver(from, data)
		}
	case isHint(frame):
		poke(r.doubts) // anybody can have sent it: the server is asked
	case frame[0]&1 == 1: // success and error responses (RFC 8489 section 5)
		r.waiting.answered(frame)
	}
}

// refreshError is the type of an error response to a Refresh.
const refreshError = 0x0114

// isHint reports whether a kith hub says, unasked, that it knows of no allocation of
// ours: a Refresh error without a transaction.
func isHint(frame []byte) bool {
	return binary.BigEndian.Uint16(frame) == refreshError && [12]byte(frame[8:20]) == [12]byte{}
}

func (r *Relay) deliver(from netip.AddrPort, data []byte) {
	r.proved()
	r.rx.Add(uint64(len(data)))
	r.cfg.Receive(from, data)
}
