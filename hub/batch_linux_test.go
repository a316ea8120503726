package hub

import (
	"bytes"
	"errors"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"golang.org/x/net/ipv4"
)

// TestTrains sends trains that the kernel does not cut on the loopback interface:
// each packet of them is looked at by itself, a request in the middle too.
func TestTrains(t *testing.T) {
	h := open(t, nil)
	c, at := channelClient(t, h, "desk")
	peer := sink(t)
	c.bind(t, 0x4000, peer.LocalAddr())
	const size, count, question = 1000, 50, 20
	pad := size + channelHeader - stunHeader - 4
	req, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodRefresh, stun.ClassRequest),
		stun.RawAttribute{Type: stun.AttrSoftware, Length: uint16(pad), Value: make([]byte, pad)})
	if err != nil || len(req.Raw) != size+channelHeader {
		t.Fatalf("%d bytes: %v", len(req.Raw), err)
	}
	train := func(conn *net.UDPConn, to net.Addr, packets [][]byte) {
		m := []ipv4.Message{{Buffers: packets, Addr: to, OOB: segmentControl(len(packets[0]))}}
		if _, err := ipv4.NewPacketConn(conn).WriteBatch(m, 0); err != nil {
			t.Skipf("the system sends no trains: %v", err)
		}
	}
	var up, down [][]byte
	for i := range count {
		p := channelData(0x4000, numbered(i, size))
		if i == question {
			p = req.Raw
		}
		up = append(up, p)
		down = append(down, numbered(i, size))
	}
	up[count-1] = channelData(0x4000, numbered(count-1, size-1))

	train(c.Conn.(*net.UDPConn), nil, up)
	var got []byte
	buf := make([]byte, 1<<16)
	want := slices.Concat(append(slices.Clone(down[:question]), append(slices.Clone(down[question+1:count-1]), numbered(count-1, size-1))...)...)
	for len(got) < len(want) {
		_ = peer.SetReadDeadline(time.Now().Add(testLimit))
		n, err := peer.Read(buf) // a train, or a packet
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes came")
	}
	m := &stun.Message{Raw: c.read(t, testLimit)}
	if err := m.Decode(); err != nil || m.TransactionID != req.TransactionID || errorOf(m) != stun.CodeUnauthorized {
		t.Errorf("the request in the middle: %v %v", m, err)
	}

	train(peer, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: at.Port}, down)
	for i, p := range down {
		if raw := c.read(t, testLimit); !bytes.Equal(raw, channelData(0x4000, p)) {
			t.Fatalf("packet %d came as %d bytes", i, len(raw))
		}
	}
}

// stubborn is a socket of a device that takes no trains, or none of that size.
type stubborn struct {
	err   error // of a train
	fails int   // of what else is sent, how many more fail
	oobs  int   // messages that name an address
	got   [][]byte
}

func (s *stubborn) WriteBatch(ms []ipv4.Message, _ int) (int, error) {
	for i, m := range ms {
		err := s.err
		switch {
		case len(m.Buffers) > 2:
		case s.fails > 0:
			s.fails, err = s.fails-1, os.NewSyscallError("sendmmsg", syscall.EPERM)
		default:
			err = nil
		}
		if err != nil {
			if i > 0 {
				return i, nil // as sendmmsg(2) does it
			}
			return 0, &net.OpError{Op: "write", Err: err}
		}
		if len(m.OOB) > 0 {
			s.oobs++
		}
		s.got = append(s.got, bytes.Join(m.Buffers, nil))
	}
	return len(ms), nil
}

// TestNoTrains holds that packets go one by one where trains cannot, that the
// system is asked no more where it is the device, and that what cannot be sent at
// all does not hold up the rest.
func TestNoTrains(t *testing.T) {
	var packets [][]byte
	total := 0
	for i := range 150 {
		packets = append(packets, numbered(i, 100))
		total += 100
	}
	for name, c := range map[string]struct {
		err   error
		joins bool // afterwards
	}{"no checksums": {syscall.EIO, false}, "too long": {syscall.EMSGSIZE, true}, "too long, other word": {syscall.EINVAL, true}} {
		s := &stubborn{err: os.NewSyscallError("sendmmsg", c.err)}
		o := &outlet{batch: s, pool: newBuffers()}
		o.joins.Store(true)
		if n := o.send(packets, 0x4000, nil, nil); n != total || len(s.got) != len(packets) {
			t.Errorf("%s: %d bytes in %d packets", name, n, len(s.got))
		}
		for i, p := range s.got {
			if !bytes.Equal(p, channelData(0x4000, packets[i])) {
				t.Fatalf("%s: packet %d came as %x", name, i, p)
			}
		}
		if o.joins.Load() != c.joins {
			t.Errorf("%s: joins %v", name, o.joins.Load())
		}
	}
	// An address that cannot be chosen, and then two packets that cannot be sent.
	s := &stubborn{err: errors.New("no"), fails: 3}
	o := &outlet{batch: s, pool: newBuffers()}
	if n := o.send(packets, 0x4000, nil, []byte("from there")); n != total-200 || s.oobs != 0 {
		t.Errorf("%d bytes, %d messages with an address", n, s.oobs)
	}
	// The socket is closed.
	s.err = net.ErrClosed
	o.joins.Store(true)
	if n := o.send(packets, 0, nil, nil); n != 0 {
		t.Errorf("%d bytes by a closed socket", n)
	}
}
