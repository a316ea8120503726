package hub

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"

	"github.com/pion/stun/v4"
)

// question is the STUN request that the TURN library handles at the moment. It
// takes them one by one from each UDP socket and each TCP connection, and is
// silent where RFC 8656 section 5 wants an answer: to a signed request for an
// allocation that there is not. After a restart of the hub, or a new mapping of
// its NAT, a client would otherwise find out by silence alone.
type question struct {
	mu       sync.Mutex // guards all
	client   netip.AddrPort
	to       netip.Addr // UDP: the address of ours that it came to
	kind     stun.MessageType
	id       [stun.TransactionIDSize]byte
	key      stun.MessageIntegrity // that it should be signed with
	counted  *sources              // that counted it as not signed well, if any
	proved   bool                  // it is signed with key
	answered bool
}

// begin notes the next packet of a client; head are its first 20 bytes, or less if
// it is no STUN message.
func (e *question) begin(client netip.AddrPort, to netip.Addr, head []byte, counted *sources) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.client, e.to, e.key, e.counted, e.proved, e.answered = client, to, nil, counted, false, true
	if len(head) < stunHeader || head[0] > 0x3f {
		return
	}
	e.kind.ReadValue(binary.BigEndian.Uint16(head))
	e.id = [stun.TransactionIDSize]byte(head[8:stunHeader])
	e.answered = e.kind.Class != stun.ClassRequest // nothing else has an answer
}

// cameTo returns the address that the client's packet came to, if it is this
// client's that is being handled.
func (e *question) cameTo(client netip.AddrPort) (netip.Addr, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.to, e.client == client
}

// wrote notes what was sent to a client.
func (e *question) wrote(client netip.AddrPort, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if client == e.client && len(p) >= stunHeader && p[0] < channelFirst && [stun.TransactionIDSize]byte(p[8:stunHeader]) == e.id {
		e.answered = true
	}
}

// sign notes the key that the request has to be signed with.
func (e *question) sign(key []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.key = key
}

// prove notes that the request is signed with that key.
func (e *question) prove() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.proved = len(e.key) > 0
	if e.proved && e.counted != nil {
		e.counted.refund(e.client.Addr())
		e.counted = nil
	}
}

// refusal returns the answer to a signed request that got none: 437 (Allocation
// Mismatch), or where there is an allocation, which is then somebody else's, 441
// (Wrong Credentials). It is nil for what has an answer or deserves none.
func (e *question) refusal(allocated bool) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.proved || e.answered {
		return nil
	}
	e.answered = true
	code := stun.CodeAllocMismatch
	if allocated {
		code = stun.CodeWrongCredentials
	}
	m, err := stun.Build(stun.NewTransactionIDSetter(e.id), stun.NewType(e.kind.Method, stun.ClassErrorResponse),
		&stun.ErrorCodeAttribute{Code: code}, e.key, stun.Fingerprint)
	if err != nil {
		return nil
	}
	return m.Raw
}

// goneHint is what clients hear over UDP that send data for an allocation that
// there is not, and all that have one when the hub stops: a Refresh error
// response 437 to no request, its transaction ID zero. RFC 8656 wants silence in
// the first case and does not know the second; clients drop answers to nothing
// (RFC 8489 section 6.3.3), except those of kith, which ask at once whether it is
// true. It proves nothing: it is not signed.
func goneHint() []byte {
	m, err := stun.Build(stun.NewTransactionIDSetter([stun.TransactionIDSize]byte{}), stun.NewType(stun.MethodRefresh, stun.ClassErrorResponse),
		&stun.ErrorCodeAttribute{Code: stun.CodeAllocMismatch}, stun.Fingerprint)
	if err != nil {
		panic(err) // it is always the same
	}
	return m.Raw
}

// signed reports whether a STUN message has a MESSAGE-INTEGRITY attribute; it may
// be wrong.
func signed(msg []byte) bool {
	for rest := msg[min(len(msg), stunHeader):]; len(rest) >= 4; {
		if stun.AttrType(binary.BigEndian.Uint16(rest)) == stun.AttrMessageIntegrity {
			return true
		}
		rest = rest[min(len(rest), 4+(int(binary.BigEndian.Uint16(rest[2:]))+3)&^3):]
	}
	return false
}

// way is a UDP socket or a TCP connection of the TURN server.
type way interface {
	question() *question
	// allocation returns a client's allocation, or nil.
	allocation(netip.AddrPort) *allocation
	// reply sends to a client.
	reply(p []byte, to netip.AddrPort)
}

// way returns how a client came, or nil if it is gone.
func (t *turnServer) way(src net.Addr) way {
	ap := addrOf(src)
	if _, udp := src.(*net.UDPAddr); udp {
		if p := t.udp[familyOf(ap.Addr())]; p != nil {
			return p
		}
	} else if c := t.conn(ap); c != nil {
		return c
	}
	return nil
}

// failed is called after a packet that the library could not handle.
func (t *turnServer) failed(src net.Addr) {
	t.quota.cancel(src)
	w := t.way(src)
	if w == nil {
		return
	}
	ap := addrOf(src)
	if p := w.question().refusal(w.allocation(ap) != nil); p != nil {
		t.m.drop("allocation")
		w.reply(p, ap)
	}
}
