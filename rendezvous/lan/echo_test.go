package lan

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/internal/netmon"
)

// TestEchoPort: a program that holds the port is told from everything else, and
// nobody can be asked then.
func TestEchoPort(t *testing.T) {
	four, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	port := uint16(four.LocalAddr().(*net.UDPAddr).Port)
	six, err := net.ListenUDP("udp6", &net.UDPAddr{Port: int(port)})
	if err == nil {
		defer six.Close()
	}
	e, err := New(Config{Port: port, DisableMDNS: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var held *PortError
	if err := errors.Join(e.Problems()...); !errors.As(err, &held) || held.Port != port || !strings.Contains(err.Error(), strconv.Itoa(int(port))) {
		t.Errorf("problems: %v", err)
	}
	if six != nil {
		if _, err := e.Echo(t.Context()); !errors.Is(err, errNoEcho) {
			t.Errorf("echo: %v", err)
		}
	}
}

func TestBroadcast(t *testing.T) {
	for in, want := range map[string]string{
		"192.168.1.7/24": "192.168.1.255", "10.1.2.3/9": "10.127.255.255", "172.16.0.5/30": "172.16.0.7",
		"172.16.0.5/31": "", "10.0.0.1/32": "", "fd00::1/64": "",
	} {
		got, ok := broadcast(netip.MustParsePrefix(in))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v, %v; want %q", in, got, ok, want)
		}
	}
}

// TestEchoRate: a device answers no more than it should, and less by multicast.
func TestEchoRate(t *testing.T) {
	s, now := newEchoes(), time.Now()
	answered, twice := 0, 0
	for range 1000 {
		ok, both, _ := s.answers(now)
		if ok {
			answered++
		}
		if both {
			twice++
		}
	}
	if answered != echoRate || twice != echoRateMulticast {
		t.Errorf("of 1000 questions %d were answered, %d by multicast as well", answered, twice)
	}
}

// TestEchoID: a device is not known again by its answers.
func TestEchoID(t *testing.T) {
	s, now := newEchoes(), time.Now()
	id := func(after time.Duration) [8]byte {
		_, _, id := s.answers(now.Add(after))
		return id
	}
	first := id(0)
	if first == ([8]byte{}) || id(time.Minute) != first {
		t.Error("the answers to one doctor are not of one device")
	}
	later := id(echoIDLife)
	if later == first {
		t.Error("it is the same after a while")
	}
	s.moved()
	if id(echoIDLife) == later {
		t.Error("it is the same on another network")
	}
}

// here is an Exchange on the loopback interface, and how a question comes there that it
// should answer.
func here(t *testing.T, cfg Config) (*Exchange, []byte, arrival) {
	t.Helper()
	cfg.DisableMDNS, cfg.IncludeLoopback = true, true
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	q := make([]byte, echoSize)
	copy(q, echoQuestion)
	to := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	return e, q, arrival{from: netip.AddrPortFrom(to, 9), to: to, hops: linkHops}
}

// answered reports whether a question was.
func (e *Exchange) answered() bool {
	e.echoes.mu.Lock()
	defer e.echoes.mu.Unlock()
	return !e.echoes.renew.IsZero()
}

// TestEchoAnswered: who is to answer does, and nobody else.
func TestEchoAnswered(t *testing.T) {
	port := func(t *testing.T) uint16 {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return uint16(c.LocalAddr().(*net.UDPAddr).Port)
	}
	for name, c := range map[string]struct {
		cfg    Config
		change func(*arrival)
		want   bool
	}{
		"by unicast":               {want: true},
		"by multicast":             {change: func(in *arrival) { in.to, in.hops = Group4(), 1 }, want: true},
		"the system does not tell": {change: func(in *arrival) { in.to, in.hops = netip.Addr{}, 0 }, want: true},
		"from beyond a router":     {change: func(in *arrival) { in.hops = linkHops - 1 }},
		"from another network":     {change: func(in *arrival) { in.from = netip.MustParseAddrPort("240.0.0.1:9") }},
		// The port may be another program's: then there are no groups.
		"multicast is off":              {cfg: Config{DisableMulticast: true}},
		"multicast alone, by unicast":   {cfg: Config{MulticastOnly: true}},
		"multicast alone, by multicast": {cfg: Config{MulticastOnly: true}, change: func(in *arrival) { in.to, in.hops = Group4(), 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Port = port(t)
			e, q, in := here(t, c.cfg)
			if c.change != nil {
				c.change(&in)
			}
			take := e.takeUnicast
			if in.to.IsMulticast() {
				take = e.takeGroup
			}
			if take(q, in); e.answered() != c.want {
				t.Errorf("answered: %v", !c.want)
			}
		})
	}
}

// TestEchoFirst: what comes while an Exchange is being opened waits until it is.
func TestEchoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Exchange{socks: new(sockets), echoes: newEchoes(), opened: make(chan struct{})}
		e.ctx, e.cancel = context.WithCancel(t.Context())
		q := make([]byte, echoSize)
		copy(q, echoQuestion)
		from := netip.MustParseAddrPort("[fe80::1%eth0]:9")
		var wg sync.WaitGroup
		wg.Go(func() { e.takeGroup(q, arrival{from: from, to: Group6(), hops: 1}) })
		wg.Go(func() { e.takeUnicast(q, arrival{from: from, hops: linkHops}) })
		synctest.Wait()
		if e.answered() {
			t.Error("answered before it is open")
		}
		e.groups = newGroups(1, 1, echoSize, Group4(), Group6(), nil, nil)
		close(e.opened)
		if wg.Wait(); !e.answered() {
			t.Error("not answered")
		}
		e.cancel()
		e.wg.Wait()
	})
}

// TestEchoOwn: an answer to no question of this device costs nothing.
func TestEchoOwn(t *testing.T) {
	e, q, in := here(t, Config{DisableMulticast: true})
	copy(q, echoAnswer)
	asked := [nonceSize]byte{1}
	e.echoes.asked[asked] = new(asking)
	e.takeUnicast(q, in)
	copy(q[len(echoAnswer):], asked[:])
	far := in
	far.hops--
	e.takeUnicast(q, far)
	if n := len(e.echoes.asked[asked].answers); n != 0 {
		t.Errorf("%d answers kept that are none, or from afar", n)
	}
	e.takeUnicast(q, in)
	if n := len(e.echoes.asked[asked].answers); n != 1 {
		t.Errorf("%d answers kept, want 1", n)
	}
}

// FuzzEcho holds that no datagram is taken for an answer that is none, and that
// nothing but the one question is kept.
func FuzzEcho(f *testing.F) {
	nonce := [nonceSize]byte{1}
	answer := append(append([]byte(echoAnswer), nonce[:]...), make([]byte, echoSize-len(echoAnswer)-nonceSize)...)
	f.Add(answer)
	f.Add(answer[:echoSize-1])
	f.Add(append([]byte(echoQuestion), make([]byte, echoSize-len(echoQuestion))...))
	use := []netmon.Interface{{Index: 1, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}}}
	e := &Exchange{socks: &sockets{use: use}, echoes: newEchoes(), groups: newGroups(1, 1, echoSize, Group4(), Group6(), nil, nil)}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.cancel() // nothing is sent
	in := arrival{from: netip.MustParseAddrPort("192.0.2.1:9"), to: Group4(), index: 1, hops: 1}
	f.Fuzz(func(t *testing.T, b []byte) {
		a := new(asking)
		e.echoes.asked = map[[nonceSize]byte]*asking{nonce: a}
		mine := e.takeEcho(b, in)
		if mine && len(b) != echoSize {
			t.Errorf("%d bytes were taken", len(b))
		}
		if bytes.Equal(b, answer) && len(a.answers) != 1 {
			t.Error("the answer was not taken")
		}
		if len(a.answers) > 0 && (len(b) != echoSize || [nonceSize]byte(b[4:]) != nonce || a.answers[0].Asked > ByMulticast) {
			t.Errorf("%x was taken for an answer", b)
		}
	})
}

func TestEchoClosed(t *testing.T) {
	e, err := New(Config{Interfaces: []string{"none"}, DisableMDNS: true, Monitor: netmon.New(netmon.Config{})})
	if err != nil {
		t.Fatal(err)
	}
	e.AskMDNS() // is off: does nothing
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if got, err := e.Echo(ctx); err != nil || len(got) > 0 {
		t.Errorf("on no interface: %v, %v", got, err)
	}
	e.Close()
	if _, err := e.Echo(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// TestEchoRoom holds that one address that answers without end leaves room for others.
func TestEchoRoom(t *testing.T) {
	s, nonce := newEchoes(), [nonceSize]byte{7}
	q := new(asking)
	s.asked[nonce] = q
	from := func(text string) Answer { return Answer{From: netip.MustParseAddrPort(text)} }
	for range 2 * maxEchoes {
		s.came(nonce, from("192.168.1.66:9"))
	}
	s.came(nonce, from("192.168.1.7:9"))
	if n := len(q.answers); n != echoesEach+1 || q.answers[n-1].From.Addr() != netip.MustParseAddr("192.168.1.7") {
		t.Errorf("%d answers are kept, the last of %v", n, q.answers[n-1].From)
	}
	for host := range 200 {
		for range 2 {
			s.came(nonce, Answer{From: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(host)}), 9)})
		}
	}
	if n := len(q.answers); n != maxEchoes {
		t.Errorf("%d answers are kept in all", n)
	}
}
