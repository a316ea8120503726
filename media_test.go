package kith

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous/dht"
)

// TestNodesOfMembers holds that a device learns nodes of the DHT from those that it is
// paired with, and not from members of its rooms.
func TestNodesOfMembers(t *testing.T) {
	d, err := dht.New(dht.Config{Bootstrap: []string{"127.0.0.1:1"}, Private: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	nodes := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2")}
	for name, rec := range map[string]registry.Device{"pair": {}, "member": {Room: [16]byte{1}}} {
		p := &peer{n: &Node{dht: d}, rec: rec}
		if p.learnNodes(nodes); p.learned.IsZero() != rec.Member() {
			t.Errorf("%s: nodes taken: %v", name, !p.learned.IsZero())
		}
	}
}
