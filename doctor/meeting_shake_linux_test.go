package doctor

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// deafPort is an address on loopback that answers nothing, not even that nobody is there: so
// many wait to be accepted that the system drops whoever comes.
func deafPort(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*syscall.SockaddrInet4).Port)).String()
	for range 8 {
		c, err := net.DialTimeout("tcp", at, 300*time.Millisecond)
		if err != nil {
			return at
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("it still answers")
	return ""
}

// TestSilenceTakesTime holds that a server that has not answered is called silent only if it
// had the time to: a small run has two seconds.
func TestSilenceTakesTime(t *testing.T) {
	at := deafPort(t)
	for total, want := range map[time.Duration]int{QuickTotal: 0, leastSilence + time.Second + closePatience/2: 1} {
		ctx, cancel := context.WithTimeout(t.Context(), total)
		defer cancel()
		done := shakeAll(ctx, new(Env), []string{at}).wait(false)
		if len(done) != want {
			t.Errorf("%v: %v, want %d", total, done, want)
		}
		if want == 1 && len(done) == 1 && wayOf(done[0].err) != "silent" {
			t.Errorf("%v", done[0].err)
		}
	}
}
