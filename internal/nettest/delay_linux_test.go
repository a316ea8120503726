package nettest

import (
	"net"
	"testing"
	"time"
)

// TestDelay measures how long TCP takes to a server and back before and after the Internet
// was made slow.
func TestDelay(t *testing.T) {
	in := New(t).Internet()
	h, web := in.Site("a", NATEasy).Host("a1"), in.Server("web")
	var l net.Listener
	var err error
	web.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(web.Addrs()[0].String(), "443")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// The quickest of a few: a busy machine only adds.
	dial := func() (quickest time.Duration) {
		h.Do(func() {
			for range 8 {
				start := time.Now()
				conn, err := net.DialTimeout("tcp", l.Addr().String(), patience)
				if err != nil {
					t.Error(err)
					return
				}
				if took := time.Since(start); quickest == 0 || took < quickest {
					quickest = took
				}
				conn.Close()
			}
		})
		return quickest
	}
	const way = 50 * time.Millisecond
	if took := dial(); took > way {
		t.Errorf("%v without delay", took)
	}
	in.Delay(way)
	if took := dial(); took < 2*way || took > 3*way {
		t.Errorf("%v for a round trip of %v", took, 2*way)
	}
}
