package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// echoUDP sends each datagram back.
func echoUDP(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return pc.LocalAddr().String()
}

// associate asks for UDP from a port (0 for any), and returns the connection and the
// relay's address.
func associate(t *testing.T, at string, port uint16) (net.Conn, netip.AddrPort) {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	request := address{host: "0.0.0.0", port: port}.append([]byte{socksVersion, 1, methodNone, socksVersion, cmdAssociate, 0})
	if _, err := c.Write(request); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(c, head); err != nil || head[3] != repSucceeded {
		t.Fatalf("%x, %v", head, err)
	}
	relay, err := readAddress(c)
	if err != nil {
		t.Fatal(err)
	}
	ap := netip.AddrPortFrom(netip.MustParseAddr(relay.host), relay.port)
	if !ap.Addr().IsLoopback() {
		t.Errorf("the relay is at %s", ap)
	}
	return c, ap
}

func dialUDP(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAssociate(t *testing.T) {
	at := start(t, &world{ports: map[uint16]string{53: echoUDP(t), 54: echoUDP(t)}}, nil)
	tcp, relay := associate(t, at, 0)
	c := dialUDP(t, relay)
	send := func(c net.Conn, frag byte, to address, data string) {
		t.Helper()
		if _, err := c.Write(append(to.append([]byte{0, 0, frag}), data...)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, maxDatagram)
	receive := func() (address, string) {
		t.Helper()
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		from, data, err := readDatagram(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		return from, string(data)
	}
	dropped := []address{
		{host: "example.com", domain: true, port: 53}, {host: "192.0.2.1", port: 53}, {host: "127.0.0.1", port: 53},
		{host: "phone.kith", domain: true, port: 53}, {host: "tablet.kith", domain: true, port: 53}, {host: "laptop.kith", domain: true, port: 81},
	}
	for _, to := range []address{
		{host: "laptop.kith", domain: true, port: 53}, {host: "laptop.kith", domain: true, port: 54}, {host: laptopAddr, port: 53},
	} {
		for _, data := range []string{"", "x", string(bytes.Repeat([]byte("y"), 1300))} {
			for _, no := range dropped {
				send(c, 0, no, "nobody answers this")
			}
			send(c, 1, to, "a fragment")
			_, _ = c.Write([]byte("junk"))
			send(c, 0, to, data)
			if from, got := receive(); from != to || got != data {
				t.Errorf("%d bytes came from %v, want %d from %v", len(got), from, len(data), to)
			}
		}
	}
	// Another socket is another client.
	other := dialUDP(t, relay)
	send(other, 0, address{host: "laptop.kith", domain: true, port: 53}, "not mine")
	send(c, 0, address{host: "laptop.kith", domain: true, port: 53}, "mine")
	if _, got := receive(); got != "mine" {
		t.Errorf("got %q", got)
	}
	// The relay ends with the connection.
	tcp.Close()
	for {
		_, err := c.Write([]byte("junk"))
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			_, err = c.Read(buf)
		}
		var timeout net.Error
		if err != nil && (!errors.As(err, &timeout) || !timeout.Timeout()) {
			break // refused: nobody is there
		}
	}
}

// TestAssociateHint takes datagrams from the port that the client has named alone.
func TestAssociateHint(t *testing.T) {
	at := start(t, &world{ports: map[uint16]string{53: echoUDP(t)}}, nil)
	mine, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	if err := mine.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, relay := associate(t, at, mine.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	to := address{host: "laptop.kith", domain: true, port: 53}
	if _, err := dialUDP(t, relay).Write(append(to.append([]byte{0, 0, 0}), "stolen"...)); err != nil {
		t.Fatal(err)
	}
	if _, err := mine.WriteToUDPAddrPort(append(to.append([]byte{0, 0, 0}), "mine"...), relay); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := mine.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, data, err := readDatagram(buf[:n]); err != nil || string(data) != "mine" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestAssociationsAreBounded(t *testing.T) {
	at := start(t, &world{}, nil)
	for range maxAssociations {
		associate(t, at, 0)
	}
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(address{host: "0.0.0.0"}.append([]byte{socksVersion, 1, methodNone, socksVersion, cmdAssociate, 0})); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil || head[3] == repSucceeded {
		t.Errorf("%x, %v; want a refusal", head, err)
	}
}

func FuzzReadRequest(f *testing.F) {
	for _, b := range []string{
		"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50", "\x05\x03\x00\x03\x0blaptop.kith\x00\x50",
		"\x05\x01\x00\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\xbb", "\x05\x01\x00\x03\x00", "\x05\x01\x00\x04::ffff",
	} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := reader{b}
		command, to, err := readRequest(&r)
		if err != nil {
			return
		}
		again := to.append([]byte{socksVersion, command, 0})
		c, same, err := readRequest(&reader{again})
		if err != nil || c != command || same != to {
			t.Fatalf("%x is %v, and written again %v, %v", b, to, same, err)
		}
		s := server{cfg: Config{Resolve: func(host string) (string, bool) {
			if _, err := netip.ParseAddr(host); err != nil && !bytes.HasSuffix([]byte(host), []byte(Domain)) {
				t.Fatalf("was asked for %q", host)
			}
			return "", false
		}}}
		if _, err := s.resolve(to.host); err == nil {
			t.Fatalf("%q was found", to.host)
		}
	})
}

func FuzzReadGreeting(f *testing.F) {
	f.Add([]byte("\x01\x00"))
	f.Add([]byte("\x02\x00\x02\x01\x02me\x06secret"))
	f.Add([]byte("\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := reader{b}
		methods, err := readMethods(&r)
		if err != nil {
			return
		}
		if len(methods) != int(b[0]) {
			t.Fatalf("%d methods of %d", len(methods), b[0])
		}
		if username, password, err := readPassword(&r); err == nil && len(username)+len(password)+3 > len(b) {
			t.Fatalf("%q %q out of %d bytes", username, password, len(b))
		}
	})
}

func FuzzReadDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x35data"))
	f.Add([]byte("\x00\x00\x00\x03\x0blaptop.kith\x00\x35"))
	f.Add([]byte("\x00\x00\x01\x03\x0blaptop.kith\x00\x35data"))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, data, err := readDatagram(b)
		if err != nil {
			return
		}
		if again := append(to.append([]byte{0, 0, 0}), data...); to.domain && !bytes.Equal(again, b) {
			t.Fatalf("%x is written again %x", b, again)
		}
	})
}
