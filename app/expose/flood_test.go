package expose

import (
	"context"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/kithproject/kith/app/forward"
)

// TestPingFlood has a device send pings as fast as they are read: each answer would be a
// segment in memory for as long as the device takes none.
func TestPingFlood(t *testing.T) {
	l := newLab(t)
	laptop := l.start("laptop")
	l.start("evil")
	laptop.look = time.Hour
	at := place{forward.TCP, freePort(t)}
	laptop.allow(at, true)
	c := laptop.from("evil")
	defer c.Close()
	if st, err := answer(c, hello{kind: kindAsk, place: at, token: newToken()}); err != nil || st != statusOK {
		t.Fatalf("%v, %v", st, err)
	}
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(c)
		got <- b
	}()
	for range 1000 {
		if _, err := c.Write([]byte{msgPing}); err != nil {
			t.Fatal(err)
		}
	}
	laptop.allow(at, false)
	if b := <-got; !slices.Equal(b, []byte{byte(statusDenied)}) {
		t.Errorf("%d bytes came, % x", len(b), b[:min(len(b), 10)])
	}
}

// A tellingConn tells when something is written, and offers no end of its own.
type tellingConn struct {
	net.Conn
	write chan struct{}
}

func (c tellingConn) Write(b []byte) (int, error) {
	select {
	case c.write <- struct{}{}:
	default:
	}
	return c.Conn.Write(b)
}

func (c tellingConn) CloseWrite() error { return nil }

// TestDeafHost pings its exposer and reads nothing: what is exposed can be ended at once
// all the same.
func TestDeafHost(t *testing.T) {
	l := newLab(t)
	desk := l.start("desk")
	l.start("evil")
	near, far := net.Pipe()
	defer far.Close()
	asked := tellingConn{Conn: near, write: make(chan struct{}, 1)}
	desk.cfg.Dial = func(context.Context, forward.Protocol, string) (net.Conn, error) { return asked, nil }
	reports, stop := desk.exposing(Exposure{Peer: "evil", Protocol: forward.TCP, Port: 8080, Address: "localhost:1"})
	if _, err := io.ReadFull(far, make([]byte, helloSize)); err != nil {
		t.Fatal(err)
	}
	<-asked.write
	if _, err := far.Write([]byte{byte(statusOK)}); err != nil {
		t.Fatal(err)
	}
	awaitReport(t, reports, nil)
	if _, err := far.Write([]byte{msgPing}); err != nil {
		t.Fatal(err)
	}
	<-asked.write // it waits for the host to read
	start := time.Now()
	stop()
	if took := time.Since(start); took > answerWait/2 {
		t.Errorf("took %v", took)
	}
}
