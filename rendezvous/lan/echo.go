package lan

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/kithproject/kith/internal/netmon"
)

const (
	// echoQuestion and echoAnswer start what an Echo sends and gets. Both are of one
	// size.
	echoQuestion = "kec\x01"
	echoAnswer   = "kec\x02"
	echoSize     = 40  // bytes
	maxEchoes    = 256 // answers to one question that are kept
	echoesEach   = 16  // of them from one address, a count: who sends more leaves room for others
	nonceSize    = 16  // bytes

	echoRate = 20 // questions per second that are answered
	// Multicast costs all of a wireless network air, and one question may have many
	// devices answer: so each answers less often by it, and not at once.
	echoRateMulticast  = 4 // questions per second that are answered by multicast, too
	echoDelayMulticast = 50 * time.Millisecond
	// echoIDLife is how long a device answers with one ID: longer than a doctor looks,
	// and too short to know the device again by it.
	echoIDLife = 5 * time.Minute
)

// A Way is how a datagram was sent.
type Way uint8

// The ways. The zero value is a platform that does not tell.
const (
	WayUnknown Way = iota
	ByUnicast
	ByBroadcast
	ByMulticast
)

// String returns "unicast", "broadcast", "multicast" or "unknown".
func (w Way) String() string {
	switch w {
	case ByUnicast:
		return "unicast"
	case ByBroadcast:
		return "broadcast"
	case ByMulticast:
		return "multicast"
	case WayUnknown:
	}
	return "unknown"
}

// An Answer is what one device of the LAN answered to an Echo. A device answers
// each question that reaches it by unicast, and some by multicast as well.
type Answer struct {
	From      netip.AddrPort
	Device    [8]byte       // random, for five minutes at most, and new on another network
	Both      bool          // the device says that it answered this question by multicast, too
	Own       bool          // it comes from an address of this very host
	Interface string        // on which it came; "" where the platform does not tell
	Asked     Way           // how the question reached the device
	HopsThere int           // the hops that the question had left there; 0: not told
	Came      Way           // how the answer came here
	HopsHere  int           // the hops that the answer had left here; 0: not told
	Took      time.Duration // from the question to this answer; those by multicast wait up to 50 ms
}

// echoes answers the questions of other devices, and collects what is answered to
// this one's.
type echoes struct {
	mu        sync.Mutex // guards the fields below
	id        [8]byte
	renew     time.Time // when the id is to be another one
	rate      bucket
	multicast bucket
	asked     map[[nonceSize]byte]*asking
}

type asking struct {
	at      time.Time
	answers []Answer
}

func newEchoes() *echoes { return &echoes{asked: make(map[[nonceSize]byte]*asking)} }

// moved has the next answer say another ID: the network is another one.
func (s *echoes) moved() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renew = time.Time{}
}

var errNoEcho = errors.New("lan: devices are asked at the port of the groups, and multicast is off or the port is held by another program")

// Echo asks the devices of the LAN once to answer: by multicast and, over IPv4, by
// broadcast on each interface, and by unicast at the addresses that are given. It
// collects the answers until ctx ends. It tells which ways datagrams go between
// devices that run kith; who does not run it is silent. It errs with net.ErrClosed
// after Close, and where no group could be opened.
func (e *Exchange) Echo(ctx context.Context, to ...netip.Addr) ([]Answer, error) {
	if e.groups == nil {
		return nil, errNoEcho
	}
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails
	s := e.echoes
	a := &asking{at: time.Now()}
	s.mu.Lock()
	s.asked[nonce] = a
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.asked, nonce)
	}()
	q := make([]byte, echoSize)
	copy(q[copy(q, echoQuestion):], nonce[:])
	if _, err := e.groups.send(nil, func(netmon.Interface, bool) []byte { return q }); errors.Is(err, net.ErrClosed) {
		return nil, fmt.Errorf("lan: echo: %w", err)
	}
	if !e.cfg.MulticastOnly {
		for _, b := range broadcasts(e.socks.interfaces()) {
			_ = e.socks.unicast(q, netip.AddrPortFrom(b, e.cfg.Port)) // an interface that cannot
		}
		for _, t := range to {
			_ = e.socks.unicast(q, netip.AddrPortFrom(t, e.cfg.Port)) // nobody there is an answer, too
		}
	}
	<-ctx.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(a.answers), nil
}

// AskMDNS asks by mDNS which services there are (RFC 6763 section 9): what any host
// answers shows in MDNS. It does nothing where mDNS is off.
func (e *Exchange) AskMDNS() {
	if e.mdns == nil {
		return
	}
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName("_services._dns-sd._udp.local."), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET,
	}}}
	q, err := m.Pack()
	if err != nil {
		return // a constant that can be packed
	}
	_, _ = e.mdns.groups.send(nil, func(netmon.Interface, bool) []byte { return q })
}

// broadcasts are the broadcast addresses of the networks that have one.
func broadcasts(use []netmon.Interface) (out []netip.Addr) {
	for _, i := range use {
		for _, p := range i.Addrs {
			if b, ok := broadcast(p); ok && !i.Loopback && !i.PointToPoint && !slices.Contains(out, b) {
				out = append(out, b)
			}
		}
	}
	return out
}

func broadcast(p netip.Prefix) (netip.Addr, bool) {
	const smallest = 30 // smaller networks have none
	if !p.Addr().Is4() || p.Bits() > smallest {
		return netip.Addr{}, false
	}
	a := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a), true
}

// way says how a datagram was sent.
func (e *Exchange) way(in arrival) Way {
	switch {
	case !in.to.IsValid():
		return WayUnknown
	case in.to.IsMulticast():
		return ByMulticast
	case in.to == netip.AddrFrom4([4]byte{255, 255, 255, 255}), slices.Contains(broadcasts(e.socks.interfaces()), in.to):
		return ByBroadcast
	}
	return ByUnicast
}

// far reports whether a datagram to one host or to a network has certainly passed a
// router: all of an Exchange start with the highest hop limit there is (RFC 5082).
func (a arrival) far() bool {
	return a.to.IsValid() && !a.to.IsMulticast() && a.hops != 0 && a.hops != linkHops
}

// takeEcho looks at a datagram; it reports whether it was of an echo.
func (e *Exchange) takeEcho(b []byte, in arrival) bool {
	if len(b) != echoSize {
		return false
	}
	rest, asks := bytes.CutPrefix(b, []byte(echoQuestion))
	if !asks {
		var answers bool
		if rest, answers = bytes.CutPrefix(b, []byte(echoAnswer)); !answers {
			return false
		}
	}
	nonce, rest := [nonceSize]byte(rest), rest[nonceSize:]
	if e.echoes.own(nonce) == asks {
		return true // a question of one's own, or an answer to nothing
	}
	use := e.socks.interfaces()
	if in.far() || !onLink(use, in.index, in.from.Addr()) {
		return true
	}
	if asks {
		// One whose port another program has is asked by nobody, and beside one of
		// multicast alone there is another one of this device.
		if e.groups != nil && !e.cfg.MulticastOnly {
			e.answerEcho(nonce, in)
		}
		return true
	}
	a := Answer{From: in.from, Device: [8]byte(rest), Asked: Way(rest[8]), HopsThere: int(rest[9]), Both: rest[10] == 1, Came: e.way(in), HopsHere: in.hops}
	if a.Asked > ByMulticast {
		return true
	}
	for _, i := range use {
		if i.Index == in.index {
			a.Interface = i.Name
		}
	}
	a.Own = hasAddr(use, in.from.Addr())
	e.echoes.came(nonce, a)
	return true
}

// own reports whether a question is of this device, and still open.
func (s *echoes) own(nonce [nonceSize]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[nonce] != nil
}

// came keeps an answer to a question of this device.
func (s *echoes) came(nonce [nonceSize]byte, a Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.asked[nonce]
	if q == nil || len(q.answers) == maxEchoes {
		return
	}
	n := 0
	for _, o := range q.answers {
		if o.From.Addr() == a.From.Addr() {
			n++
		}
	}
	if n == echoesEach {
		return
	}
	a.Took = time.Since(q.at)
	q.answers = append(q.answers, a)
}

// answers says whether a question is to be answered, and by multicast as well, and with
// which ID.
func (s *echoes) answers(now time.Time) (ok, both bool, id [8]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.rate.take(now, echoRate) {
		return false, false, id
	}
	if !now.Before(s.renew) {
		_, _ = rand.Read(s.id[:]) // never fails
		s.renew = now.Add(echoIDLife)
	}
	return true, s.multicast.take(now, echoRateMulticast), s.id
}

// answerEcho answers to the asker alone, and, unless that was done too often, to the
// group on the interface from which the question came.
func (e *Exchange) answerEcho(nonce [nonceSize]byte, in arrival) {
	ok, both, id := e.echoes.answers(time.Now())
	if !ok {
		return
	}
	a := make([]byte, echoSize)
	rest := a[copy(a, echoAnswer):]
	rest = rest[copy(rest, nonce[:]):]
	rest = rest[copy(rest, id[:]):]
	rest[0], rest[1] = byte(e.way(in)), byte(min(max(in.hops, 0), 255))
	if both {
		rest[2] = 1
	}
	_ = e.socks.unicast(a, in.from) // whoever asked asks again
	if !both {
		return
	}
	e.wg.Go(func() {
		select {
		case <-time.After(mrand.N(echoDelayMulticast)):
		case <-e.ctx.Done():
			return
		}
		_, _ = e.groups.send(nil, func(i netmon.Interface, six bool) []byte {
			if in.index != 0 && i.Index != in.index || six != in.from.Addr().Is6() {
				return nil
			}
			return a
		})
	})
}
