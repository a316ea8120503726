package kith_test

import (
	"context"
	"testing"

	"github.com/kithproject/kith/internal/nettest"
)

func TestZZ(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*netTimeout)
	defer cancel()
	m := newMeetLab(ctx, t, nettest.NATEasy)
	all := services(ctx, t, m)
	for range 4 {
		t.Log(m.meet(ctx, alone(all, 2, false)))
	}
}
