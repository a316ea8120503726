package kith

import (
	"context"
	"testing"

	"github.com/kithproject/kith/link/relay"
)

// TestRelayOutOfTime holds that a server none of whose URLs answered while there was
// time is an error, and not a relay that is none.
func TestRelayOutOfTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newRelays(&Node{ctx: ctx})
	place := relayPlace{name: "hub", cfgs: []relay.Config{{URL: "turn:127.0.0.1:9"}, {URL: "turn:127.0.0.1:9?transport=tcp"}}}
	if one, _, err := r.dial(place); err == nil || one != nil {
		t.Fatalf("dial: %v, %v, want an error and no relay", one, err)
	}
}
