package portmap

import (
	"encoding/binary"
	"net/netip"
	"time"
)

const (
	pmpVersion  = 0
	pmpAddress  = 0 // RFC 6886 section 3.2
	pmpMapUDP   = 1 // section 3.3
	pmpMapTCP   = 2
	pmpResponse = 0x80

	pmpUnsuppVersion  = 1
	pmpNetworkFailure = 3
	pmpNoResources    = 4
)

// A pmpAnswer is a response of a NAT-PMP gateway, RFC 6886 section 3.
type pmpAnswer struct {
	op       byte
	result   uint16
	epoch    uint32
	address  netip.Addr    // pmpAddress
	internal uint16        // pmpMapUDP, pmpMapTCP
	external uint16        // the same
	lifetime time.Duration // the same
}

// pmpMap is the operation that maps a port.
func pmpMap(t Transport) byte {
	if t == TCP {
		return pmpMapTCP
	}
	return pmpMapUDP
}

func pmpAddressRequest() []byte { return []byte{pmpVersion, pmpAddress} }

// pmpMapRequest asks for a mapping, or with lifetime 0 for its end (RFC 6886
// section 3.4, which wants the external port 0 then).
func pmpMapRequest(transport Transport, port, suggest uint16, lifetime time.Duration) []byte {
	b := []byte{pmpVersion, pmpMap(transport), 0, 0}
	b = binary.BigEndian.AppendUint16(b, port)
	if lifetime == 0 {
		suggest = 0
	}
	b = binary.BigEndian.AppendUint16(b, suggest)
	return binary.BigEndian.AppendUint32(b, seconds(lifetime))
}

// parsePMP reads a response. It errs on anything else.
func parsePMP(b []byte) (pmpAnswer, error) {
	if len(b) < 8 || len(b) > pcpMaxSize || b[0] != pmpVersion || b[1]&pmpResponse == 0 {
		return pmpAnswer{}, errPacket
	}
	a := pmpAnswer{
		op:     b[1] &^ pmpResponse,
		result: binary.BigEndian.Uint16(b[2:]),
		epoch:  binary.BigEndian.Uint32(b[4:]),
	}
	if a.result != 0 {
		// Section 3.5: what follows the header of an error means nothing.
		return a, nil
	}
	switch a.op {
	case pmpAddress:
		if len(b) < 12 {
			return pmpAnswer{}, errPacket
		}
		a.address = netip.AddrFrom4([4]byte(b[8:12]))
	case pmpMapUDP, pmpMapTCP:
		if len(b) < 16 {
			return pmpAnswer{}, errPacket
		}
		a.internal = binary.BigEndian.Uint16(b[8:])
		a.external = binary.BigEndian.Uint16(b[10:])
		a.lifetime = min(time.Duration(binary.BigEndian.Uint32(b[12:]))*time.Second, maxLifetime)
		if a.lifetime > 0 && a.external == 0 {
			return pmpAnswer{}, errPacket
		}
	default:
		return pmpAnswer{}, errPacket
	}
	return a, nil
}
