package doctor

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous/dht"
)

// openDHT opens a node on loopback.
func openDHT(t *testing.T, cfg dht.Config) *dht.Exchange {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Conn, cfg.Private, cfg.Rate = conn, true, 1000
	x, err := dht.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func TestMeetingDHT(t *testing.T) {
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}) // takes questions and does not answer
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	for name, c := range map[string]struct {
		cfg  func(t *testing.T) dht.Config
		want []string
	}{
		"healthy": {cfg: func(t *testing.T) dht.Config {
			first := openDHT(t, dht.Config{Serve: true})
			boot := []string{first.Addrs()[0].String()}
			for range 3 {
				openDHT(t, dht.Config{Serve: true, Bootstrap: boot})
			}
			return dht.Config{Bootstrap: boot, NoShortcut: true}
		}},
		"bootstrap dead": {func(*testing.T) dht.Config {
			return dht.Config{Bootstrap: []string{silent.LocalAddr().String()}}
		}, []string{"meeting.dht/silent"}},
		"no bootstrap": {func(*testing.T) dht.Config { return dht.Config{} }, []string{"meeting.dht/none"}},
		"names are not found": {func(*testing.T) dht.Config {
			return dht.Config{Bootstrap: []string{"gone.invalid:6881"}, LookupHost: func(context.Context, string) ([]netip.Addr, error) {
				return nil, &net.DNSError{IsNotFound: true}
			}}
		}, []string{"meeting.dht/names"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := c.cfg(t)
			m := MediumOf(openDHT(t, cfg), nil)
			total := time.Duration(0)
			if len(c.want) > 0 {
				total = 3 * time.Second // what is wrong does not change
			}
			r := meet(t, &Env{Media: []Medium{m}}, total)
			wantCauses(t, r, c.want...)
			if e := result(t, r, "meeting.echo"); len(c.want) == 0 && e.State != Yes {
				t.Errorf("%+v", e)
			}
		})
	}
}
