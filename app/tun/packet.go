package tun

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	// maxPacket is the largest packet, in bytes: what an MTU can be at most.
	maxPacket = 65535
	ipHeader  = header.IPv6MinimumSize
	udpHeader = header.UDPMinimumSize
	// maxUDP is the largest datagram in one packet, in bytes.
	maxUDP   = maxPacket - ipHeader - udpHeader
	hopLimit = 64
	// maxError is the largest ICMPv6 error, in bytes (RFC 4443 section 3).
	maxError = header.IPv6MinimumMTU
)

// A packet is an IPv6 packet without extension headers.
type packet struct {
	raw      []byte // all of it
	body     []byte // after the IPv6 header
	next     tcpip.TransportProtocolNumber
	src, dst netip.Addr
}

// parse reports whether b is such a packet, whole. What the headers of the body say is
// not looked at.
func parse(b []byte) (packet, bool) {
	if len(b) < ipHeader || b[0]>>4 != header.IPv6Version {
		return packet{}, false
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if ipHeader+length > len(b) {
		return packet{}, false
	}
	b = b[:ipHeader+length]
	return packet{
		raw: b, body: b[ipHeader:], next: tcpip.TransportProtocolNumber(b[6]),
		src: netip.AddrFrom16([16]byte(b[8:24])), dst: netip.AddrFrom16([16]byte(b[24:40])),
	}, true
}

// A flow is a connection of this machine's with a port of a device, of TCP or UDP.
type flow struct {
	src uint16 // port of this machine
	dst netip.AddrPort
}

// receive takes one packet from the interface.
func (t *Tun) receive(b []byte) {
	p, ok := parse(b)
	// Others' packets, which a machine that forwards might bring, are nobody's business
	// here; nor is what the kernel says to all.
	if !ok || p.src != t.cfg.Addr || !t.cfg.Prefix.Contains(p.dst) {
		return
	}
	switch p.next {
	case header.TCPProtocolNumber:
		t.receiveTCP(p)
	case header.UDPProtocolNumber:
		t.receiveUDP(p)
	case header.ICMPv6ProtocolNumber:
		t.receiveICMP(p)
	case tcpip.TransportProtocolNumber(header.IPv6FragmentHeader):
	default:
		t.unreachable(p.raw, prohibited)
	}
}

// outs are buffers for packets that are written.
//
//nolint:gochecknoglobals // a pool holds no state, only memory
var outs = sync.Pool{New: func() any { return new([Headroom + maxPacket]byte) }}

// write sends a packet that fill puts together in a buffer; fill returns its length. One
// that cannot be sent is lost, as packets are.
func (t *Tun) write(partial bool, fill func(b []byte) int) {
	buf := outs.Get().(*[Headroom + maxPacket]byte)
	defer outs.Put(buf)
	if err := t.cfg.Device.Write(buf[:Headroom+fill(buf[Headroom:])], partial); err != nil {
		t.cfg.Logger.Debug("packet not written", "err", err)
	}
}

// fillHeader writes an IPv6 header for length bytes of body.
func fillHeader(b []byte, next tcpip.TransportProtocolNumber, src, dst netip.Addr, length int) {
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: uint16(length), TransportProtocol: next, HopLimit: hopLimit,
		SrcAddr: tcpip.AddrFrom16(src.As16()), DstAddr: tcpip.AddrFrom16(dst.As16()),
	})
}

// sum is the checksum of a body, whose field for it is zero, with its pseudo-header.
func sum(next tcpip.TransportProtocolNumber, src, dst netip.Addr, body []byte) uint16 {
	pseudo := header.PseudoHeaderChecksum(next, tcpip.AddrFrom16(src.As16()), tcpip.AddrFrom16(dst.As16()), uint16(len(body)))
	return ^checksum.Checksum(body, pseudo)
}

// writeUDP sends a datagram to this machine.
func (t *Tun) writeUDP(f flow, data []byte) {
	if len(data) > maxUDP {
		return
	}
	t.write(false, func(b []byte) int {
		src, dst := f.dst.Addr(), t.cfg.Addr
		body := b[ipHeader : ipHeader+udpHeader+len(data)]
		fillHeader(b, header.UDPProtocolNumber, src, dst, len(body))
		header.UDP(body).Encode(&header.UDPFields{SrcPort: f.dst.Port(), DstPort: f.src, Length: uint16(len(body))})
		copy(body[udpHeader:], data)
		c := sum(header.UDPProtocolNumber, src, dst, body)
		if c == 0 {
			c = 0xffff // RFC 768: zero means none
		}
		header.UDP(body).SetChecksum(c)
		return ipHeader + len(body)
	})
}

// The codes of ICMPv6 destination unreachable (RFC 4443 section 3.1) that are used.
const (
	noRoute         = header.ICMPv6NetworkUnreachable
	prohibited      = header.ICMPv6Prohibited
	addrUnreachable = header.ICMPv6AddressUnreachable
	portUnreachable = header.ICMPv6PortUnreachable
)

// unreachable says why a packet of this machine does not arrive.
func (t *Tun) unreachable(raw []byte, code header.ICMPv6Code) {
	t.write(false, func(b []byte) int {
		const errorHeader = header.ICMPv6DstUnreachableMinimumSize
		src, dst := t.cfg.Resolver, t.cfg.Addr
		n := errorHeader + min(len(raw), maxError-ipHeader-errorHeader)
		body := b[ipHeader : ipHeader+n]
		fillHeader(b, header.ICMPv6ProtocolNumber, src, dst, n)
		clear(body[:errorHeader])
		body[0], body[1] = byte(header.ICMPv6DstUnreachable), byte(code)
		copy(body[errorHeader:], raw)
		header.ICMPv6(body).SetChecksum(sum(header.ICMPv6ProtocolNumber, src, dst, body))
		return ipHeader + n
	})
}

// unreachableFlow is unreachable for a flow of UDP, of which no packet is at hand.
func (t *Tun) unreachableFlow(f flow, code header.ICMPv6Code) {
	var raw [ipHeader + udpHeader]byte
	fillHeader(raw[:], header.UDPProtocolNumber, t.cfg.Addr, f.dst.Addr(), udpHeader)
	header.UDP(raw[ipHeader:]).Encode(&header.UDPFields{SrcPort: f.src, DstPort: f.dst.Port(), Length: udpHeader})
	t.unreachable(raw[:], code)
}
