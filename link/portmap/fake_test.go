package portmap

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

// A fakeGateway is a home router's port mapping: one table, three protocols. It
// is made of the RFCs' request formats, not of our parsers.
type fakeGateway struct {
	mu sync.Mutex

	pcp, pmp, upnp bool
	external       netip.Addr
	other          netip.Addr // valid: the next answer has this external address
	boot           time.Time
	granted        time.Duration // 0: as asked
	pcpError       byte
	pcpErrorLife   uint32 // seconds
	pmpError       uint16
	pmpReject      bool            // says to PCP that it speaks NAT-PMP only
	noAnnounce     bool            // answers ANNOUNCE with UNSUPP_OPCODE
	taken          map[uint16]bool // external UDP ports of other devices
	onlyPermanent  bool
	addCode        int // UPnP error code of every AddPortMapping
	mute           bool
	badNonce       bool
	stale          bool // what was discovered is not there any more

	mapped   uint16 // our external port; 0: none
	internal uint16
	nonce    [12]byte
	client   [16]byte
	maps     int // requests that made or renewed the mapping
	probes   int // packets and searches that map nothing
	leases   []time.Duration
	removed  int
}

var (
	gwAddr   = netip.MustParseAddr("192.168.1.1")
	selfAddr = netip.MustParseAddr("192.168.1.23")
	public   = netip.MustParseAddr("203.0.113.7")
)

const ourPort = 41641

// packet returns the answer to a datagram; nil is none.
func (g *fakeGateway) packet(now time.Time, b []byte) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mute || len(b) < 2 {
		return nil
	}
	g.swap()
	epoch := uint32(now.Sub(g.boot) / time.Second)
	switch {
	case b[0] == 2 && g.pcp:
		return g.answerPCP(b, epoch)
	case b[0] == 2 && g.pmpReject:
		return binary.BigEndian.AppendUint32([]byte{0, 128 + b[1], 0, 1}, epoch)
	case b[0] == 0 && g.pmp:
		return g.answerPMP(b, epoch)
	}
	return nil
}

func (g *fakeGateway) answerPCP(b []byte, epoch uint32) []byte {
	out := append([]byte(nil), b...)
	out[1] |= 0x80
	out[2] = 0
	binary.BigEndian.PutUint32(out[8:], epoch)
	clear(out[12:24])
	fail := func(code byte, life uint32) []byte {
		out[3] = code
		binary.BigEndian.PutUint32(out[4:], life)
		return out
	}
	if out[3] = 0; b[1] == 0 {
		g.probes++
		if g.noAnnounce {
			return fail(4, 1800)
		}
		return out
	}
	if g.pcpError != 0 {
		return fail(g.pcpError, g.pcpErrorLife)
	}
	life := binary.BigEndian.Uint32(b[4:])
	if b[36] != 17 {
		panic("not UDP")
	}
	if life == 0 {
		g.mapped, g.removed = 0, g.removed+1
		return out
	}
	if client := [16]byte(b[8:24]); client != g.client {
		g.client, g.mapped = client, 0 // another device's mapping is another
	}
	if g.mapped != 0 && g.nonce != [12]byte(b[24:36]) {
		return fail(2, 1800)
	}
	g.nonce = [12]byte(b[24:36])
	if g.badNonce {
		out[24]++
	}
	g.grant(binary.BigEndian.Uint16(b[40:]), binary.BigEndian.Uint16(b[42:]))
	binary.BigEndian.PutUint16(out[42:], g.mapped)
	ip := g.external.As16()
	copy(out[44:], ip[:])
	if g.granted != 0 {
		life = uint32(g.granted / time.Second)
	}
	binary.BigEndian.PutUint32(out[4:], life)
	return out
}

func (g *fakeGateway) answerPMP(b []byte, epoch uint32) []byte {
	out := binary.BigEndian.AppendUint32([]byte{0, b[1] | 0x80, byte(g.pmpError >> 8), byte(g.pmpError)}, epoch)
	if b[1] == 0 {
		g.probes++
		ip := g.external.As4()
		return append(out, ip[:]...)
	}
	if g.pmpError != 0 {
		return out
	}
	if b[1] != 1 {
		panic("not UDP")
	}
	life := binary.BigEndian.Uint32(b[8:])
	if life == 0 {
		g.mapped, g.removed = 0, g.removed+1
		return append(append(out, b[4:6]...), 0, 0, 0, 0, 0, 0)
	}
	g.grant(binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]))
	if g.granted != 0 {
		life = uint32(g.granted / time.Second)
	}
	out = append(out, b[4:6]...)
	out = binary.BigEndian.AppendUint16(out, g.mapped)
	return binary.BigEndian.AppendUint32(out, life)
}

func (g *fakeGateway) grant(internal, suggest uint16) {
	g.maps++
	if g.mapped == 0 {
		g.mapped = suggest
		for g.taken[g.mapped] || g.mapped == 0 {
			g.mapped++
		}
	}
	g.internal = internal
}

func (g *fakeGateway) swap() {
	if g.other.IsValid() {
		g.external, g.other = g.other, g.external
	}
}

// reboot forgets everything.
func (g *fakeGateway) reboot(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.boot, g.mapped, g.stale = now, 0, true
}

// job is the UPnP side, as igd would return it.
func (g *fakeGateway) job(j job) jobResult {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.swap()
	r := jobResult{id: j.id, external: g.external}
	if g.stale = g.stale && j.purpose != toProbe; !g.upnp || g.mute || g.stale {
		r.err = errNoIGD
		return r
	}
	switch j.purpose {
	case toProbe:
		g.probes++
	case toMap:
		g.leases = append(g.leases, j.lease)
		switch {
		case g.addCode != 0:
			r.err = codeError(g.addCode)
		case g.taken[j.port]:
			r.err = codeError(upnpConflict)
		case g.onlyPermanent && j.lease != 0:
			r.err = codeError(upnpOnlyPermanent)
		default:
			g.mapped, g.internal = j.port, ourPort
			g.maps++
		}
	case toCheck:
		g.probes++
		r.gone = g.mapped != j.port
	case toRemove:
		g.mapped, g.removed = 0, g.removed+1
	}
	return r
}

func (g *fakeGateway) state() (port uint16, maps int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mapped, g.maps
}

func (g *fakeGateway) muted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mute
}
