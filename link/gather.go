package link

import (
	"cmp"
	"context"
	"crypto/rand"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/link/punch"
)

const (
	maxServers  = 8 // STUN servers that are asked
	maxNodes    = 4 // nodes of the DHT that are asked where there are fewer STUN servers
	enoughSTUN  = 2 // servers
	maxMappings = 3 // server-reflexive addresses that are offered
	stunRTO     = 150 * time.Millisecond
	stunTries   = 5 // 150, 300, 600, 1200, 2400 ms
	// stunFresh is for how long what the servers said is taken as true: shorter
	// than the shortest usual lifetime of a mapping that nothing uses.
	stunFresh = 25 * time.Second
	// staleAfter is for how long, and staleRounds in how many rounds, no server has
	// to answer before what they said is forgotten.
	staleAfter  = 2 * time.Minute
	staleRounds = 4
)

// A gatherer asks STUN servers how the shared socket looks from outside. One
// goroutine calls run.
type gatherer struct {
	socket  *Socket
	kick    chan struct{}
	answers chan stunAnswer
	late    chan struct{} // the first nodes of the DHT are known
	peek    chan struct{} // a glance is wanted

	mu      sync.Mutex // guards the fields below
	servers []netip.AddrPort
	nodes   []netip.AddrPort // of the DHT

	answering int            // STUN servers that answered in the last round
	samples   []punch.Sample // of the shared socket in the last round
	nat       punch.Behaviour
	asked     time.Time
	glanced   time.Time      // when a glance was wanted last
	ported    time.Time      // when a glance showed another address or port
	mapped    netip.AddrPort // by a port mapping protocol
	home      []netip.Prefix // the addresses of our interfaces when a server answered last
	failed    int            // rounds since then that no server answered
	silent    time.Time      // when the first of them ended
}

type stunAnswer struct {
	tx     txid
	from   netip.AddrPort
	mapped netip.AddrPort
	other  netip.AddrPort
	at     time.Time
}

func newGatherer(s *Socket) *gatherer {
	return &gatherer{socket: s, kick: make(chan struct{}, 1), answers: make(chan stunAnswer, 64), late: make(chan struct{}, 1), peek: make(chan struct{}, 1)}
}

// isSTUN reports whether b begins like a STUN message (RFC 8489 section 5).
func isSTUN(b []byte) bool { return len(b) > 0 && b[0] < 4 && stun.IsMessage(b) }

// deliver takes a STUN message that came to the shared socket.
// It reports whether it is one that could be an answer.
func (g *gatherer) deliver(b []byte, from netip.AddrPort) bool {
	parse := parseAnswer
	if isKRPC(b) {
		parse = parseNodeAnswer
	}
	a, ok := parse(b)
	if !ok {
		return false
	}
	a.from, a.at = from, time.Now()
	select {
	case g.answers <- a:
	default: // nobody asked for so many
	}
	return true
}

// maxSTUN is the longest answer that is read, in bytes.
const maxSTUN = 548

func parseAnswer(b []byte) (stunAnswer, bool) {
	if len(b) > maxSTUN || !stun.IsMessage(b) {
		return stunAnswer{}, false
	}
	m := &stun.Message{Raw: slices.Clone(b)}
	if m.Decode() != nil || m.Type != stun.BindingSuccess {
		return stunAnswer{}, false
	}
	a := stunAnswer{tx: m.TransactionID}
	var mapped stun.XORMappedAddress
	if mapped.GetFrom(m) != nil {
		return stunAnswer{}, false
	}
	ip, ok := netip.AddrFromSlice(mapped.IP)
	if !ok || mapped.Port <= 0 || mapped.Port > 65535 {
		return stunAnswer{}, false
	}
	if v, err := m.Get(stun.AttrXORMappedAddress); err != nil || len(v) != 8 && len(v) != 20 {
		return stunAnswer{}, false // a short one would be filled up with zeros
	}
	a.mapped = netip.AddrPortFrom(ip.Unmap(), uint16(mapped.Port))
	var other stun.OtherAddress
	if other.GetFrom(m) == nil {
		if ip, ok := netip.AddrFromSlice(other.IP); ok && other.Port > 0 && other.Port <= 65535 {
			a.other = netip.AddrPortFrom(ip.Unmap(), uint16(other.Port))
		}
	}
	return a, true
}

// bindingRequest returns a STUN binding request and its transaction.
func bindingRequest(attributes ...stun.Setter) (raw []byte, tx txid, err error) {
	if _, err := rand.Read(tx[:]); err != nil {
		return nil, tx, err
	}
	m, err := stun.Build(append([]stun.Setter{stun.NewTransactionIDSetter(tx), stun.BindingRequest}, attributes...)...)
	if err != nil {
		return nil, tx, err
	}
	return m.Raw, tx, nil
}

// SetServers says which STUN servers are to be asked, at most 8, and asks them.
// It does not block.
func (s *Socket) SetServers(list []netip.AddrPort) {
	g := s.stun
	g.mu.Lock()
	g.servers = slices.Clone(list[:min(len(list), maxServers)])
	g.mu.Unlock()
	s.Gather()
}

// SetNodes says which nodes of the BitTorrent DHT may be asked where fewer than two
// STUN servers answer, at most 4. The first time it asks them, also in a round that
// still waits for servers. It does not block.
func (s *Socket) SetNodes(list []netip.AddrPort) {
	g := s.stun
	g.mu.Lock()
	first := len(g.nodes) == 0 && len(list) > 0
	g.nodes = slices.Clone(list[:min(len(list), maxNodes)])
	if first {
		select {
		case g.late <- struct{}{}:
		default:
		}
	}
	g.mu.Unlock()
}

// Gather asks the STUN servers anew, as after a change of the network. It does
// not block; SocketConfig.Changed is called if what they say is news.
func (s *Socket) Gather() {
	select {
	case s.stun.kick <- struct{}{}:
	default:
	}
}

// Fresh asks the STUN servers anew if what they said is old: a NAT forgets a
// mapping that nothing uses. It does not block.
func (s *Socket) Fresh() {
	g := s.stun
	g.mu.Lock()
	old := time.Since(g.asked) > stunFresh
	g.mu.Unlock()
	if old {
		s.Gather()
	}
}

// SetMapped says which address a router maps to this socket; the zero AddrPort
// for none.
func (s *Socket) SetMapped(addr netip.AddrPort) {
	g := s.stun
	g.mu.Lock()
	changed := g.mapped != addr
	g.mapped = addr
	g.mu.Unlock()
	if changed {
		s.changed()
	}
}

func (s *Socket) changed() {
	if s.cfg.Changed != nil {
		s.cfg.Changed()
	}
}

// Run gathers addresses until ctx ends, and returns the context's error. It is
// to be called once, if STUN servers are to be asked.
func (s *Socket) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stun.kick:
		case <-s.stun.late:
		case <-s.stun.peek:
			if !s.stun.glance(ctx) {
				continue
			}
		}
		s.stun.round(ctx)
	}
}

// round asks all servers and takes note of what they say as it comes.
func (g *gatherer) round(ctx context.Context) {
	g.mu.Lock()
	servers := slices.Clone(g.servers)
	var nodes []netip.AddrPort
	if g.answering < enoughSTUN {
		nodes = slices.Clone(g.nodes)
	}
	select {
	case <-g.late: // the round begins with them
	default:
	}
	g.asked = time.Now()
	g.mu.Unlock()
	before, told := g.samples, g.reflexive() // only this goroutine writes samples
	home := g.socket.networks().home()
	var samples []punch.Sample
	var others []netip.AddrPort
	g.ask(ctx, servers, nodes, stunTries, func(a punch.Sample, other netip.AddrPort) {
		samples = append(samples, a)
		if other.IsValid() && !slices.Contains(servers, other) && !slices.Contains(others, other) {
			others = append(others, other)
		}
		// What a server said the last time is true until it, or its silence, says
		// otherwise.
		g.keep(slices.Concat(samples, slices.DeleteFunc(slices.Clone(before), func(old punch.Sample) bool {
			return slices.ContainsFunc(samples, func(s punch.Sample) bool { return s.Server == old.Server })
		})))
		// The first address is worth telling at once, the others together; how the
		// NAT maps as soon as two answers show it.
		now := g.reflexive()
		rough := punch.Classify(samples)
		if len(samples) == 1 && !slices.Equal(now, told) || rough.Mapping != punch.Unknown && g.classified(rough) {
			told = now
			g.socket.changed()
		}
	})
	if ctx.Err() != nil || len(servers)+len(nodes) == 0 {
		return
	}
	g.count(servers, samples)
	if len(samples) == 0 {
		if g.unanswered(time.Now(), home) {
			g.socket.changed()
		}
		return
	}
	g.answered(home)
	g.keep(samples)
	// What is known by now is worth telling before the details are.
	if g.classified(punch.Classify(samples)) || !slices.Equal(g.reflexive(), told) {
		g.socket.changed()
	}
	var further []punch.Sample
	var sockets sync.WaitGroup
	if punch.Classify(samples).Hard() {
		// An IPv6 server shows nothing of it.
		i := slices.IndexFunc(samples, func(s punch.Sample) bool { return s.Server.Addr().Is4() && slices.Contains(servers, s.Server) })
		if i >= 0 {
			sockets.Go(func() { further = furtherSockets(ctx, samples[i].Server) })
		}
	}
	filter := g.filter(ctx, servers, others)
	sockets.Wait()
	if ctx.Err() == nil && g.classify(slices.Concat(samples, filter, further)) {
		g.socket.changed()
	}
}

func (g *gatherer) knownNodes() []netip.AddrPort {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.nodes)
}

// count notes how many STUN servers answered.
func (g *gatherer) count(servers []netip.AddrPort, samples []punch.Sample) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answering = 0
	for _, s := range samples {
		if slices.Contains(servers, s.Server) {
			g.answering++
		}
	}
}

// answered notes on which networks servers answered.
func (g *gatherer) answered(home []netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.home, g.failed = home, 0
}

// unanswered notes a round without any answer. What servers said before is
// forgotten when we are on other networks since, or when they are silent for long.
// It reports whether that is news.
func (g *gatherer) unanswered(now time.Time, home []netip.Prefix) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed++; g.failed == 1 {
		g.silent = now
	}
	stale := g.failed >= staleRounds && now.Sub(g.silent) >= staleAfter
	if len(g.samples) == 0 || !stale && slices.Equal(home, g.home) {
		return false
	}
	g.samples, g.nat = nil, punch.Behaviour{}
	return true
}

// classified takes a first conclusion, without details, if it is about another
// NAT or another mapping than the last one, and reports whether it is.
func (g *gatherer) classified(rough punch.Behaviour) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	news := other(g.nat, rough)
	if news {
		g.nat = rough
	}
	return news
}

// classify concludes from samples how our NAT behaves, and reports whether that
// is news.
func (g *gatherer) classify(samples []punch.Sample) bool {
	nat := punch.Classify(samples)
	g.mu.Lock()
	defer g.mu.Unlock()
	news := g.nat != nat
	g.nat = nat
	return news
}

func (g *gatherer) keep(samples []punch.Sample) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.samples = slices.Clone(samples)
}

// NAT returns how the NAT in front of this Socket behaves, as far as STUN servers
// showed.
func (s *Socket) NAT() punch.Behaviour {
	s.stun.mu.Lock()
	defer s.stun.mu.Unlock()
	return s.stun.nat
}

// ask sends up to so many requests to all servers and nodes and calls got with each
// answer, until all have answered or had their time.
func (g *gatherer) ask(ctx context.Context, servers, nodes []netip.AddrPort, tries int, got func(s punch.Sample, other netip.AddrPort)) {
	if len(servers)+len(nodes) == 0 {
		return
	}
	type request struct {
		raw    []byte
		server netip.AddrPort
		at     time.Time
	}
	open := make(map[txid]request)
	for _, server := range servers {
		raw, tx, err := bindingRequest()
		if err != nil {
			return
		}
		open[tx] = request{raw: raw, server: server, at: time.Now()}
	}
	askNodes := func(nodes []netip.AddrPort) (asked []request) {
		for _, node := range nodes {
			if raw, tx, err := pingNode(); err == nil {
				open[tx] = request{raw: raw, server: node, at: time.Now()}
				asked = append(asked, open[tx])
			}
		}
		return asked
	}
	askNodes(nodes)
	answering := 0
	for try, wait := 0, stunRTO; try < tries && len(open) > 0; try, wait = try+1, 2*wait {
		for _, r := range open {
			g.socket.sendRaw(r.raw, r.server)
		}
		timer := time.NewTimer(wait)
		for over := false; !over && len(open) > 0; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				over = true
			case <-g.late:
				if answering < enoughSTUN {
					for _, r := range askNodes(g.knownNodes()) {
						g.socket.sendRaw(r.raw, r.server)
					}
				}
			case a := <-g.answers:
				r, ok := open[a.tx]
				if !ok || onSocket(a.from).addr != onSocket(r.server).addr {
					continue // nobody asked, or somebody else answers
				}
				delete(open, a.tx)
				answering++
				got(punch.Sample{Local: g.local(r.server), Server: r.server, Mapped: a.mapped, At: r.at}, a.other)
			}
		}
		timer.Stop()
	}
}

// sendRaw sends a datagram that is not a peer's from the shared socket.
func (s *Socket) sendRaw(raw []byte, to netip.AddrPort) {
	ep, err := s.endpoint(onSocket(to).addr)
	if err == nil {
		err = s.carry([][]byte{raw}, ep)
	}
	if err != nil {
		s.log.Debug("datagram not sent", "to", to, "err", err)
	}
}

// reflexive returns the addresses that servers saw, the most frequent first.
func (g *gatherer) reflexive() []netip.AddrPort {
	g.mu.Lock()
	defer g.mu.Unlock()
	count := make(map[netip.AddrPort]int)
	var out []netip.AddrPort
	for _, s := range g.samples {
		if count[s.Mapped]++; count[s.Mapped] == 1 {
			out = append(out, s.Mapped)
		}
	}
	slices.SortStableFunc(out, func(a, b netip.AddrPort) int {
		return cmp.Or(cmp.Compare(count[b], count[a]), a.Compare(b))
	})
	return out[:min(len(out), maxMappings)]
}

// portMapping returns the address that a router maps to us, if any.
func (g *gatherer) portMapping() netip.AddrPort {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mapped
}
