package train

import (
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// received returns the control messages of a train that came to an address.
func received(size uint16) []byte {
	oob := AppendSize(make([]byte, 0, 128), size)
	(*unix.Cmsghdr)(unsafe.Pointer(&oob[0])).Type = unix.UDP_GRO //nolint:gosec // as AppendSize wrote it
	info := make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&info[0])) //nolint:gosec // the kernel's layout
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	copy(info[unix.CmsgLen(0)+4:], []byte{192, 0, 2, 1, 192, 0, 2, 255})
	return append(oob, info...)
}

func TestParseControl(t *testing.T) {
	want := Control{Size: 1432, To: netip.MustParseAddr("192.0.2.255"), Local: netip.MustParseAddr("192.0.2.1")}
	oob := received(1432)
	if got := ParseControl(oob); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := ParseControl(oob[:len(oob)-9]); got != (Control{Size: 1432}) {
		t.Errorf("of a cut one %+v", got)
	}
	if got := ParseControl(AppendSize(make([]byte, 0, 128), 7)); got != (Control{}) {
		t.Errorf("of what is sent %+v", got)
	}
}

func FuzzControl(f *testing.F) {
	f.Add(received(1432))
	f.Add(AppendSize(make([]byte, 0, 128), 1432))
	f.Add([]byte{})
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, oob []byte) {
		if size := ParseControl(oob).Size; size < 0 || size > 1<<16 {
			t.Fatalf("size %d", size)
		}
	})
}
