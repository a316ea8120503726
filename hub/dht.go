package hub

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/kithproject/kith/rendezvous/dht"
)

// A DHTMode says of which distributed hash table a hub is a node.
type DHTMode string

// The modes.
const (
	DHTMainline DHTMode = "mainline" // BitTorrent's
	DHTPrivate  DHTMode = "private"  // one of one's own, without the internet
	DHTOff      DHTMode = "off"      // of none; the default
)

// ParseDHTMode reads "mainline", "private" or "off". It errs for any other text.
func ParseDHTMode(text string) (DHTMode, error) {
	switch m := DHTMode(text); m {
	case DHTMainline, DHTPrivate, DHTOff:
		return m, nil
	}
	return "", fmt.Errorf("%w: %q is not a way to take part in a DHT: mainline, private and off are", ErrConfig, text)
}

// startDHT makes the hub a node by which devices find their way into the table. A
// port that is taken, perhaps by a BitTorrent client, is no reason not to start.
func (h *Hub) startDHT() error {
	if h.cfg.DHT == "" || h.cfg.DHT == DHTOff {
		return nil
	}
	mode, err := ParseDHTMode(string(h.cfg.DHT))
	if err != nil {
		return err
	}
	cfg := dht.Config{
		Port: h.cfg.DHTPort, Serve: true, Private: mode == DHTPrivate, Bootstrap: h.cfg.DHTBootstrap,
		NodesFile: filepath.Join(h.cfg.Dir, "dht-nodes"), Logger: h.log,
	}
	if mode == DHTMainline && len(cfg.Bootstrap) == 0 {
		cfg.Bootstrap = dht.DefaultBootstrap()
	}
	node, err := dht.NewNode(cfg)
	if err != nil {
		h.log.Warn("no node of the dht", "port", cfg.Port, "err", err)
		return nil
	}
	h.dht = node
	return nil
}

// DHTAddr returns the address of the hub's node of the distributed hash table; the
// zero value if it has none.
func (h *Hub) DHTAddr() netip.AddrPort {
	if h.dht == nil {
		return netip.AddrPort{}
	}
	return h.dht.Addr()
}
