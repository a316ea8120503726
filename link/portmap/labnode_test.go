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

// labNode keeps ourPort mapped until its input ends; "refresh" is a Refresh. It
// prints what is reported, and what is received on the port.
func labNode(only string) int {
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{Port: ourPort})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var wg sync.WaitGroup
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
	m := New(Config{Gateway: DefaultGateway, NonceKey: []byte("lab")})
	if only != "any" {
		m.dial = func(gw, self netip.Addr) (io.ReadWriteCloser, error) {
			conn, err := m.dialUDP(gw, self)
			return oneVersion{conn, map[string]byte{"pcp": pcpVersion, "nat-pmp": pmpVersion, "upnp": 255}[only]}, err
		}
		if only != "upnp" {
			m.discover = func(context.Context, netip.Addr, netip.Addr) (control, error) { return nil, errNoIGD }
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		err := m.Run(ctx, ourPort, func(m Mapping, ok bool) {
			fmt.Printf("mapped %v by %s to %v double NAT %v\n", ok, m.Protocol, m.External, m.DoubleNAT)
		})
		fmt.Printf("ended %v\n", errors.Is(err, context.Canceled))
	})
	for sc := bufio.NewScanner(os.Stdin); sc.Scan(); {
		if sc.Text() == "stop" {
			break
		}
		m.Refresh()
	}
	cancel()
	_ = pc.Close()
	wg.Wait()
	return 0
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
