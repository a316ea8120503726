package kith

import (
	"testing"

	"github.com/kithproject/kith/link"
)

// TestForceOnce: two measurements, of this device's user and of the other one's, do not
// overrule each other.
func TestForceOnce(t *testing.T) {
	p := &peer{box: newMailbox()}
	if !p.force(link.ForceLAN) || p.force(link.ForceRelay) || p.force(link.ForceLAN) {
		t.Error("a path is forced twice")
	}
	if p.forced != link.ForceLAN {
		t.Errorf("forced is %v", p.forced)
	}
	p.unforce()
	if !p.force(link.ForceRelay) || p.forced != link.ForceRelay {
		t.Error("a path cannot be forced again")
	}
}
