package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

const (
	maxSTUN = 1500 // bytes of a datagram that is read
	// stunPatience is how long an answer is waited for: a network with two seconds of
	// latency each way is slow, not blocked.
	stunPatience = 6 * time.Second
	// stunMore is how long the others are waited for when one server has answered.
	stunMore = 2500 * time.Millisecond
	// stunPause is between the requests of one question: so many that half of them, or of
	// the answers, may be lost. After stunDense of them the pause is twice as long.
	stunPause = 250 * time.Millisecond
	stunDense = 8 // a count
)

type txid = [stun.TransactionIDSize]byte

// A stunAnswer is what came back on a socket.
type stunAnswer struct {
	From   netip.AddrPort
	Mapped netip.AddrPort
	Other  netip.AddrPort // the server's second address and port (RFC 5780), if it has one
	Code   int            // of an error, else 0
	RTT    time.Duration  // since the first request
}

// errNoAnswer: nothing came back in time.
var errNoAnswer = errors.New("no answer")

// A stunSocket asks STUN servers. It is safe for concurrent use.
type stunSocket struct {
	env   *Env
	conn  *net.UDPConn
	local netip.AddrPort // its address may be the unspecified one
	wg    sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	waiting map[txid]chan stunAnswer
	plain   chan datagram // what is no STUN, if somebody wants it
}

// A datagram is what came from somewhere.
type datagram struct {
	from netip.AddrPort
	data []byte
}

// openSTUN opens a socket for a family; network is udp4 or udp6. It errs if the system
// does not let it.
func openSTUN(env *Env, network string) (*stunSocket, error) {
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return nil, err
	}
	s := &stunSocket{env: env, conn: conn, local: udpAddr(conn.LocalAddr()), waiting: make(map[txid]chan stunAnswer), plain: make(chan datagram, 8)}
	s.wg.Go(s.read)
	return s, nil
}

func udpAddr(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port())
}

func (s *stunSocket) close() {
	_ = s.conn.Close()
	s.wg.Wait()
}

func (s *stunSocket) read() {
	buf := make([]byte, maxSTUN)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // what the system says of an earlier packet
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		tx, a, ok := parseSTUN(buf[:n])
		if !ok {
			select {
			case s.plain <- datagram{from, append([]byte(nil), buf[:n]...)}:
			default:
			}
			continue
		}
		a.From = from
		s.mu.Lock()
		c := s.waiting[tx]
		s.mu.Unlock()
		select {
		case c <- a: // of a nil channel never
		default:
		}
	}
}

// parseSTUN reads the answer to a binding request.
func parseSTUN(b []byte) (tx txid, a stunAnswer, ok bool) {
	if len(b) > maxSTUN || !stun.IsMessage(b) {
		return tx, a, false
	}
	m := &stun.Message{Raw: append([]byte(nil), b...)}
	if m.Decode() != nil || m.Type.Method != stun.MethodBinding {
		return tx, a, false
	}
	switch m.Type.Class {
	case stun.ClassErrorResponse:
		var code stun.ErrorCodeAttribute
		if code.GetFrom(m) != nil || code.Code == 0 {
			return tx, a, false
		}
		a.Code = int(code.Code)
	case stun.ClassSuccessResponse:
		a.Mapped, ok = placeIn(m, stun.AttrXORMappedAddress, true)
		if !ok {
			return tx, a, false
		}
		a.Other, _ = placeIn(m, stun.AttrOtherAddress, false)
	default:
		return tx, a, false
	}
	return m.TransactionID, a, true
}

// placeIn reads an address and port of a message.
func placeIn(m *stun.Message, t stun.AttrType, xor bool) (netip.AddrPort, bool) {
	v, err := m.Get(t)
	if err != nil || len(v) != 8 && len(v) != 20 {
		return netip.AddrPort{}, false // a short one would be filled up with zeros
	}
	var ip net.IP
	var port int
	if xor {
		var x stun.XORMappedAddress
		if x.GetFromAs(m, t) != nil {
			return netip.AddrPort{}, false
		}
		ip, port = x.IP, x.Port
	} else {
		var x stun.OtherAddress
		if x.GetFrom(m) != nil {
			return netip.AddrPort{}, false
		}
		ip, port = x.IP, x.Port
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok || port <= 0 || port > 65535 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), true
}

// expect registers a question, whose answers arrive on the channel.
func (s *stunSocket) expect(set ...stun.Setter) (raw []byte, answers chan stunAnswer, forget func(), err error) {
	m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, set...)...)
	if err != nil {
		return nil, nil, nil, err
	}
	answers = s.hear(m.TransactionID)
	return m.Raw, answers, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waiting, m.TransactionID)
	}, nil
}

// hear has answers to a question, which another socket may have asked, delivered.
func (s *stunSocket) hear(tx txid) chan stunAnswer {
	c := make(chan stunAnswer, 4)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[tx] = c
	return c
}

// send sends a packet, as soon as the run's rate allows.
func (s *stunSocket) send(ctx context.Context, raw []byte, to netip.AddrPort) error {
	if err := s.env.Pacer.Wait(ctx, 1); err != nil {
		return err
	}
	_, err := s.conn.WriteToUDPAddrPort(raw, to)
	return err
}

// ask asks a server, again and again until patience ends, and returns the first answer.
// It errs with errNoAnswer, or because of the context or the system.
func (s *stunSocket) ask(ctx context.Context, server netip.AddrPort, patience time.Duration, set ...stun.Setter) (stunAnswer, error) {
	raw, answers, forget, err := s.expect(set...)
	if err != nil {
		return stunAnswer{}, err
	}
	defer forget()
	return s.repeat(ctx, raw, server, patience, answers)
}

// repeat sends a packet until something arrives on a channel or patience ends.
func (s *stunSocket) repeat(ctx context.Context, raw []byte, to netip.AddrPort, patience time.Duration, answers <-chan stunAnswer) (stunAnswer, error) {
	start := time.Now()
	end := time.NewTimer(patience)
	defer end.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	var failed error
	for try := 0; ; {
		select {
		case a := <-answers:
			a.RTT = time.Since(start)
			return a, nil
		case <-ctx.Done():
			return stunAnswer{}, ctx.Err()
		case <-end.C:
			if failed != nil {
				return stunAnswer{}, failed
			}
			return stunAnswer{}, errNoAnswer
		case <-again.C:
			failed = s.send(ctx, raw, to)
			if try++; try < stunDense {
				again.Reset(stunPause)
			} else {
				again.Reset(2 * stunPause)
			}
		}
	}
}

// A stunServer is one address of a server that answers STUN.
type stunServer struct {
	Name string // host:port as it was given
	Addr netip.AddrPort
	Hub  bool
}

// A sighting is how a server sees this device.
type sighting struct {
	Server stunServer
	Local  netip.AddrPort // address and port of the socket; the address by the system's routes
	At     time.Time      // when it was asked
	stunAnswer
}

// stunServers resolves all servers that answer STUN, side by side, and returns the first
// address of each family that there is a way to. What is left out is told in lines.
func stunServers(ctx context.Context, env *Env) (out []stunServer, failed []string) {
	var asked []server
	for _, s := range servers(env) {
		switch {
		case s.Hub:
			for _, port := range []uint16{s.Port, s.Alt} {
				if port != 0 {
					asked = append(asked, server{Name: hostPort(s.Host, port), Host: s.Host, Port: port, Hub: true})
				}
			}
		case s.UDP && len(s.ways) == 0: // a TURN server is asked by its own checks
			asked = append(asked, s)
		}
	}
	type found struct {
		addrs []netip.Addr
		err   error
	}
	all := make([]found, len(asked))
	var wg sync.WaitGroup
	for i, s := range asked {
		if s.Port == 0 {
			all[i].err = errors.New("not HOST:PORT")
			continue
		}
		wg.Go(func() { all[i].addrs, all[i].err = resolve(ctx, env, s.Host) })
	}
	wg.Wait()
	for i, f := range all {
		if f.err != nil {
			failed = append(failed, asked[i].Name+": "+f.err.Error())
			continue
		}
		for _, a := range deviceEach(f.addrs, func(netip.Addr) bool { return true }) {
			at := netip.AddrPortFrom(a, asked[i].Port)
			if _, err := localFor(a); err != nil {
				failed = append(failed, fmt.Sprintf("%s: this network has no way to it", at))
				continue
			}
			out = append(out, stunServer{asked[i].Name, at, asked[i].Hub})
		}
	}
	return out, failed
}

// askAll asks servers of one family by one socket, side by side. When one has answered,
// the others have less time.
func (s *stunSocket) askAll(ctx context.Context, servers []stunServer, patience time.Duration) (out []sighting) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		sighting
		err error
	}
	results := make(chan result, len(servers))
	for _, server := range servers {
		at := time.Now()
		go func() { // awaited by the loop below
			a, err := s.ask(ctx, server.Addr, patience)
			own, _ := localFor(server.Addr.Addr()) // it has answered, or err says that it has not
			results <- result{sighting{server, netip.AddrPortFrom(own, s.local.Port()), at, a}, err}
		}()
	}
	var soon *time.Timer
	for range servers {
		r := <-results
		if r.err != nil || r.Code != 0 {
			continue
		}
		out = append(out, r.sighting)
		if soon == nil {
			soon = time.AfterFunc(max(stunMore, 2*r.RTT), cancel)
			defer soon.Stop()
		}
	}
	return out
}
