package lan

import (
	"testing"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestSuite(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
	}{
		{"every way", Config{Port: 27592, MDNSPort: 27654}},
		{"multicast only", Config{Port: 27593, MDNSPort: 27655, MulticastOnly: true}},
		{"groups of topics as well", Config{Port: 27594, MDNSPort: 27656, HopLimit: 2, Scope: ScopeOrganisation}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.IncludeLoopback = true
			rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
				open := func() rendezvous.Exchange {
					e, err := New(c.cfg)
					if err != nil {
						t.Fatal(err)
					}
					return e
				}
				return open(), open()
			})
		})
	}
}
