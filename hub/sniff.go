package hub

import (
	"io"
	"net"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/rendezvous/waku"
)

const (
	sniffTimeout = 5 * time.Second  // until the protocol is told, and again for its first message
	writeTimeout = 10 * time.Second // of one write to a TCP client
	sniffSize    = 4                // bytes that tell a protocol at most
)

// protocol is what a connection speaks.
type protocol byte

const (
	protoUnknown protocol = iota
	protoTLS
	protoMQTT
	protoSTUN
	protoHTTP
	protoWaku
	protoMail
	protoDialBack
	protoSilent // nothing came in time
	protoBusy   // too many are waited for already
)

// sniff tells the protocol from the first bytes. It reports how many more it
// needs, if it cannot tell yet.
func sniff(head []byte) (p protocol, more int) {
	if len(head) == 0 {
		return protoUnknown, 1
	}
	switch b := head[0]; {
	case b == 0x16: // TLS handshake record (RFC 8446 section 5.1)
		return protoTLS, 0
	case b == 0x10: // MQTT CONNECT (MQTT 5 section 2.1)
		return protoMQTT, 0
	case b <= 0x03: // STUN request, the first two bits zero (RFC 8489 section 5)
		return protoSTUN, 0
	case b == 'G':
		return begins(head, "GET ", protoHTTP)
	case b == hubaddr.MailPreface[0]:
		if p, more := begins(head, hubaddr.MailPreface, protoMail); p != protoUnknown || more > 0 {
			return p, more
		}
		return begins(head, hubaddr.DialBackPreface, protoDialBack) // which begins as mail does
	case b == waku.Preface[0]:
		return begins(head, waku.Preface[:sniffSize], protoWaku)
	}
	return protoUnknown, 0
}

// begins tells a protocol whose first bytes are text.
func begins(head []byte, text string, is protocol) (p protocol, more int) {
	n := min(len(head), len(text))
	if string(head[:n]) != text[:n] {
		return protoUnknown, 0
	}
	if n < len(text) {
		return protoUnknown, len(text) - n
	}
	return is, 0
}

// stream is a connection whose first bytes were looked at.
type stream struct {
	net.Conn
	head   [sniffSize]byte
	off, n uint8
}

// sniff reads until the protocol is told. What it read is read again by Read.
func (s *stream) sniff() protocol {
	for {
		p, more := sniff(s.head[:s.n])
		if more == 0 {
			return p
		}
		n, err := io.ReadFull(s.Conn, s.head[s.n:int(s.n)+more])
		s.n += uint8(n)
		if err != nil {
			return protoSilent
		}
	}
}

// Read returns what was looked at, and then the rest.
func (s *stream) Read(p []byte) (int, error) {
	if s.off < s.n {
		n := copy(p, s.head[s.off:s.n])
		s.off += uint8(n)
		return n, nil
	}
	return s.Conn.Read(p)
}
