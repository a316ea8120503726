package lan

import (
	"testing"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestSuite(t *testing.T) {
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		open := func() rendezvous.Exchange {
			e, err := New(Config{IncludeLoopback: true, Port: 27592, MDNSPort: 27654})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		return open(), open()
	})
}
