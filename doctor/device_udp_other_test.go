//go:build !linux

package doctor

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
)

// TestDeviceUnsupported: what needs an option that this system does not have is not sent.
func TestDeviceUnsupported(t *testing.T) {
	for _, how := range []deviceAsk{{ttl: 1}, {whole: true}} {
		var asked atomic.Bool
		at := deviceUDPServer(t, "127.0.0.1:0", func([]byte) []byte {
			asked.Store(true)
			return []byte("here")
		})
		a := deviceAskUDP(t.Context(), new(Env), at, []byte("me"), how)
		if !errors.Is(a.Err, errors.ErrUnsupported) || a.Data != nil || asked.Load() {
			t.Errorf("%+v, asked %v", a, asked.Load())
		}
	}
	if a := hop(t.Context(), new(Env), netip.MustParseAddrPort("127.0.0.1:9"), 1); a.IsValid() {
		t.Errorf("%v", a)
	}
}
