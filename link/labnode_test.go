package link

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pion/stun/v4"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/signaling"
)

// labNodeEnv is the environment variable that makes this test binary one end
// of a link, "first" or "second", or a STUN server, "stun:" and its addresses.
const labNodeEnv = "KITH_LINK_NODE"

// labNode runs one end of a link until its input ends. It reads commands:
//
//	remote ADDR...   what the peer says of itself
//	probe            the network changed
//	say TEXT         send TEXT as data once there is a path; the other end prints "heard TEXT"
//	local            prints "local ADDR ..."
//	stun ADDR...     asks servers; prints "nat HEX MAPPING PORTS SEEN-AT" when they say something new
//	nat HEX          the peer's NAT, as the peer prints it
//
// and prints every event. While there is a path it sends data all the time.
func labNode(side string) int {
	if addrs, ok := strings.CutPrefix(side, "stun:"); ok {
		return labSTUN(addrs)
	}
	var s *Socket
	s = NewSocket(SocketConfig{Port: 41641, Changed: func() { labPrintNAT(s) }})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fns, _, err := s.Open(0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() { labRead(s, fn) })
	}
	wg.Go(func() { _ = s.Run(ctx) })
	cfg := Config{Peer: identity.DeviceID{1}, Keys: testKeys("lab", side == "first"), Events: func(ev Event) {
		fmt.Printf("%s %s size %d from %s observed %s\n", ev.Kind, ev.Path, ev.Path.Size, ev.Path.Local, ev.Path.Observed)
	}}
	l, err := s.NewLink(cfg)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	stop := make(chan struct{})
	wg.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-tick.C:
				_ = s.Send([][]byte{data(".")}, l)
			case <-stop:
				tick.Stop()
				return
			}
		}
	})
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		labObey(s, l, strings.Fields(in.Text()))
	}
	close(stop)
	cancel()
	l.Close()
	if err := s.Close(); err != nil {
		fmt.Println(err)
		return 1
	}
	wg.Wait()
	return 0
}

func labObey(s *Socket, l *Link, words []string) {
	if len(words) == 0 {
		return
	}
	switch words[0] {
	case "remote":
		var list []signaling.Candidate
		for _, w := range words[1:] {
			list = append(list, signaling.Candidate{Kind: signaling.Host, Addr: netip.MustParseAddrPort(w)})
		}
		l.SetRemote(list)
	case "probe":
		l.Probe()
	case "say":
		for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
			if err := s.Send([][]byte{data(words[1])}, l); err == nil {
				tick.Stop()
				return
			}
		}
	case "stun":
		var list []netip.AddrPort
		for _, w := range words[1:] {
			list = append(list, netip.MustParseAddrPort(w))
		}
		s.SetServers(list)
	case "nat":
		var peer punch.Behaviour
		raw, err := hex.DecodeString(words[1])
		if err == nil {
			err = peer.UnmarshalBinary(raw)
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		l.SetNAT(s.NAT(), peer)
	case "local":
		fmt.Print("local")
		for _, c := range s.Local() {
			fmt.Print(" ", c.Addr)
		}
		fmt.Println()
	}
}

// labPrintNAT prints what servers say, once they say more than an address.
func labPrintNAT(s *Socket) {
	nat := s.NAT()
	raw, err := nat.MarshalBinary()
	if seen := s.stun.reflexive(); err == nil && len(seen) > 0 {
		fmt.Printf("nat %x %s %d %s\n", raw, nat.Mapping, nat.SampledPorts, seen[0])
	}
}

// labSTUN is a STUN server on addresses "ip:port", separated by commas, until its
// input ends.
func labSTUN(addrs string) int {
	var all []*net.UDPConn
	for _, addr := range strings.Split(addrs, ",") {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		all = append(all, c)
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				m := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
				if m.Decode() == nil && !m.Contains(stun.AttrChangeRequest) {
					_, _ = c.WriteToUDPAddrPort(success(m, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String()), from)
				}
			}
		}()
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1)) // nobody writes: it ends with the test
	for _, c := range all {
		_ = c.Close()
	}
	return 0
}

func labRead(s *Socket, fn conn.ReceiveFunc) {
	n := s.BatchSize()
	bufs, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	for {
		n, err := fn(bufs, sizes, eps)
		if err != nil {
			return
		}
		for i := range n {
			if sizes[i] > 33 {
				fmt.Printf("heard %s\n", bufs[i][32:sizes[i]])
			}
		}
	}
}
