package nettest

import (
	"encoding/binary"
	"net/netip"
)

// The protocols that ParseFrame knows ports of, as IP numbers them.
const (
	TCP uint8 = 6
	UDP uint8 = 17
)

// A Packet is what a recorded frame carries.
type Packet struct {
	Protocol uint8 // TCP, UDP or another number of IANA's list
	Src, Dst netip.AddrPort
	Size     int    // with the IP header, in bytes
	Payload  []byte // of TCP or UDP, without their header; it shares memory with the frame
}

// ParseFrame reads an Ethernet frame with IPv4, or with IPv6 without extension
// headers. It reports false for any other. Fragments after the first have no ports.
func ParseFrame(frame []byte) (Packet, bool) {
	const ethernet = 14
	if len(frame) < ethernet {
		return Packet{}, false
	}
	ip := frame[ethernet:]
	var p Packet
	var src, dst netip.Addr
	var body []byte
	first := true
	switch kind := binary.BigEndian.Uint16(frame[12:]); {
	case kind == 0x0800 && len(ip) >= 20:
		headers := int(ip[0]&0x0f) * 4
		p.Size = int(binary.BigEndian.Uint16(ip[2:]))
		if headers < 20 || p.Size < headers || p.Size > len(ip) {
			return Packet{}, false
		}
		p.Protocol, body = ip[9], ip[headers:p.Size]
		src, dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		first = binary.BigEndian.Uint16(ip[6:])&0x1fff == 0
	case kind == 0x86dd && len(ip) >= 40:
		p.Size = 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if p.Size > len(ip) {
			return Packet{}, false
		}
		p.Protocol, body = ip[6], ip[40:p.Size]
		src, dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	default:
		return Packet{}, false
	}
	var sport, dport uint16
	header := 0
	switch {
	case !first:
	case p.Protocol == UDP && len(body) >= 8:
		header = 8
	case p.Protocol == TCP && len(body) >= 20:
		header = int(body[12]>>4) * 4
		if header < 20 || header > len(body) {
			return Packet{}, false
		}
	}
	if header > 0 {
		sport, dport = binary.BigEndian.Uint16(body), binary.BigEndian.Uint16(body[2:])
	}
	p.Src, p.Dst, p.Payload = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), body[header:]
	return p, true
}
