package portmap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// labNodeEnv is the environment variable that makes this test binary a host that
// keeps a port mapped: by the protocol of that name, or by any.
const labNodeEnv = "KITH_PORTMAP_NODE"

func TestMain(m *testing.M) {
	if only := os.Getenv(labNodeEnv); only != "" {
		os.Exit(labNode(only)) // a host in a namespace of TestLab
	}
	goleak.VerifyTestMain(m)
}

// labNode keeps ourPort, of TCP with "+tcp" after the protocol, mapped from the first line of its input to its end or
// "stop"; further lines are a Refresh each. It prints what is reported, and what
// is received on the port. With "6" after the protocol it is about pinholes.
func labNode(only string) int {
	only, six := strings.CutSuffix(only, "6")
	only, tcp := strings.CutSuffix(only, "+tcp")
	var pc io.Closer
	var err error
	var wg sync.WaitGroup
	cfg := Config{Gateway: DefaultGateway, NonceKey: []byte("lab")}
	if tcp {
		cfg.Transport = TCP
		pc, err = listenLabTCP(&wg)
	} else {
		pc, err = listenLabUDP(&wg)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("listening")
	if six {
		cfg.Gateway6 = DefaultGateway6
	}
	m := New(cfg)
	if only != "any" {
		m.dial = func(gw, self netip.Addr) (io.ReadWriteCloser, error) {
			conn, err := m.dialUDP(gw, self)
			return oneVersion{conn, map[string]byte{"pcp": pcpVersion, "nat-pmp": pmpVersion, "upnp": 255}[only]}, err
		}
		if only != "upnp" {
			m.discover = func(context.Context, netip.Addr, netip.Addr) (control, error) { return nil, errNoIGD }
			m.discover6 = m.discover
		}
	}
	in := bufio.NewScanner(os.Stdin)
	if six && !in.Scan() {
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		err := m.Run(ctx, ourPort, func(m Mapping, ok bool) {
			fmt.Printf("mapped %v by %s to %v double NAT %v pinhole %v\n", ok, m.Protocol, m.External, m.DoubleNAT, m.Pinhole)
		})
		fmt.Printf("ended %v\n", errors.Is(err, context.Canceled))
	})
	for in.Scan() {
		if in.Text() == "stop" {
			break
		}
		m.Refresh()
	}
	cancel()
	_ = pc.Close()
	wg.Wait()
	return 0
}

// listenLabUDP prints what comes to ourPort.
func listenLabUDP(wg *sync.WaitGroup) (io.Closer, error) {
	pc, err := net.ListenUDP("udp", &net.UDPAddr{Port: ourPort})
	if err != nil {
		return nil, err
	}
	wg.Go(func() {
		buf := make([]byte, 100)
		for {
			n, _, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			fmt.Printf("heard %s\n", buf[:n])
		}
	})
	return pc, nil
}

// listenLabTCP prints what connections to ourPort say.
func listenLabTCP(wg *sync.WaitGroup) (io.Closer, error) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: ourPort})
	if err != nil {
		return nil, err
	}
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			said, _ := io.ReadAll(conn)
			fmt.Printf("heard %s\n", said)
			conn.Close()
		}
	})
	return ln, nil
}

// oneVersion sends only one of the two protocols.
type oneVersion struct {
	io.ReadWriteCloser
	version byte
}

func (o oneVersion) Write(b []byte) (int, error) {
	if b[0] != o.version {
		return len(b), nil
	}
	return o.ReadWriteCloser.Write(b)
}
