package kith

import (
	"context"
	"testing"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link/relay"
)

// TestRelayOutOfTime holds that a server none of whose URLs answered while there was
// time is an error, and not a relay that is none.
func TestRelayOutOfTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newRelays(new(Node))
	place := relayPlace{name: "hub", cfgs: []relay.Config{{URL: "turn:127.0.0.1:9"}, {URL: "turn:127.0.0.1:9?transport=tcp"}}}
	if one, _, err := r.dial(ctx, place); err == nil || one != nil {
		t.Fatalf("dial: %v, %v, want an error and no relay", one, err)
	}
}

// TestRelaying: the doctor knows where the node itself has an address.
func TestRelaying(t *testing.T) {
	r := newRelays(new(Node))
	if got := r.names(); len(got) != 0 {
		t.Errorf("none is open: %q", got)
	}
	r.open["hub.example"] = nil
	if got := r.names(); len(got) != 1 || got[0] != hubPlace(hubaddr.Address{Host: "hub.example"}, nil).name {
		t.Errorf("one is open: %q", got)
	}
}
