package tun

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/kithproject/kith/app/forward"
)

// receiveUDP takes a datagram of this machine's.
func (t *Tun) receiveUDP(p packet) {
	if len(p.body) < udpHeader {
		return
	}
	length := int(binary.BigEndian.Uint16(p.body[4:]))
	if length < udpHeader || length > len(p.body) {
		return
	}
	f := flow{binary.BigEndian.Uint16(p.body), netip.AddrPortFrom(p.dst, binary.BigEndian.Uint16(p.body[2:]))}
	switch data := p.body[udpHeader:length]; {
	case f.src == 0 || f.dst.Port() == 0:
	case p.dst != t.cfg.Resolver:
		t.flows.Send(f, data)
	case f.dst.Port() == dnsPort:
		t.query(f, data)
	default:
		t.unreachable(p.raw, portUnreachable)
	}
}

// dialUDP opens the far side of a flow, and tells the program if there is none.
func (t *Tun) dialUDP(ctx context.Context, f flow) (net.Conn, error) {
	dial, cancel := context.WithTimeout(ctx, t.cfg.DialTimeout)
	defer cancel()
	peer, err := t.peer(f.dst.Addr())
	var far net.Conn
	if err == nil {
		far, err = t.cfg.Dial(dial, forward.UDP, peer, f.dst.Port())
	}
	if err != nil {
		if ctx.Err() == nil {
			t.cfg.Logger.Debug("flow refused", "to", f.dst, "err", err)
			t.unreachableFlow(f, codeOf(err))
		}
		return nil, err
	}
	return &datagrams{Conn: far, refused: func() { t.unreachableFlow(f, portUnreachable) }}, nil
}

// replyUDP takes a datagram that came back.
func (t *Tun) replyUDP(f flow, data []byte) { t.writeUDP(f, data) }

// datagrams is the far side of a flow; it passes on that nobody listens there.
type datagrams struct {
	net.Conn
	refused func()
}

func (d *datagrams) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	if errors.Is(err, syscall.ECONNREFUSED) {
		d.refused()
	}
	return n, err
}

func (d *datagrams) Write(b []byte) (int, error) {
	n, err := d.Conn.Write(b)
	if errors.Is(err, syscall.ECONNREFUSED) {
		d.refused()
	}
	return n, err
}

// receiveICMP answers echo requests (RFC 4443 section 4.1) once the device has shown
// that it is there.
func (t *Tun) receiveICMP(p packet) {
	if len(p.body) < header.ICMPv6EchoMinimumSize || p.body[0] != byte(header.ICMPv6EchoRequest) || p.body[1] != 0 {
		return
	}
	if p.dst == t.cfg.Resolver {
		t.echo(p)
		return
	}
	if !t.echoes.take(p.dst) {
		return
	}
	p.raw = bytes.Clone(p.raw)
	p.body = p.raw[ipHeader:]
	if !t.start(func() {
		defer t.echoes.give(p.dst)
		ctx, cancel := context.WithTimeout(t.ctx, pingTimeout)
		defer cancel()
		peer, err := t.peer(p.dst)
		if err == nil {
			err = t.cfg.Ping(ctx, peer)
		}
		switch {
		case err == nil:
			t.echo(p)
		case t.ctx.Err() == nil:
			t.unreachable(p.raw, codeOf(err))
		}
	}) {
		t.echoes.give(p.dst)
	}
}

// echo answers an echo request.
func (t *Tun) echo(p packet) {
	t.write(false, func(b []byte) int {
		fillHeader(b, header.ICMPv6ProtocolNumber, p.dst, p.src, len(p.body))
		body := b[ipHeader : ipHeader+copy(b[ipHeader:], p.body)]
		body[0] = byte(header.ICMPv6EchoReply)
		header.ICMPv6(body).SetChecksum(0)
		header.ICMPv6(body).SetChecksum(sum(header.ICMPv6ProtocolNumber, p.dst, p.src, body))
		return ipHeader + len(body)
	})
}
