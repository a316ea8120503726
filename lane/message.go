package lane

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
)

const (
	// MaxKind is how long the kind of a lane may be, in bytes.
	MaxKind = 64

	version      = 1
	keySize      = 32   // Ed25519 public key (RFC 8032), in bytes
	tokenSize    = 32   // bytes
	maxEndpoints = 8    // in one invitation
	maxMessage   = 1024 // bytes behind the length
)

// What an answer says.
const (
	statusOK      = 0
	statusRefused = 1
	statusBusy    = 2
	statusVersion = 3
)

// offered is an invitation as it is sent.
type offered struct {
	key   [keySize]byte
	token [tokenSize]byte
	to    []netip.AddrPort // at most maxEndpoints, unmapped and without zones
}

type ask struct {
	kind   string
	invite offered
}

type answer struct {
	status byte
	invite offered // if status is statusOK
}

// report says how the dials to the endpoints of an ask failed, by their index.
type report []failure

type failure struct {
	index  uint8
	reason Reason
}

func validKind(kind string) bool {
	if len(kind) == 0 || len(kind) > MaxKind {
		return false
	}
	for i := range len(kind) {
		if kind[i] <= ' ' || kind[i] > '~' {
			return false
		}
	}
	return true
}

func (o *offered) append(b []byte) []byte {
	b = append(b, o.key[:]...)
	b = append(b, o.token[:]...)
	b = append(b, byte(len(o.to)))
	for _, to := range o.to {
		b = append(b, byte(to.Addr().BitLen()/8))
		b = append(b, to.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, to.Port())
	}
	return b
}

func (a *ask) encode() []byte {
	b := append([]byte{version, byte(len(a.kind))}, a.kind...)
	return a.invite.append(b)
}

func (a *answer) encode() []byte {
	b := []byte{a.status}
	if a.status == statusOK {
		b = a.invite.append(b)
	}
	return b
}

func (r report) encode() []byte {
	b := []byte{byte(len(r))}
	for _, f := range r {
		b = append(b, f.index, byte(f.reason))
	}
	return b
}

// cutter takes bytes from the front of a message; once there are too few, bad stays
// set and everything is zero.
type cutter struct {
	b   []byte
	bad bool
}

func (c *cutter) take(n int) []byte {
	if c.bad || len(c.b) < n {
		c.bad = true
		return make([]byte, n) // n is at most a byte's value
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cutter) byte() byte { return c.take(1)[0] }

func (c *cutter) offered() (o offered) {
	copy(o.key[:], c.take(keySize))
	copy(o.token[:], c.take(tokenSize))
	n := int(c.byte())
	if n > maxEndpoints {
		c.bad = true
	}
	for i := 0; i < n && !c.bad; i++ {
		size := int(c.byte())
		addr, ok := netip.AddrFromSlice(c.take(size))
		port := binary.BigEndian.Uint16(c.take(2))
		if !ok || addr.Is4In6() || port == 0 {
			c.bad = true
		}
		o.to = append(o.to, netip.AddrPortFrom(addr, port))
	}
	return o
}

// end reports whether the message was whole and nothing is left of it.
func (c *cutter) end() bool { return !c.bad && len(c.b) == 0 }

func parseAsk(b []byte) (ask, error) {
	c := cutter{b: b}
	if v := c.byte(); !c.bad && v != version {
		return ask{}, fmt.Errorf("%w: %d", errVersion, v)
	}
	a := ask{kind: string(c.take(int(c.byte())))}
	a.invite = c.offered()
	if !c.end() || !validKind(a.kind) {
		return ask{}, errMessage
	}
	return a, nil
}

func parseAnswer(b []byte) (answer, error) {
	c := cutter{b: b}
	a := answer{status: c.byte()}
	if a.status == statusOK {
		a.invite = c.offered()
	}
	if !c.end() {
		return answer{}, errMessage
	}
	return a, nil
}

func parseReport(b []byte) (report, error) {
	c := cutter{b: b}
	n := int(c.byte())
	if n > maxEndpoints {
		return nil, errMessage
	}
	r := make(report, n)
	for i := range r {
		r[i] = failure{index: c.byte(), reason: Reason(c.byte())}
	}
	if !c.end() {
		return nil, errMessage
	}
	return r, nil
}

// writeMessage sends a message behind its length, in one write.
func writeMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// readMessage reads what writeMessage sends. It errs with errMessage if it is longer
// than maxMessage.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxMessage {
		return nil, errMessage
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
