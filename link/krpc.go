package link

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"strconv"
	"time"
)

// Nodes of the BitTorrent DHT answer whoever asks, and say from which address and
// port the question came (BEP 42, section "IP address in responses"). So they show
// how the shared socket looks from outside where there is no STUN server. A node may
// lie, as a STUN server may: what follows is a candidate that nobody is behind.

const (
	maxKRPC   = 512 // bytes of an answer that is read
	nodeIDLen = 20
)

// isKRPC reports whether b begins like a message of the DHT (BEP 5): a dictionary.
// No WireGuard message, STUN message or probe does.
func isKRPC(b []byte) bool { return len(b) > 2 && b[0] == 'd' && b[len(b)-1] == 'e' }

// pingNode returns a ping of a read-only node (BEP 5, BEP 43) that never asked
// before, and its transaction.
func pingNode() (raw []byte, tx txid, err error) {
	var id [nodeIDLen]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, tx, err
	}
	if _, err := rand.Read(tx[:]); err != nil {
		return nil, tx, err
	}
	raw = append(raw, "d1:ad2:id20:"...)
	raw = append(raw, id[:]...)
	raw = append(raw, "e1:q4:ping2:roi1e1:t12:"...)
	raw = append(raw, tx[:]...)
	return append(raw, "1:y1:qe"...), tx, nil
}

// parseNodeAnswer reads the answer of a node: the transaction, and our address.
func parseNodeAnswer(b []byte) (a stunAnswer, ok bool) {
	if len(b) > maxKRPC || !isKRPC(b) {
		return a, false
	}
	var ip, tx, kind []byte
	rest := b[1:]
	for len(rest) > 0 && rest[0] != 'e' {
		key, after, ok := bencoded(rest)
		if !ok {
			return a, false
		}
		size, ok := valueSize(after, 0)
		if !ok {
			return a, false
		}
		value, _, _ := bencoded(after) // nothing, if it is no string
		switch string(key) {
		case "ip":
			ip = value
		case "t":
			tx = value
		case "y":
			kind = value
		}
		rest = after[size:]
	}
	if len(rest) != 1 || !bytes.Equal(kind, []byte("r")) || len(tx) != len(a.tx) || len(ip) != 6 && len(ip) != 18 {
		return a, false
	}
	addr, _ := netip.AddrFromSlice(ip[:len(ip)-2]) // 4 or 16 bytes
	port := binary.BigEndian.Uint16(ip[len(ip)-2:])
	if addr = addr.Unmap(); port == 0 || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
		return a, false
	}
	return stunAnswer{tx: txid(tx), mapped: netip.AddrPortFrom(addr, port), at: time.Now()}, true
}

// bencoded takes a byte string (BEP 3) off b.
func bencoded(b []byte) (value, rest []byte, ok bool) {
	colon := bytes.IndexByte(b[:min(len(b), 5)], ':')
	if colon < 1 {
		return nil, b, false
	}
	for _, digit := range b[:colon] {
		if digit < '0' || digit > '9' {
			return nil, b, false
		}
	}
	n, err := strconv.Atoi(string(b[:colon]))
	if err != nil || n > len(b)-colon-1 {
		return nil, b, false
	}
	return b[colon+1 : colon+1+n], b[colon+1+n:], true
}

// maxDepth is how deep lists and dictionaries may lie in each other.
const maxDepth = 4

// valueSize returns how many bytes the value takes that b begins with.
func valueSize(b []byte, depth int) (n int, ok bool) {
	switch {
	case len(b) == 0 || depth > maxDepth:
		return 0, false
	case b[0] == 'i':
		end := bytes.IndexByte(b, 'e')
		return end + 1, end > 1
	case b[0] != 'l' && b[0] != 'd':
		_, rest, ok := bencoded(b)
		return len(b) - len(rest), ok
	}
	for n = 1; n < len(b) && b[n] != 'e'; {
		size, ok := valueSize(b[n:], depth+1)
		if !ok {
			return 0, false
		}
		n += size
	}
	return n + 1, n < len(b)
}
