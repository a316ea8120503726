package lane

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
)

// plainTLS is crypto/tls over one TCP connection on loopback, as a lane has to
// compare with.
func plainTLS(b *testing.B) (near, far net.Conn) {
	b.Helper()
	inv, err := newInvite(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			b.Error(err)
		}
		accepted <- c
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server := tls.Server(<-accepted, &tls.Config{Certificates: []tls.Certificate{inv.cert}, MinVersion: tls.VersionTLS13})
	client := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	go func() { _ = server.Handshake() }()
	if err := client.Handshake(); err != nil {
		b.Fatal(err)
	}
	return client, server
}

// benchDevice is a device on loopback.
func benchDevice(b *testing.B, w *world, n byte) *device {
	b.Helper()
	d := &device{w: w, id: identity.DeviceID{n}, got: make(chan *Conn, 1), denied: make(map[string]bool)}
	d.addrs = loopback
	tun := newMemListener(tcpAddr(d.id.Addr(), Port))
	w.tunnels[d.id] = tun
	d.Service = New(Config{
		Listener: tun, Dial: d.ask, Who: d.who, Allow: d.allow, Accept: func(c *Conn) { d.got <- c },
		Addrs: d.addresses, Loopback: true,
	})
	b.Cleanup(func() { d.Close() })
	return d
}

// BenchmarkThroughput compares a lane with crypto/tls on loopback, for sizes of writes.
func BenchmarkThroughput(b *testing.B) {
	w := newWorld()
	x, y := benchDevice(b, w, 1), benchDevice(b, w, 2)
	lane := func(b *testing.B) (near, far net.Conn) {
		c, err := x.Open(b.Context(), y.id, "files")
		if err != nil {
			b.Fatal(err)
		}
		return c, <-y.got
	}
	for _, size := range []int{16 << 10, 64 << 10, 256 << 10, 1 << 20} {
		for name, open := range map[string]func(*testing.B) (net.Conn, net.Conn){"lane": lane, "tls": plainTLS} {
			b.Run(fmt.Sprintf("%s/write=%dk", name, size>>10), func(b *testing.B) {
				near, far := open(b)
				read := make(chan int64)
				go func() {
					n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{far}, make([]byte, 256<<10))
					read <- n
				}()
				buf := make([]byte, size)
				b.SetBytes(int64(size))
				b.ResetTimer()
				for b.Loop() {
					if _, err := near.Write(buf); err != nil {
						b.Fatal(err)
					}
				}
				if err := near.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
					b.Fatal(err)
				}
				if n := <-read; n < int64(b.N)*int64(size) {
					b.Errorf("%d bytes arrived", n)
				}
				b.StopTimer()
				near.Close()
				far.Close()
			})
		}
	}
}

// BenchmarkOpen opens and closes lanes on loopback.
func BenchmarkOpen(b *testing.B) {
	w := newWorld()
	x, y := benchDevice(b, w, 1), benchDevice(b, w, 2)
	for b.Loop() {
		c, err := x.Open(b.Context(), y.id, "files")
		if err != nil {
			b.Fatal(err)
		}
		(<-y.got).Close()
		c.Close()
	}
}
