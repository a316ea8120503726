package link

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/signaling"
)

// labNodeEnv is the environment variable that makes this test binary one end
// of a link: "first" or "second".
const labNodeEnv = "KITH_LINK_NODE"

// labNode runs one end of a link until its input ends. It reads commands:
//
//	remote ADDR...   what the peer says of itself
//	probe            the network changed
//	say TEXT         send TEXT as data once there is a path; the other end prints "heard TEXT"
//	local            prints "local ADDR ..."
//
// and prints every event. While there is a path it sends data all the time.
func labNode(side string) int {
	s := NewSocket(SocketConfig{Port: 41641})
	fns, _, err := s.Open(0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() { labRead(s, fn) })
	}
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
	case "local":
		fmt.Print("local")
		for _, c := range s.Local() {
			fmt.Print(" ", c.Addr)
		}
		fmt.Println()
	}
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
