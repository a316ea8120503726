package wan_test

import (
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/internal/wan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWay sends datagrams over a way with delay and loss.
func TestWay(t *testing.T) {
	lab := nettest.New(t)
	a, b := lab.Host("a"), lab.Host("b")
	const sent, oneWay = 2000, 20 * time.Millisecond
	way, err := wan.Join(t.Context(), wan.End{Namespace: a.Namespace(), Interface: "wan0", Address: "10.9.0.1/24"},
		wan.End{Namespace: b.Namespace(), Interface: "wan0", Address: "10.9.0.2/24"}, wan.Config{Delay: oneWay, Loss: 0.1, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer way.Close()
	var server *net.UDPConn
	var client net.Conn
	b.Do(func() { server, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 7}) })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	a.Do(func() { client, err = net.Dial("udp", "10.9.0.2:7") })
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	start := time.Now()
	if _, err := client.Write([]byte{0, 0}); err != nil {
		t.Fatal(err)
	}
	arrived := make(chan int)
	go func() {
		n, buf := 0, make([]byte, 16)
		for {
			if _, err := server.Read(buf); err != nil || buf[0] == 2 {
				break
			}
			if n++; n == 1 && time.Since(start) < oneWay {
				t.Errorf("the first arrived after %v", time.Since(start))
			}
		}
		arrived <- n
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range sent - 1 {
		if i%20 == 0 { // so that they fit the socket's buffer
			<-tick.C
		}
		if _, err := client.Write([]byte{1, 0}); err != nil {
			t.Fatal(err)
		}
	}
	got := 0
	for got == 0 { // the last word may be lost, too
		select {
		case got = <-arrived:
		case <-tick.C:
			if _, err := client.Write([]byte{2, 0}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got < sent*8/10 || got > sent*97/100 {
		t.Errorf("%d of %d arrived", got, sent)
	}
	if st := way.Stats(); st.Carried < got || st.Lost < sent/20 || st.Dropped != 0 {
		t.Errorf("%+v, and %d arrived", st, got)
	}
}
