package forward

import (
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// A plainConn is a kernel connection that looks like one of the tunnel: it has
// Read, Write and CloseWrite, and no shorter way.
type plainConn struct{ net.Conn }

// CloseWrite ends the sending side.
func (c plainConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// serveBench forwards a new listener to what far opens until the benchmark ends.
func serveBench(b *testing.B, to net.Addr, wrap func(net.Conn) net.Conn) net.Addr {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ln, func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", to.String())
			if err != nil {
				return nil, err
			}
			return wrap(c), nil
		}, nil)
	}()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return ln.Addr()
}

// answerer serves connections with handle until the benchmark ends.
func answerer(b *testing.B, handle func(net.Conn)) net.Addr {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	b.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr()
}

// small answers each request of 100 bytes with 200.
func small(c net.Conn) {
	buf := make([]byte, 200)
	for {
		if _, err := io.ReadFull(c, buf[:100]); err != nil {
			return
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func kernelConn(c net.Conn) net.Conn { return c }
func tunnelConn(c net.Conn) net.Conn { return plainConn{c} }

func request(b *testing.B, c net.Conn, buf []byte) {
	if _, err := c.Write(buf[:100]); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf[:200]); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRequest is a small request and its answer on a connection that stays.
func BenchmarkRequest(b *testing.B) {
	c, err := net.Dial("tcp", serveBench(b, answerer(b, small), tunnelConn).String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 200)
	times := make([]time.Duration, 0, 1<<16)
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		request(b, c, buf)
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds()), "p99-ns")
}

// BenchmarkConnection is a connection for each small request.
func BenchmarkConnection(b *testing.B) {
	to := serveBench(b, answerer(b, small), tunnelConn).String()
	buf := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		c, err := net.Dial("tcp", to)
		if err != nil {
			b.Fatal(err)
		}
		request(b, c, buf)
		c.Close()
	}
}

// BenchmarkParallel is 64 connections that download at once, in bytes per second
// of all of them, over a far side as the tunnel's and over one of the kernel's.
func BenchmarkParallel(b *testing.B) {
	const conns, each = 64, 4 << 20
	block := make([]byte, each)
	source := answerer(b, func(c net.Conn) {
		for {
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return
			}
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	for _, way := range []struct {
		name string
		wrap func(net.Conn) net.Conn
	}{{"tunnel", tunnelConn}, {"kernel", kernelConn}} {
		b.Run(way.name, func(b *testing.B) {
			to := serveBench(b, source, way.wrap).String()
			all := make([]net.Conn, conns)
			for i := range all {
				c, err := net.Dial("tcp", to)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				all[i] = c
			}
			b.SetBytes(conns * each)
			b.ReportAllocs()
			for b.Loop() {
				var wg sync.WaitGroup
				for _, c := range all {
					wg.Go(func() {
						buf := make([]byte, 64<<10)
						_, _ = c.Write([]byte{1})
						for left := each; left > 0; {
							n, err := c.Read(buf)
							if err != nil {
								b.Error(err)
								return
							}
							left -= n
						}
					})
				}
				wg.Wait()
			}
		})
	}
}
