package punch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
)

// netSockets are sockets of package net with a reader each.
type netSockets struct {
	all     []*netSocket
	stopped atomic.Bool
	readers sync.WaitGroup
}

type netSocket struct {
	conn *net.UDPConn
	port netip.AddrPort
	// reading is held during each read: who holds it knows that nobody reads.
	reading sync.Mutex
	// ttl guards the change of the TTL, which is the socket's.
	ttl sync.Mutex
}

// openNet opens n sockets. With an error it returns those it could open.
func openNet(n int, c control) (sockets, error) {
	s := &netSockets{}
	cfg := net.ListenConfig{Control: c}
	for range n {
		conn, err := cfg.ListenPacket(context.Background(), "udp4", "0.0.0.0:0")
		if err != nil {
			return s, err
		}
		udp := conn.(*net.UDPConn)
		_ = udp.SetReadBuffer(receiveBuffer) // a larger one is only less thrifty
		s.all = append(s.all, &netSocket{conn: udp, port: udp.LocalAddr().(*net.UDPAddr).AddrPort()})
	}
	return s, nil
}

func (s *netSockets) len() int                   { return len(s.all) }
func (s *netSockets) local(i int) netip.AddrPort { return s.all[i].port }

func (s *netSockets) drop(n int) {
	keep := len(s.all) - n
	for _, k := range s.all[keep:] {
		_ = k.conn.Close()
	}
	s.all = s.all[:keep]
}

func (s *netSockets) start(receive func(int, netip.AddrPort, []byte)) {
	for i, k := range s.all {
		s.readers.Go(func() { s.read(i, k, receive) })
	}
}

// read delivers until the socket is closed or handed out. Other errors pass:
// Windows returns what ICMP said about packets sent before.
func (s *netSockets) read(i int, k *netSocket, receive func(int, netip.AddrPort, []byte)) {
	buf := make([]byte, maxPacket+1)
	for failures := 0; failures < 1000; {
		k.reading.Lock()
		if s.stopped.Load() {
			k.reading.Unlock()
			return
		}
		n, from, err := k.conn.ReadFromUDPAddrPort(buf)
		k.reading.Unlock()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			failures++
		case n <= maxPacket:
			failures = 0
			receive(i, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), buf[:n])
		}
	}
}

func (s *netSockets) send(i int, packets [][]byte, to netip.AddrPort, ttl int) error {
	k := s.all[i]
	k.ttl.Lock()
	defer k.ttl.Unlock()
	if ttl > 0 {
		raw := ipv4.NewConn(k.conn)
		usual, err := raw.TTL()
		if err != nil {
			usual = defaultTTL
		}
		if raw.SetTTL(ttl) == nil {
			defer func() { _ = raw.SetTTL(usual) }()
		}
	}
	for _, p := range packets {
		if _, err := k.conn.WriteToUDPAddrPort(p, to); err != nil {
			return err
		}
	}
	return nil
}

func (s *netSockets) keep(i int) (*net.UDPConn, error) {
	s.stop(i)
	k := s.all[i]
	_ = k.conn.SetReadDeadline(past)
	k.reading.Lock() // the reader has seen it, or will see that it is stopped
	defer k.reading.Unlock()
	if err := k.conn.SetReadDeadline(time.Time{}); err != nil {
		_ = k.conn.Close()
		return nil, err
	}
	return k.conn, nil
}

// stop closes all sockets but one.
func (s *netSockets) stop(but int) {
	s.stopped.Store(true)
	for i, k := range s.all {
		if i != but {
			_ = k.conn.Close()
		}
	}
}

func (s *netSockets) close() {
	s.stop(-1)
	s.wait()
}

func (s *netSockets) wait() { s.readers.Wait() }
