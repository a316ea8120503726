package doctor

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// deviceUDPServer answers datagrams on an address of loopback until the end of the test.
func deviceUDPServer(t *testing.T, addr string, answer func([]byte) []byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if out := answer(buf[:n]); out != nil {
				_, _ = conn.WriteTo(out, from)
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestDeviceAskUDP asks servers on loopback.
func TestDeviceAskUDP(t *testing.T) {
	var asked atomic.Int32
	server := deviceUDPServer(t, "127.0.0.1:0", func(b []byte) []byte {
		if asked.Add(1) < 2 {
			return []byte("something else")
		}
		return append([]byte("to "), b...)
	})
	fits := func(b []byte) bool { return strings.HasPrefix(string(b), "to ") }
	a := deviceAskUDP(t.Context(), new(Env), server, []byte("me"), deviceAsk{tries: 3, wait: 300 * time.Millisecond, fits: fits})
	if string(a.Data) != "to me" || a.RTT <= 0 {
		t.Errorf("%+v", a)
	}
	free := deviceUDPServer(t, "127.0.0.1:0", func([]byte) []byte { return nil })
	start := time.Now()
	if a := deviceAskUDP(t.Context(), new(Env), free, []byte("me"), deviceAsk{wait: 50 * time.Millisecond}); a.alive() || a.Err != nil || time.Since(start) < 50*time.Millisecond {
		t.Errorf("silence is %+v", a)
	}
	gone, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := gone.LocalAddr().(*net.UDPAddr).AddrPort()
	gone.Close()
	if a := deviceAskUDP(t.Context(), new(Env), to, []byte("me"), deviceAsk{}); !a.Refused {
		t.Errorf("a closed port is %+v", a)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if a := deviceAskUDP(ctx, new(Env), free, []byte("me"), deviceAsk{wait: time.Hour}); a.Err == nil {
		t.Error("it asks after the end")
	}
}
