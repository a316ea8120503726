package relay

import (
	"encoding/binary"
	"net/netip"

	"github.com/pion/stun/v4"
)

const (
	cookie      = 0x2112a442 // RFC 8489 section 5
	stunHeader  = 20         // bytes
	dataHeader  = 4          // bytes, of ChannelData (RFC 8656 section 12.4)
	attrHeader  = 4          // bytes
	maxPacket   = 65000      // bytes: fits a datagram with every header before it
	maxFrame    = dataHeader + 1<<16 + stunHeader
	firstNumber = 0x4000 // channels, RFC 8656 section 12
	lastNumber  = 0x4fff
	protocolUDP = 17 // of REQUESTED-TRANSPORT
	familyIPv6  = 2  // of REQUESTED-ADDRESS-FAMILY
)

// Types of indications (RFC 8656 section 17).
const (
	sendIndication = 0x0016
	dataIndication = 0x0017
)

func attr32(t stun.AttrType, v uint32) stun.RawAttribute {
	return stun.RawAttribute{Type: t, Value: binary.BigEndian.AppendUint32(nil, v)}
}

// requestedTransport asks for UDP between relay and peers.
func requestedTransport() stun.Setter { return attr32(stun.AttrRequestedTransport, protocolUDP<<24) }

func requestedIPv6() stun.Setter {
	return attr32(stun.AttrRequestedAddressFamily, familyIPv6<<24)
}

func lifetime(seconds uint32) stun.Setter { return attr32(stun.AttrLifetime, seconds) }

func channelNumber(n uint16) stun.Setter { return attr32(stun.AttrChannelNumber, uint32(n)<<16) }

// A peerAddress is XOR-PEER-ADDRESS.
type peerAddress netip.AddrPort

// AddTo adds the attribute. It errs never, as the addresses are valid.
func (p peerAddress) AddTo(m *stun.Message) error {
	a := netip.AddrPort(p)
	return stun.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}.AddToAs(m, stun.AttrXORPeerAddress)
}

// addressOf reads an XORed address attribute.
func addressOf(m *stun.Message, t stun.AttrType) (netip.AddrPort, error) {
	var x stun.XORMappedAddress
	if err := x.GetFromAs(m, t); err != nil {
		return netip.AddrPort{}, err
	}
	ip, ok := netip.AddrFromSlice(x.IP)
	if !ok {
		return netip.AddrPort{}, stun.ErrAttributeSizeInvalid
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(x.Port)), nil
}

// isChannel and isSTUN tell frames apart by their first two bits (RFC 8656
// section 12); whatever else a server sends is nothing of ours.
func isChannel(frame []byte) bool { return len(frame) >= dataHeader && frame[0]>>6 == 1 }

func isSTUN(frame []byte) bool {
	return len(frame) >= stunHeader && frame[0]>>6 == 0 && binary.BigEndian.Uint32(frame[4:]) == cookie
}

// channelData takes a ChannelData message apart. What is behind it is padding.
func channelData(frame []byte) (number uint16, data []byte, ok bool) {
	n := int(binary.BigEndian.Uint16(frame[2:]))
	if n > len(frame)-dataHeader {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(frame), frame[dataHeader : dataHeader+n], true
}

// appendChannel appends a ChannelData message; padded to 4 bytes, as streams need
// it (RFC 8656 section 12.5), if pad is set.
func appendChannel(b []byte, number uint16, packet []byte, pad bool) []byte {
	b = binary.BigEndian.AppendUint16(b, number)
	b = binary.BigEndian.AppendUint16(b, uint16(len(packet)))
	b = append(b, packet...)
	if pad {
		b = appendPadding(b, len(packet))
	}
	return b
}

func appendPadding(b []byte, n int) []byte { return append(b, make([]byte, -n&3)...) }

// appendIndication appends a Send indication to a peer, the way to those who have
// no channel. Indications are not signed (RFC 8656 section 11.1).
func appendIndication(b []byte, to netip.AddrPort, packet []byte, id [12]byte) []byte {
	ip := to.Addr().AsSlice()
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, sendIndication)
	b = append(b, 0, 0) // length, below
	b = binary.BigEndian.AppendUint32(b, cookie)
	b = append(b, id[:]...)
	mask := b[start+4 : start+stunHeader]
	b = binary.BigEndian.AppendUint16(b, uint16(stun.AttrXORPeerAddress))
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(ip)))
	family := byte(1)
	if len(ip) == 16 {
		family = familyIPv6
	}
	b = append(b, 0, family)
	b = binary.BigEndian.AppendUint16(b, to.Port()^cookie>>16)
	for i, c := range ip {
		b = append(b, c^mask[i])
	}
	b = binary.BigEndian.AppendUint16(b, uint16(stun.AttrData))
	b = binary.BigEndian.AppendUint16(b, uint16(len(packet)))
	b = append(b, packet...)
	b = appendPadding(b, len(packet))
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start-stunHeader))
	return b
}

// indication takes a Data indication apart, without allocating.
func indication(frame []byte) (from netip.AddrPort, data []byte, ok bool) {
	body := frame[stunHeader:]
	n := int(binary.BigEndian.Uint16(frame[2:]))
	if n > len(body) {
		return netip.AddrPort{}, nil, false
	}
	body = body[:n]
	have := false
	for len(body) >= attrHeader {
		t, n := stun.AttrType(binary.BigEndian.Uint16(body)), int(binary.BigEndian.Uint16(body[2:]))
		body = body[attrHeader:]
		if n > len(body) {
			return netip.AddrPort{}, nil, false
		}
		switch value := body[:n]; t {
		case stun.AttrXORPeerAddress:
			from = xored(value, frame[4:stunHeader])
		case stun.AttrData:
			data, have = value, true
		}
		body = body[min(len(body), n+(-n&3)):]
	}
	return from, data, have && from.IsValid()
}

// xored reads the value of an XORed address; mask is cookie and transaction.
func xored(value, mask []byte) netip.AddrPort {
	var ip [16]byte
	n := len(value) - 4
	if n != 4 && n != 16 || (n == 4) != (value[1] == 1) {
		return netip.AddrPort{}
	}
	for i := range n {
		ip[i] = value[4+i] ^ mask[i]
	}
	addr := netip.AddrFrom16(ip).Unmap()
	if n == 4 {
		addr = netip.AddrFrom4([4]byte(ip[:4]))
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(value[2:])^cookie>>16)
}
