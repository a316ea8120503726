package doctor

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/kithproject/kith/rendezvous/waku"
)

func TestMeetingWaku(t *testing.T) {
	start := func(t *testing.T, cfg waku.ServiceConfig) (node, address string) {
		cfg.Seed[0] = 1
		s, err := waku.NewService(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		t.Cleanup(func() {
			s.Close()
			<-served
		})
		return s.Multiaddr("127.0.0.1", uint16(ln.Addr().(*net.TCPAddr).Port), ""), ln.Addr().String()
	}
	for name, c := range map[string]struct {
		open func(*testing.T) (node, address string)
		want []string
	}{
		"healthy": {open: func(t *testing.T) (string, string) { return start(t, waku.ServiceConfig{}) }},
		"another cluster": {func(t *testing.T) (string, string) {
			return start(t, waku.ServiceConfig{Network: waku.Network{Cluster: 1, Shards: 8}})
		}, []string{"meeting.waku/cluster"}},
		"down": {func(t *testing.T) (string, string) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			return fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", ln.Addr().(*net.TCPAddr).Port), ln.Addr().String()
		}, []string{"meeting.waku/refused"}},
		"something else": {func(t *testing.T) (string, string) {
			a := startWeb(t)
			_, port, _ := strings.Cut(a, ":")
			return "/ip4/127.0.0.1/tcp/" + port, a
		}, []string{"meeting.waku/mute"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node, address := c.open(t)
			x, err := waku.New(waku.Config{Nodes: []string{node}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { x.Close() })
			if got := x.Servers(); !slices.Equal(got, []string{address}) {
				t.Errorf("servers %q", got)
			}
			r := meet(t, &Env{Media: []Medium{MediumOf(x, nil)}}, 0)
			wantCauses(t, r, c.want...)
			if e := result(t, r, "meeting.echo"); len(c.want) == 0 && e.State != Yes {
				t.Errorf("%+v", e)
			}
		})
	}
}
