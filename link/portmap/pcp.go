package portmap

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

const (
	serverPort = 5351 // PCP and NAT-PMP: RFC 6887 section 19.1, RFC 6886 section 3

	pcpVersion    = 2
	pcpHeader     = 24
	pcpMapSize    = pcpHeader + 36
	pcpMaxSize    = 1100 // RFC 6887 section 7
	pcpAnnounce   = 0
	pcpMap        = 1
	pcpResponse   = 0x80
	maxLifetime   = 24 * time.Hour // RFC 6887 section 15
	nonceSize     = 12
	pcpUnsuppVers = 1
	pcpNotAuth    = 2
)

var errPacket = errors.New("portmap: not a valid answer of a gateway")

// A pcpAnswer is a response of a PCP server, RFC 6887 section 7.2 and 11.1.
type pcpAnswer struct {
	op       byte
	result   byte
	lifetime time.Duration // of the mapping, or of the error
	epoch    uint32
	// The rest is there for MAP only.
	transport Transport
	nonce     [nonceSize]byte
	internal  uint16
	external  netip.AddrPort
}

// pcpRequestHeader is RFC 6887 section 7.1.
func pcpRequestHeader(op byte, self netip.Addr, lifetime time.Duration) []byte {
	b := make([]byte, pcpHeader, pcpMapSize)
	b[0], b[1] = pcpVersion, op
	binary.BigEndian.PutUint32(b[4:], seconds(lifetime))
	ip := self.As16() // IPv4 becomes ::ffff:a.b.c.d, as section 5 wants it
	copy(b[8:], ip[:])
	return b
}

func pcpAnnounceRequest(self netip.Addr) []byte { return pcpRequestHeader(pcpAnnounce, self, 0) }

// pcpMapRequest asks for a mapping (RFC 6887 section 11.1), or with lifetime 0
// for its end (section 15).
func pcpMapRequest(transport Transport, self netip.Addr, nonce [nonceSize]byte, port uint16, suggest netip.AddrPort, lifetime time.Duration) []byte {
	b := pcpRequestHeader(pcpMap, self, lifetime)
	b = append(b, nonce[:]...)
	b = append(b, transport.number(), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, suggest.Port())
	addr := suggest.Addr()
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified()
		if self.Is4() {
			addr = netip.IPv4Unspecified()
		}
	}
	ip := addr.As16()
	return append(b, ip[:]...)
}

// parsePCP reads a response. It errs on anything else.
func parsePCP(b []byte) (pcpAnswer, error) {
	if len(b) < pcpHeader || len(b) > pcpMaxSize || len(b)%4 != 0 || b[0] != pcpVersion || b[1]&pcpResponse == 0 {
		return pcpAnswer{}, errPacket
	}
	a := pcpAnswer{
		op:       b[1] &^ pcpResponse,
		result:   b[3],
		lifetime: min(time.Duration(binary.BigEndian.Uint32(b[4:]))*time.Second, maxLifetime),
		epoch:    binary.BigEndian.Uint32(b[8:]),
	}
	if a.op != pcpMap {
		return a, nil
	}
	if len(b) < pcpMapSize || b[36] != byte(UDP) && b[36] != byte(TCP) {
		return pcpAnswer{}, errPacket
	}
	a.transport = Transport(b[36])
	copy(a.nonce[:], b[24:36])
	a.internal = binary.BigEndian.Uint16(b[40:])
	addr := netip.AddrFrom16([16]byte(b[44:60])).Unmap()
	a.external = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[42:]))
	if a.result == 0 && a.lifetime > 0 && a.external.Port() == 0 {
		return pcpAnswer{}, errPacket
	}
	return a, nil
}

// seconds rounds up, so that a short life does not become the request to delete.
func seconds(d time.Duration) uint32 {
	return uint32(min((max(d, 0)+time.Second-1)/time.Second, 1<<31))
}
