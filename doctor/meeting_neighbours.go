package doctor

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

const (
	// arpTable is what Linux tells of IPv4 neighbours, of the caller's own namespace.
	arpTable       = "/proc/thread-self/net/arp"
	maxNeighbours  = 1024
	maxAskedByName = 16 // neighbours and peers that are asked by unicast, in number
)

// A lanNeighbour is another host of a network, as the system knows it.
type lanNeighbour struct {
	addr  netip.Addr
	ifi   string
	found bool // it has answered (ARP); false: it was asked and did not
}

// lanNeighbours reads the system's table of IPv4 neighbours. It is nil where the system
// has none that can be read.
func lanNeighbours() []lanNeighbour {
	b, err := os.ReadFile(arpTable)
	if err != nil {
		return nil
	}
	return parseARP(b)
}

// parseARP reads /proc/net/arp: address, hardware type, flags, hardware address, mask,
// interface.
func parseARP(b []byte) (out []lanNeighbour) {
	scan := bufio.NewScanner(bytes.NewReader(b))
	for scan.Scan() && len(out) < maxNeighbours {
		f := strings.Fields(scan.Text())
		const fields, complete = 6, 0x2 // ATF_COM of if_arp.h
		if len(f) != fields {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		flags, err2 := strconv.ParseUint(strings.TrimPrefix(f[2], "0x"), 16, 32)
		if err != nil || err2 != nil || !a.Is4() {
			continue
		}
		out = append(out, lanNeighbour{addr: a, ifi: f[5], found: flags&complete != 0})
	}
	return out
}
