package expose

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/kithproject/kith/app/forward"
)

// exposed is a lab in which desk exposes the service at address at a port of laptop.
func exposed(t *testing.T, protocol forward.Protocol, address string) (l *lab, desk, laptop *device, e Exposure, reports <-chan error, stop func()) {
	t.Helper()
	l = newLab(t)
	desk, laptop = l.start("desk"), l.start("laptop")
	e = Exposure{Peer: "laptop", Protocol: protocol, Port: freePort(t), Address: address, Counters: new(forward.Counters)}
	laptop.allow(place{protocol, e.Port}, true)
	reports, stop = desk.exposing(e)
	awaitReport(t, reports, nil)
	return l, desk, laptop, e, reports, stop
}

func TestTCP(t *testing.T) {
	_, desk, laptop, e, _, stop := exposed(t, forward.TCP, serveTCP(t, echoTCP))
	want := bytes.Repeat([]byte("0123456789"), 100_000)
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(int(e.Port))))
		if err != nil && host == "::1" {
			t.Logf("no IPv6 here: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			_, _ = c.Write(want)
			_ = c.(*net.TCPConn).CloseWrite() // the service sees the end, and answers
		}()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", host, len(got), len(want), err)
		}
	}
	if tr := e.Counters.Traffic(); tr.Sent != tr.Received || tr.Sent < int64(len(want)) {
		t.Errorf("counted %+v", tr)
	}
	hosted := laptop.Hosted()
	if len(hosted) != 1 || hosted[0].Peer != "desk" || hosted[0].Port != e.Port || hosted[0].Total == 0 {
		t.Errorf("laptop says %+v", hosted)
	}
	open := dial(t, "tcp", local(e.Port))
	ask(t, open, "hello")
	stop()
	laptop.await("desk listens false")
	closedAt(t, e.Port)
	if n, err := open.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes of a connection whose exposure has ended", n)
	}
	if len(desk.exposed) > 0 {
		t.Error("something is left")
	}
}

func TestUDP(t *testing.T) {
	_, _, laptop, e, _, stop := exposed(t, forward.UDP, echoUDP(t))
	for range 4 {
		c := dial(t, "udp", local(e.Port))
		for _, size := range []int{1, 100, 1400, 9000} {
			ask(t, c, strings.Repeat("x", size))
		}
	}
	if tr := e.Counters.Traffic(); tr.Total != 4 || tr.Open != 4 || tr.Sent != tr.Received || tr.Sent != 4*10501 {
		t.Errorf("counted %+v", tr)
	}
	stop()
	laptop.await("desk listens false")
	if tr := e.Counters.Traffic(); tr.Open != 0 {
		t.Errorf("%d flows are left", tr.Open)
	}
}

// TestOutOfReach lets the service be away: the program sees a reset, and no end.
func TestOutOfReach(t *testing.T) {
	l := newLab(t)
	desk, laptop := l.start("desk"), l.start("laptop")
	failed := make(chan error, 1)
	e := Exposure{Peer: "laptop", Protocol: forward.TCP, Port: freePort(t), Address: local(freePort(t)), Failed: func(err error) { failed <- err }}
	laptop.allow(place{forward.TCP, e.Port}, true)
	reports, _ := desk.exposing(e)
	awaitReport(t, reports, nil)
	if err := refusedAt(t, e.Port); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v, want a reset", err)
	}
	if err := <-failed; err == nil {
		t.Error("failed without a reason")
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	desk, laptop, phone := l.start("desk"), l.start("laptop"), l.start("phone")
	for _, protocol := range []forward.Protocol{forward.TCP, forward.UDP} {
		at := place{protocol, freePort(t)}
		e := Exposure{Peer: "laptop", Protocol: protocol, Port: at.port, Address: "localhost:1"}
		reports, stop := desk.exposing(e)
		awaitReport(t, reports, ErrDenied)
		laptop.await("desk refused")
		stop()
		laptop.allow(at, true)
		reports, stop = desk.exposing(e)
		awaitReport(t, reports, nil)
		twice, stopTwice := desk.exposing(e)
		awaitReport(t, twice, errTwice)
		stopTwice()
		other, stopOther := phone.exposing(e)
		awaitReport(t, other, ErrTaken) // another device has it
		stopOther()
		stop()
		laptop.await("desk listens false")

		var lc net.ListenConfig
		var holder io.Closer
		var err error
		if protocol == forward.TCP {
			holder, err = lc.Listen(t.Context(), "tcp", ":"+strconv.Itoa(int(at.port)))
		} else {
			holder, err = lc.ListenPacket(t.Context(), "udp", local(at.port))
		}
		if err != nil {
			t.Fatal(err)
		}
		reports, stop = desk.exposing(e)
		awaitReport(t, reports, ErrTaken) // a program has it
		stop()
		holder.Close()
	}
}

// TestWithdrawn takes the right away while a download runs: when Recheck returns, the
// port is closed, and so is the connection.
func TestWithdrawn(t *testing.T) {
	address := serveTCP(t, func(c net.Conn) {
		for block := make([]byte, 1<<16); ; {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	_, _, laptop, e, reports, _ := exposed(t, forward.TCP, address)
	c := dial(t, "tcp", local(e.Port))
	if _, err := io.CopyN(io.Discard, c, 20<<20); err != nil {
		t.Fatal(err)
	}
	laptop.allow(place{forward.TCP, e.Port}, false)
	closedAt(t, e.Port)
	if len(laptop.Hosted()) > 0 {
		t.Error("it is still hosted")
	}
	if n, err := io.Copy(io.Discard, c); err == nil {
		t.Errorf("a download that was cut looks as if it had ended, %d bytes later", n)
	}
	awaitReport(t, reports, ErrDenied)
	laptop.await("desk listens false")

	// It is asked for again by itself, and works when it is given again.
	laptop.allow(place{forward.TCP, e.Port}, true)
	awaitReport(t, reports, nil)
	if _, err := io.CopyN(io.Discard, dial(t, "tcp", local(e.Port)), 1<<20); err != nil {
		t.Fatal(err)
	}
}

// TestLook holds that a right that nobody told of is seen within a look.
func TestLook(t *testing.T) {
	_, _, laptop, e, reports, _ := exposed(t, forward.TCP, serveTCP(t, echoTCP))
	laptop.mu.Lock()
	laptop.may[place{forward.TCP, e.Port}] = false
	laptop.mu.Unlock()
	laptop.await("desk listens false")
	closedAt(t, e.Port)
	awaitReport(t, reports, ErrDenied)
}

func TestHostRestarts(t *testing.T) {
	l, _, _, e, reports, _ := exposed(t, forward.TCP, serveTCP(t, echoTCP))
	c := dial(t, "tcp", local(e.Port))
	ask(t, c, "before")
	l.crash("laptop")
	awaitReport(t, reports, ErrBroken)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives the host")
	}
	laptop := l.start("laptop")
	laptop.allow(place{forward.TCP, e.Port}, true)
	awaitReport(t, reports, nil)
	ask(t, dial(t, "tcp", local(e.Port)), "after")
}

// TestExposerRestarts lets the exposer come back while the host does not know yet that
// it was gone: its new listener takes the place of the old one.
func TestExposerRestarts(t *testing.T) {
	l := newLab(t)
	desk, laptop := l.start("desk"), l.start("laptop")
	e := Exposure{Peer: "laptop", Protocol: forward.TCP, Port: freePort(t), Address: serveTCP(t, echoTCP)}
	at := place{forward.TCP, e.Port}
	laptop.allow(at, true)
	// A run of desk that asked, and of which nothing was heard since.
	near, far, err := tcpPair(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	laptop.streams <- labConn{far, "desk"}
	if _, err := near.Write(hello{kind: kindAsk, place: at, token: newToken()}.bytes()); err != nil {
		t.Fatal(err)
	}
	var st [1]byte
	if _, err := io.ReadFull(near, st[:]); err != nil || st[0] != 0 {
		t.Fatalf("%v, %v", st, err)
	}
	laptop.await("desk listens true")
	reports, _ := desk.exposing(e)
	awaitReport(t, reports, nil)
	laptop.await("desk listens false")
	laptop.await("desk listens true")
	ask(t, dial(t, "tcp", local(e.Port)), "anew")
}

// TestForgottenByExposer ends a listener whose exposer knows nothing of it.
func TestForgottenByExposer(t *testing.T) {
	_, desk, laptop, e, reports, _ := exposed(t, forward.TCP, serveTCP(t, echoTCP))
	key := exposedKey{"laptop", place{forward.TCP, e.Port}}
	desk.Service.mu.Lock()
	desk.exposed[key].token = newToken()
	desk.Service.mu.Unlock()
	if err := refusedAt(t, e.Port); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v, want a reset", err)
	}
	laptop.await("desk listens false")
	awaitReport(t, reports, ErrBroken)
	awaitReport(t, reports, nil) // with a token that both know
	ask(t, dial(t, "tcp", local(e.Port)), "anew")
}

// TestConnectionChanges holds that a listener and its connections outlive a short break
// of the devices' connection, and end after a long one.
func TestConnectionChanges(t *testing.T) {
	l, _, laptop, e, reports, _ := exposed(t, forward.TCP, serveTCP(t, echoTCP))
	c := dial(t, "tcp", local(e.Port))
	ask(t, c, "first")
	l.connection(1, false)
	awaitReport(t, reports, ErrAway)
	l.connection(2, true)
	awaitReport(t, reports, nil) // it was asked whether it is still there
	ask(t, c, "second")
	l.connection(3, true) // another connection at once
	awaitReport(t, reports, nil)
	ask(t, c, "third")
	if len(laptop.Hosted()) != 1 {
		t.Error("it is gone")
	}
}

func TestAwayForLong(t *testing.T) {
	l := newLab(t)
	desk, laptop := l.start("desk"), l.start("laptop")
	e := Exposure{Peer: "laptop", Protocol: forward.TCP, Port: freePort(t), Address: serveTCP(t, echoTCP)}
	at := place{forward.TCP, e.Port}
	laptop.allow(at, true)
	laptop.grace = 20 * laptop.look // desk's stays at ten seconds, and it has to notice by itself
	reports, _ := desk.exposing(e)
	awaitReport(t, reports, nil)
	c := dial(t, "tcp", local(e.Port))
	ask(t, c, "hello")
	l.connection(1, false)
	laptop.await("desk listens false")
	closedAt(t, e.Port)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives the listener")
	}
	l.connection(2, true)
	awaitReport(t, reports, ErrBroken)
	awaitReport(t, reports, nil)
	ask(t, dial(t, "tcp", local(e.Port)), "anew")
}

// TestClose ends both sides with everything open; goleak looks for what is left.
func TestClose(t *testing.T) {
	_, desk, laptop, e, _, _ := exposed(t, forward.TCP, serveTCP(t, echoTCP))
	c := dial(t, "tcp", local(e.Port))
	ask(t, c, "hello")
	desk.stop()
	laptop.await("desk listens false")
	laptop.stop()
	closedAt(t, e.Port)
	if err := desk.Expose(context.Background(), e, func(error) {}); err != nil {
		t.Errorf("after Close: %v", err)
	}
}
