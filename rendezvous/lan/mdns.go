package lan

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
)

const (
	mdnsPort   = 5353
	maxMDNS    = 9000 // bytes of a message, RFC 6762 section 17
	mdnsRate   = 200  // messages per second that are looked at
	answerGap  = time.Second
	mdnsHopsV4 = 255 // RFC 6762 section 11
)

func mdnsGroup4() netip.Addr { return netip.AddrFrom4([4]byte{224, 0, 0, 251}) }

func mdnsGroup6() netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0xfb})
}

// mdns answers and asks for tags, beside whatever else does mDNS here.
type mdns struct {
	e     *Exchange
	label string // random name of instance and host
	conn4 *net.UDPConn
	conn6 *net.UDPConn
	pc4   *ipv4.PacketConn
	pc6   *ipv6.PacketConn
	rate  bucket // of the reading goroutines; guarded by mu

	mu       sync.Mutex // guards the fields below and pc4's interface
	use      []netmon.Interface
	answered map[rendezvous.Tag]time.Time
}

// openMDNS joins the mDNS groups. It errs if the port cannot be shared.
func openMDNS(e *Exchange) (*mdns, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	m := &mdns{e: e, label: "kith-" + hex.EncodeToString(random[:]), answered: make(map[rendezvous.Tag]time.Time)}
	port := strconv.Itoa(int(e.cfg.MDNSPort))
	var err4, err6 error
	if m.conn4, err4 = listen("udp4", ":"+port, true); err4 == nil {
		m.pc4 = ipv4.NewPacketConn(m.conn4)
		_ = m.pc4.SetMulticastTTL(mdnsHopsV4)
		_ = m.pc4.SetMulticastLoopback(true)
	}
	if m.conn6, err6 = listen("udp6", "[::]:"+port, true); err6 == nil {
		m.pc6 = ipv6.NewPacketConn(m.conn6)
		_ = m.pc6.SetMulticastHopLimit(mdnsHopsV4)
		_ = m.pc6.SetMulticastLoopback(true)
	}
	if err4 != nil && err6 != nil {
		return nil, errors.Join(err4, err6)
	}
	return m, nil
}

func (m *mdns) conns() []*net.UDPConn {
	return slices.DeleteFunc([]*net.UDPConn{m.conn4, m.conn6}, func(c *net.UDPConn) bool { return c == nil })
}

func (m *mdns) start(wg *sync.WaitGroup) {
	for _, c := range m.conns() {
		wg.Go(func() {
			buf := make([]byte, maxMDNS)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					m.take(buf[:n], from)
				}
			}
		})
	}
}

func (m *mdns) close() {
	for _, c := range m.conns() {
		c.Close()
	}
}

func (m *mdns) setInterfaces(use []netmon.Interface) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.use = use
	for _, i := range use {
		ifi := &net.Interface{Index: i.Index, Name: i.Name}
		// An interface that cannot, or has joined already, is no loss.
		if m.pc4 != nil && has4(i) {
			_ = m.pc4.JoinGroup(ifi, &net.UDPAddr{IP: mdnsGroup4().AsSlice()})
		}
		if m.pc6 != nil && has6(i) {
			_ = m.pc6.JoinGroup(ifi, &net.UDPAddr{IP: mdnsGroup6().AsSlice()})
		}
	}
}

// take looks at one message: it answers questions for announced tags, and learns
// from answers.
func (m *mdns) take(b []byte, from netip.AddrPort) {
	m.mu.Lock()
	ok := m.rate.take(time.Now(), mdnsRate)
	m.mu.Unlock()
	if !ok {
		return
	}
	msg, err := parseMDNS(b)
	if err != nil {
		return
	}
	for _, q := range msg.questions {
		if !slices.Contains(msg.known, m.label) && m.e.receiving(q) && m.mayAnswer(q) {
			m.announce(q, false)
		}
	}
	zone := from.Addr().Zone()
	for _, f := range msg.found {
		if f.label == m.label {
			continue
		}
		for _, a := range f.addrs {
			if a.IsLinkLocalUnicast() && a.Is6() {
				a = a.WithZone(zone)
			}
			if local(a) {
				m.e.found(f.tag, netip.AddrPortFrom(a, f.port))
			}
		}
	}
}

// mayAnswer bounds answers, RFC 6762 section 6: a record goes out at most once a
// second.
func (m *mdns) mayAnswer(tag rendezvous.Tag) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if now.Sub(m.answered[tag]) < answerGap {
		return false
	}
	for t, at := range m.answered {
		if now.Sub(at) > answerGap {
			delete(m.answered, t)
		}
	}
	m.answered[tag] = now
	return true
}

// ask sends a question for a tag on every interface.
func (m *mdns) ask(tag rendezvous.Tag) {
	q, err := question(tag)
	if err != nil {
		m.e.log.Error("question not built", "err", err)
		return
	}
	m.send(func(netmon.Interface) []byte { return q })
}

// announce sends the records of a tag on every interface, each with that
// interface's addresses; goodbye takes them back.
func (m *mdns) announce(tag rendezvous.Tag, goodbye bool) {
	port4, port6 := portOf(m.e.socks.send4), portOf(m.e.socks.send6)
	m.send(func(i netmon.Interface) []byte {
		a, err := answer(m.label, tag, port4, port6, i.Addrs, goodbye)
		if err != nil {
			m.e.log.Error("answer not built", "err", err)
			return nil
		}
		return a
	})
}

func (m *mdns) send(build func(netmon.Interface) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.use {
		b := build(i)
		if b == nil {
			continue
		}
		if m.pc4 != nil && has4(i) {
			if err := m.pc4.SetMulticastInterface(&net.Interface{Index: i.Index, Name: i.Name}); err == nil {
				_, _ = m.conn4.WriteToUDPAddrPort(b, netip.AddrPortFrom(mdnsGroup4(), m.e.cfg.MDNSPort))
			}
		}
		if m.pc6 != nil && has6(i) {
			_, _ = m.conn6.WriteToUDPAddrPort(b, netip.AddrPortFrom(mdnsGroup6().WithZone(i.Name), m.e.cfg.MDNSPort))
		}
	}
}
