package dht

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

const (
	maxPacket  = 2048 // bytes of a datagram that are looked at
	maxValue   = 1000 // bytes of a bencoded value (BEP 44)
	maxSalt    = 64   // bytes (BEP 44)
	maxToken   = 64   // bytes that are kept of a write token
	maxTID     = 32   // bytes of a transaction id that are echoed
	maxContact = 16   // nodes that one reply may name
	maxPeers   = 16   // peers that one reply may name
)

// An id is a node's identifier or a target: a point of the key space (BEP 5).
type id [20]byte

// closer reports whether a is closer to target than b.
func (target id) closer(a, b id) bool {
	for i := range target {
		if x, y := a[i]^target[i], b[i]^target[i]; x != y {
			return x < y
		}
	}
	return false
}

// A contact is a node that somebody named.
type contact struct {
	id   id
	addr netip.AddrPort
}

// A message is a KRPC message (BEP 5, 32, 42, 43, 44), query, reply or error. Its
// slices are parts of the datagram.
type message struct {
	kind     byte // q, r or e
	tid      []byte
	method   string // of a query
	readOnly bool   // the sender answers nothing (BEP 43)
	seenAs   netip.AddrPort
	hasID    bool
	id       id
	target   id // info_hash or target
	hasTo    bool
	token    []byte
	port     uint16
	implied  bool
	item     item
	hasSeq   bool
	hasCas   bool
	cas      int64
	want4    bool
	want6    bool
	nodes    []contact
	peers    []netip.AddrPort
	code     int64
	reason   string
}

// An item is what BEP 44 stores: mutable if it has a key.
type item struct {
	value   []byte // bencoded
	mutable bool
	key     [32]byte
	sig     [64]byte
	salt    []byte
	seq     int64
}

// parse reads a datagram. It is strict about what is used and skips the rest.
func parse(b []byte) (message, error) {
	var m message
	r := &reader{b: b}
	err := r.dict(func(key string) error {
		var err error
		var s []byte
		switch key {
		case "t":
			m.tid, err = r.text()
		case "y":
			if s, err = r.text(); err == nil && len(s) == 1 {
				m.kind = s[0]
			}
		case "q":
			s, err = r.text()
			m.method = string(s[:min(len(s), 16)])
		case "a", "r":
			err = m.parseBody(r)
		case "e":
			err = m.parseError(r)
		case "ip":
			s, err = r.text()
			m.seenAs, _ = endpoint(s)
		case "ro":
			var n int64
			n, err = r.number()
			m.readOnly = n != 0
		default:
			_, err = r.value(maxDepth)
		}
		return err
	})
	if err != nil {
		return message{}, err
	}
	if m.kind != 'q' && m.kind != 'r' && m.kind != 'e' || len(m.tid) > maxTID || m.kind != 'e' && !m.hasID {
		return message{}, errBencode
	}
	return m, nil
}

func (m *message) parseBody(r *reader) error {
	return r.dict(func(key string) error {
		var err error
		var n int64
		var s []byte
		switch key {
		case "id":
			err = r.exact(m.id[:])
			m.hasID = err == nil
		case "info_hash", "target":
			err = r.exact(m.target[:])
			m.hasTo = err == nil
		case "token":
			if m.token, err = r.text(); len(m.token) > maxToken {
				err = errBencode
			}
		case "port":
			n, err = r.number()
			m.port = uint16(n)
		case "implied_port":
			n, err = r.number()
			m.implied = n != 0
		case "want":
			err = r.list(func() error {
				s, err := r.text()
				m.want4, m.want6 = m.want4 || string(s) == "n4", m.want6 || string(s) == "n6"
				return err
			})
		case "v":
			if m.item.value, err = r.value(maxDepth); len(m.item.value) > maxValue {
				m.item.value = nil // a put of it is refused
				m.code = errTooBig
			}
		case "k":
			err = r.exact(m.item.key[:])
			m.item.mutable = err == nil
		case "sig":
			err = r.exact(m.item.sig[:])
		case "salt":
			m.item.salt, err = r.text()
		case "seq":
			m.item.seq, err = r.number()
			m.hasSeq = err == nil
		case "cas":
			m.cas, err = r.number()
			m.hasCas = err == nil
		case "nodes":
			s, err = r.text()
			m.nodes = appendContacts(m.nodes, s, 4)
		case "nodes6":
			s, err = r.text()
			m.nodes = appendContacts(m.nodes, s, 16)
		case "values":
			err = r.list(func() error {
				s, err := r.text()
				if a, ok := endpoint(s); ok && len(m.peers) < maxPeers {
					m.peers = append(m.peers, a)
				}
				return err
			})
		default:
			_, err = r.value(maxDepth)
		}
		return err
	})
}

func (m *message) parseError(r *reader) error {
	i := 0
	return r.list(func() error {
		var err error
		switch {
		case i == 0 && r.peek() == 'i':
			m.code, err = r.number()
		case i == 1:
			var s []byte
			s, err = r.text()
			m.reason = string(s[:min(len(s), 64)])
		default:
			_, err = r.value(maxDepth)
		}
		i++
		return err
	})
}

// endpoint reads an address and port in compact form; it is false for one that
// nobody can have.
func endpoint(s []byte) (netip.AddrPort, bool) {
	if len(s) != 6 && len(s) != 18 {
		return netip.AddrPort{}, false
	}
	a, _ := netip.AddrFromSlice(s[:len(s)-2])
	p := netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(s[len(s)-2:]))
	return p, usable(p)
}

// usable reports whether a packet can be sent to p at all.
func usable(p netip.AddrPort) bool {
	a := p.Addr()
	return a.IsValid() && p.Port() != 0 && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func appendEndpoint(dst []byte, p netip.AddrPort) []byte {
	dst = append(dst, p.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(dst, p.Port())
}

func appendContacts(dst []contact, s []byte, size int) []contact {
	width := 20 + size + 2
	for ; len(s) >= width && len(dst) < maxContact; s = s[width:] {
		if a, ok := endpoint(s[20:width]); ok {
			dst = append(dst, contact{id(s[:20]), a})
		}
	}
	return dst
}

// A query is a question to a node.
type query struct {
	method string // ping, find_node, get_peers, announce_peer, get or put
	target id
	token  []byte
	item   *item  // of a put
	seq    *int64 // of a get: only something newer is wanted
}

// encode writes the query. Keys of a dictionary are in the order of their bytes.
func (q *query) encode(self id, tid []byte, readOnly bool) []byte {
	b := append(make([]byte, 0, 256), "d1:ad2:id"...)
	b = appendBytes(b, self[:])
	if q.method == "announce_peer" {
		b = append(b, "12:implied_porti1e"...)
	}
	if q.method == "announce_peer" || q.method == "get_peers" {
		b = appendBytes(append(b, "9:info_hash"...), q.target[:])
	}
	if q.item != nil && q.item.mutable {
		b = appendBytes(append(b, "1:k"...), q.item.key[:])
	}
	if q.method == "announce_peer" { // some insist on a port that they then ignore
		b = append(b, "4:porti1e"...)
	}
	if q.item != nil && q.item.mutable {
		b = appendBytes(append(b, "4:salt"...), q.item.salt)
		b = appendNumber(append(b, "3:seq"...), q.item.seq)
		b = appendBytes(append(b, "3:sig"...), q.item.sig[:])
	} else if q.seq != nil {
		b = appendNumber(append(b, "3:seq"...), *q.seq)
	}
	if q.method == "find_node" || q.method == "get" {
		b = appendBytes(append(b, "6:target"...), q.target[:])
	}
	if q.token != nil {
		b = appendBytes(append(b, "5:token"...), q.token)
	}
	if q.item != nil {
		b = append(append(b, "1:v"...), q.item.value...)
	}
	b = appendText(append(b, "e1:q"...), q.method)
	if readOnly {
		b = append(b, "2:roi1e"...)
	}
	b = appendBytes(append(b, "1:t"...), tid)
	return append(b, "1:y1:qe"...)
}

// encodeReply writes the reply m to a node at to.
func (m *message) encodeReply(to netip.AddrPort) []byte {
	b := append(make([]byte, 0, 512), "d2:ip"...)
	b = appendBytes(b, appendEndpoint(nil, to))
	b = appendBytes(append(b, "1:rd2:id"...), m.id[:])
	if m.item.mutable && m.item.value != nil {
		b = appendBytes(append(b, "1:k"...), m.item.key[:])
	}
	var four, six []byte
	for _, c := range m.nodes {
		if c.addr.Addr().Is4() {
			four = appendEndpoint(append(four, c.id[:]...), c.addr)
		} else {
			six = appendEndpoint(append(six, c.id[:]...), c.addr)
		}
	}
	if four != nil {
		b = appendBytes(append(b, "5:nodes"...), four)
	}
	if six != nil {
		b = appendBytes(append(b, "6:nodes6"...), six)
	}
	if m.hasSeq {
		b = appendNumber(append(b, "3:seq"...), m.item.seq)
	}
	if m.item.mutable && m.item.value != nil {
		b = appendBytes(append(b, "3:sig"...), m.item.sig[:])
	}
	if m.token != nil {
		b = appendBytes(append(b, "5:token"...), m.token)
	}
	if m.item.value != nil {
		b = append(append(b, "1:v"...), m.item.value...)
	}
	if m.peers != nil {
		b = append(b, "6:valuesl"...)
		for _, p := range m.peers {
			b = appendBytes(b, appendEndpoint(nil, p))
		}
		b = append(b, 'e')
	}
	b = appendBytes(append(b, "e1:t"...), m.tid)
	return append(b, "1:y1:re"...)
}

// The error codes of BEP 5 and BEP 44.
const (
	errProtocol = 203
	errMethod   = 204
	errTooBig   = 205
	errSig      = 206
	errSalt     = 207
	errCas      = 301
	errSeq      = 302
)

// A refusal is an error that a node answered with.
type refusal struct {
	code   int64
	reason string
}

func (r *refusal) Error() string { return fmt.Sprintf("dht: refused with %d %q", r.code, r.reason) }

func encodeError(tid []byte, code int64, text string) []byte {
	b := appendNumber([]byte("d1:el"), code)
	b = appendText(b, text)
	b = appendBytes(append(b, "e1:t"...), tid)
	return append(b, "1:y1:ee"...)
}
