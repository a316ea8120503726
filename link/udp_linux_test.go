package link

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kithproject/kith/internal/train"
)

func disableOffload(b *udpBind, off bool) {
	if c := b.open.Load(); off {
		c.v4.gso.Store(false)
		if c.v6 != nil {
			c.v6.gso.Store(false)
		}
	}
}

func markOf(t *testing.T, b *udpBind) int {
	t.Helper()
	raw, err := b.open.Load().v4.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	mark := 0
	if err := raw.Control(func(fd uintptr) { mark, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) }); err != nil {
		t.Fatal(err)
	}
	return mark
}

func TestFillKeepsOrderAndLimits(t *testing.T) {
	e := newEndpoint(netip.MustParseAddrPort("[2001:db8::1]:7"), netip.MustParseAddr("2001:db8::2"))
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 32, 100, 1432, 9000, 40000}), 1, 200).Draw(t, "sizes")
		bufs := make([][]byte, len(sizes))
		for i, size := range sizes {
			bufs[i] = make([]byte, size)
		}
		ms := make([]ipv6.Message, udpBatch)
		for i := range ms {
			ms[i].OOB = make([]byte, 0, controlSpace)
		}
		rest := bufs
		for len(rest) > 0 {
			n := fill(ms, rest, e, true)
			if n == 0 || n > udpBatch {
				t.Fatalf("%d messages", n)
			}
			for _, m := range ms[:n] {
				total := 0
				for i, b := range m.Buffers {
					total += len(b)
					if len(b) != len(rest[i]) || len(b) > len(m.Buffers[0]) || i < len(m.Buffers)-1 && len(b) != len(m.Buffers[0]) {
						t.Fatalf("train of %d parts, part %d has %d bytes", len(m.Buffers), i, len(b))
					}
				}
				c := train.ParseControl(m.OOB)
				local, size := c.Local, c.Size
				if many := len(m.Buffers) > 1; many && (total > train.MaxBytes || len(m.Buffers) > train.MaxPackets || size != 0) || local != e.local {
					t.Fatalf("train of %d bytes, control says %v %d", total, local, size)
				}
				rest = rest[len(m.Buffers):]
			}
		}
	})
}

// faultyBatch is a kernel that refuses trains.
type faultyBatch struct {
	batchConn
	err   error
	parts []int // of each message that was taken
}

func (f *faultyBatch) WriteBatch(ms []ipv6.Message, _ int) (int, error) {
	for i, m := range ms {
		if len(m.Buffers) > 1 {
			if i > 0 {
				return i, nil
			}
			return 0, &net.OpError{Op: "write", Err: f.err}
		}
		f.parts = append(f.parts, len(m.Buffers[0]))
	}
	return len(ms), nil
}

func TestTrainsThatAreRefusedGoOneByOne(t *testing.T) {
	for _, tc := range []struct {
		err  error
		keep bool // trains are tried again later
		fail bool
	}{
		{err: unix.EIO},
		{err: unix.EINVAL, keep: true},
		{err: unix.EMSGSIZE, keep: true},
		{err: unix.EPERM, keep: true, fail: true},
	} {
		var b udpBind
		_, _ = openBind(t, &b, "127.0.0.1")
		u := b.open.Load().v4
		f := &faultyBatch{err: tc.err}
		u.batch = f
		u.gso.Store(true)
		bufs := [][]byte{make([]byte, 10), make([]byte, 20), make([]byte, 20), make([]byte, 5), make([]byte, 9)}
		err := u.send(bufs, newEndpoint(netip.MustParseAddrPort("127.0.0.1:9"), netip.Addr{}))
		if (err != nil) != tc.fail || tc.fail && !errors.Is(err, tc.err) {
			t.Errorf("%v: send returns %v", tc.err, err)
		}
		if want := []int{10, 20, 20, 5, 9}; !tc.fail && !slices.Equal(f.parts, want) {
			t.Errorf("%v: sent %v, want %v", tc.err, f.parts, want)
		}
		if u.gso.Load() != tc.keep {
			t.Errorf("%v: offload is %v afterwards", tc.err, u.gso.Load())
		}
	}
}
