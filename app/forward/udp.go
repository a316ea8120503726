package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// ServeUDP carries the datagrams that come to pc, each sender's as a flow of its own
// over a connection that dial opens, and what comes back to that sender, until ctx
// ends or pc fails. ServeUDP closes pc and waits for all flows; it returns nil when
// ctx ended, and otherwise pc's error.
func ServeUDP(ctx context.Context, pc net.PacketConn, dial DialFunc, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer stop()
	door := newDoor(pc)
	flows := NewFlows(ctx, FlowsConfig[netip.AddrPort]{
		Dial:    func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { return dial(ctx) },
		Reply:   door.write,
		Address: func(from netip.AddrPort) net.Addr { return net.UDPAddrFromAddrPort(from) },
		Options: o,
	})
	defer flows.Close()
	buf := make([]byte, maxDatagram)
	var pause backoff
	for {
		n, from, err := door.read(buf)
		switch {
		case err == nil:
			pause = 0
			flows.Send(from, buf[:n])
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errStranger) || refused(err):
		case passing(err):
			pause.wait(ctx)
		default:
			return fmt.Errorf("forward: receive: %w", err)
		}
	}
}

// errStranger reports a datagram whose sender's address is none of UDP.
var errStranger = errors.New("forward: not an address of UDP")

// socketBuffer is what the kernel may keep of a burst of datagrams, in bytes.
const socketBuffer = 1 << 20

// A door reads and writes datagrams at a port; the kernel's sockets do it without an
// allocation.
type door struct {
	pc  net.PacketConn
	udp *net.UDPConn // nil if pc is none
}

func newDoor(pc net.PacketConn) *door {
	udp, _ := pc.(*net.UDPConn)
	if udp != nil {
		_ = udp.SetReadBuffer(socketBuffer) // the system may give less
	}
	return &door{pc: pc, udp: udp}
}

func (d *door) read(b []byte) (int, netip.AddrPort, error) {
	if d.udp != nil {
		return d.udp.ReadFromUDPAddrPort(b)
	}
	n, addr, err := d.pc.ReadFrom(b)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	if udp, ok := addr.(*net.UDPAddr); ok {
		return n, udp.AddrPort(), nil
	}
	from, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return 0, netip.AddrPort{}, errStranger
	}
	return n, from, nil
}

// write sends a datagram; one that cannot be sent is lost, as they are.
func (d *door) write(to netip.AddrPort, b []byte) {
	if d.udp != nil {
		_, _ = d.udp.WriteToUDPAddrPort(b, to)
		return
	}
	_, _ = d.pc.WriteTo(b, net.UDPAddrFromAddrPort(to))
}

// SpliceUDP carries datagrams both ways between two connections until one ends, ctx
// ends, or none has come for as long as idle, which is 2 minutes if 0. It closes
// both. It is for the side that is given each flow as a connection.
func SpliceUDP(ctx context.Context, a, b net.Conn, idle time.Duration) {
	(*Counters)(nil).SpliceUDP(ctx, a, b, idle)
}

// SpliceUDP is the function SpliceUDP, and counts the flow, and a's bytes as sent and b's
// as received. A nil Counters counts nothing.
func (c *Counters) SpliceUDP(ctx context.Context, a, b net.Conn, idle time.Duration) {
	if idle <= 0 {
		idle = defaultIdle
	}
	defer c.began()()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	defer a.Close()
	defer b.Close()
	start := time.Now()
	var used atomic.Int64 // nanoseconds after start
	carry := func(dst, src net.Conn, count func(int)) {
		defer cancel()
		d := largeDatagrams.Get().(*datagram)
		defer d.release()
		for {
			n, err := src.Read(d.space)
			if refused(err) {
				continue
			}
			if err != nil {
				return
			}
			used.Store(int64(time.Since(start)))
			count(n) // before its answer is counted
			if _, err := dst.Write(d.space[:n]); err != nil {
				count(-n)
				c.drop()
				if over(err) {
					return
				}
			}
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { carry(b, a, c.send) })
	wg.Go(func() { carry(a, b, c.receive) })
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			return
		case <-timer.C:
		}
		left := idle - (time.Since(start) - time.Duration(used.Load()))
		if left <= 0 {
			cancel()
			continue
		}
		timer.Reset(left)
	}
}
