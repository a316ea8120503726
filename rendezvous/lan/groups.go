package lan

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
)

const (
	// maxTopics is how many topics have groups of their own at a time. The others
	// are met on the fixed groups.
	maxTopics = 64
	// maxConns is how many sockets per family join groups: Linux lets one IPv4
	// socket join 20 (igmp_max_memberships).
	maxConns = 16
	// A group that gives none of this many of our own datagrams back within
	// deafAfter is joined again: the system can lose a membership without a word,
	// as when an address goes and comes back within a moment. Where that does not
	// help, it is tried after ever longer waits.
	deafSends = 4
	deafAfter = time.Second
	deafMax   = 10 * time.Minute
)

// groups are the multicast groups of one port: two fixed ones, and with a scope
// those of topics. It keeps them joined while interfaces come and go.
type groups struct {
	port  uint16
	hops  int
	fixed [2]netip.Addr // IPv4, IPv6
	scope Scope         // of the topics' groups; ScopeAuto: they have none
	size  int           // bytes of the longest datagram
	wg    *sync.WaitGroup
	take  func([]byte, arrival)
	from  [2]*conn // what sends; nil: a family that is not there
	// chosen says that only some interfaces are to be used.
	chosen bool

	mu       sync.Mutex // guards the fields below and what is set on sockets
	closed   bool
	use      []netmon.Interface
	conns    [2][]*conn
	topics   map[rendezvous.Topic]*topicUse
	joins    uint64 // topics that came so far
	members  map[memberKey]*member
	seen     hopTable
	problems []error
}

type topicUse struct {
	seed      topicSeed
	order     uint64
	sessions  int
	receivers int // sessions that receive
}

type memberKey struct {
	index int // of the interface
	group netip.Addr
}

// A member is a group that is used on an interface.
type member struct {
	name    string
	scope   Scope
	derived bool
	join    bool   // it is to be joined
	addrs   string // of the interface, when it was joined
	conn    *conn  // which joined it; nil: none did
	err     error  // why not
	sendErr error  // why the last datagram was not sent

	sent, received uint64
	joins          uint64 // how often it was joined
	unheard        int    // own datagrams since the last that came back
	since          time.Time
	wait           time.Duration
}

func (k memberKey) family() int {
	if k.group.Is6() {
		return 1
	}
	return 0
}

func newGroups(port uint16, hops, size int, fixed4, fixed6 netip.Addr, wg *sync.WaitGroup, take func([]byte, arrival)) *groups {
	return &groups{
		port: port, hops: hops, size: size, fixed: [2]netip.Addr{fixed4, fixed6}, wg: wg, take: take,
		topics: make(map[rendezvous.Topic]*topicUse), members: make(map[memberKey]*member), seen: hopTable{},
	}
}

// open opens the first socket of each family. It errs if there is none.
func (g *groups) open() error {
	var errs [2]error
	g.mu.Lock()
	defer g.mu.Unlock()
	for f := range g.conns {
		_, errs[f] = g.add(f)
	}
	if errs[0] != nil && errs[1] != nil {
		return errors.Join(errs[:]...)
	}
	return nil
}

// sendFromGroups sends from the groups' own port, as mDNS has to.
func (g *groups) sendFromGroups() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for f, list := range g.conns {
		if len(list) > 0 {
			g.from[f] = list[0]
		}
	}
}

func (g *groups) add(family int) (*conn, error) {
	c, err := openConn(family == 1, g.port, true)
	if err != nil {
		g.problems = append(g.problems, err)
		return nil, err
	}
	c.setHops(g.hops)
	g.conns[family] = append(g.conns[family], c)
	c.serve(g.wg, g.size, g.heard)
	return c, nil
}

func (g *groups) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, c := range slices.Concat(g.conns[0], g.conns[1]) {
		c.udp.Close()
	}
}

// heard counts a datagram that came and gives it on.
func (g *groups) heard(b []byte, in arrival) {
	g.mu.Lock()
	i := slices.IndexFunc(g.use, func(i netmon.Interface) bool { return i.Index == in.index })
	switch {
	case i >= 0:
		in.from = withName(in.from, g.use[i].Name)
	case g.chosen && in.index != 0 && !hasAddr(g.use, in.from.Addr()):
		g.mu.Unlock()
		return // of an interface that was not chosen
	}
	switch m := g.members[memberKey{in.index, in.to}]; {
	case g.own(in.from):
		for key, m := range g.members {
			// Some systems give own datagrams back on the loopback interface.
			if key.group == in.to && (key.index == in.index || i < 0) {
				m.unheard, m.wait = 0, 0
			}
		}
	case m != nil:
		m.received++
		g.seen.add(hopKey{in.index, in.to, in.from.Addr()}, in.hops, time.Now())
	}
	g.mu.Unlock()
	g.take(b, in)
}

// withName gives a link-local address the name that the interface has.
func withName(ap netip.AddrPort, name string) netip.AddrPort {
	if a := ap.Addr(); a.Is6() && a.IsLinkLocalUnicast() {
		return netip.AddrPortFrom(a.WithZone(name), ap.Port())
	}
	return ap
}

// own reports whether this program sent it.
func (g *groups) own(from netip.AddrPort) bool {
	f := 0
	if from.Addr().Is6() {
		f = 1
	}
	return from.Port() == g.from[f].port() && hasAddr(g.use, from.Addr())
}

func hasAddr(use []netmon.Interface, a netip.Addr) bool {
	a = a.WithZone("")
	return slices.ContainsFunc(use, func(i netmon.Interface) bool {
		return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

// setInterfaces joins the groups on new interfaces, joins again where addresses
// changed, and leaves interfaces that have gone.
func (g *groups) setInterfaces(use []netmon.Interface) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.use = use
	g.reconcile()
}

// again joins every group again.
func (g *groups) again() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, m := range g.members {
		g.quit(key, m)
	}
	g.reconcile()
}

// addTopic uses a topic's groups, and joins them for a session that receives.
func (g *groups) addTopic(topic rendezvous.Topic, receives bool) {
	if g.scope == ScopeAuto {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.topics[topic]
	if t == nil {
		g.joins++
		t = &topicUse{seed: seedOf(topic), order: g.joins}
		g.topics[topic] = t
	}
	t.sessions++
	if receives {
		t.receivers++
	}
	g.reconcile()
}

// dropTopic takes back one addTopic.
func (g *groups) dropTopic(topic rendezvous.Topic, receives bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.topics[topic]
	if t == nil {
		return
	}
	if t.sessions--; t.sessions == 0 {
		delete(g.topics, topic)
	}
	if receives {
		t.receivers--
	}
	g.reconcile()
}

// reconcile joins and leaves until the memberships are those that are wanted.
func (g *groups) reconcile() {
	if g.closed {
		return
	}
	old := g.members
	g.members = make(map[memberKey]*member, len(old))
	var order []memberKey
	want := func(i netmon.Interface, group netip.Addr, scope Scope, derived, join bool) {
		key := memberKey{i.Index, group}
		m := g.members[key]
		if m == nil {
			if m = old[key]; m == nil {
				m = &member{name: i.Name, scope: scope, derived: derived}
			}
			m.join = false
			g.members[key] = m
			order = append(order, key)
			addrs := fmt.Sprint(i.Addrs)
			if m.addrs != addrs && m.conn != nil {
				g.quit(key, m) // perhaps another network, whose switches are to know
			}
			m.addrs = addrs
		}
		m.join = m.join || join
	}
	topics := make([]*topicUse, 0, len(g.topics))
	for _, t := range g.topics {
		topics = append(topics, t)
	}
	slices.SortFunc(topics, func(a, b *topicUse) int { return cmp.Compare(a.order, b.order) })
	topics = topics[:min(len(topics), maxTopics)]
	for _, i := range g.use {
		for f, has := range [2]bool{has4(i), has6(i)} {
			if has && g.conns[f] != nil {
				want(i, g.fixed[f], ScopeLink, false, true)
			}
		}
		for _, t := range topics {
			for _, a := range t.seed.groups(g.scope, i) {
				if k := (memberKey{i.Index, a}); g.conns[k.family()] != nil {
					want(i, a, g.scope, true, t.receivers > 0)
				}
			}
		}
	}
	for key, m := range old { // first leave, to have room
		if now := g.members[key]; now == nil || !now.join {
			g.quit(key, m)
		}
	}
	for _, key := range order {
		m := g.members[key]
		switch {
		case !m.join:
			m.err = nil
		case m.conn == nil:
			if m.conn, m.err = g.join(key); m.err == nil {
				m.joins++
			}
			m.unheard = 0
		}
	}
}

// quit leaves a group; also of an interface that has gone, since the socket still
// counts it.
func (g *groups) quit(key memberKey, m *member) {
	if m.conn != nil {
		_ = m.conn.leave(key.index, key.group) // gone by itself is as good
		m.conn.full, m.conn = false, nil
	}
}

// join joins a group on the first socket that has room, or on one more.
func (g *groups) join(key memberKey) (*conn, error) {
	f := key.family()
	for _, c := range g.conns[f] {
		if c.full {
			continue
		}
		err := c.join(key.index, key.group)
		if alreadyJoined(err) { // a membership of which only the socket knows
			_ = c.leave(key.index, key.group)
			err = c.join(key.index, key.group)
		}
		if noRoom(err) {
			c.full = true
			continue
		}
		return whole(c, err)
	}
	if len(g.conns[f]) >= maxConns {
		return nil, errNoRoom
	}
	c, err := g.add(f)
	if err != nil {
		return nil, err
	}
	if err = c.join(key.index, key.group); noRoom(err) { // it is not the socket
		c.udp.Close()
		g.conns[f] = g.conns[f][:len(g.conns[f])-1]
	}
	return whole(c, err)
}

func whole(c *conn, err error) (*conn, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

var errNoRoom = errors.New("the system allows no more groups")

// send sends to the fixed groups on every interface, and to the topic's if it has
// one and they are used. It returns how many datagrams went out, and errs for
// those that did not. build gives the datagram for an interface and family; nil
// is none.
func (g *groups) send(topic *rendezvous.Topic, build func(i netmon.Interface, six bool) []byte) (sent int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, net.ErrClosed
	}
	var seed topicSeed
	if topic != nil && g.scope != ScopeAuto {
		if t := g.topics[*topic]; t != nil {
			seed = t.seed
		} else {
			seed = seedOf(*topic)
		}
	}
	var errs []error
	deaf := false
	for _, i := range g.use {
		to := make([]netip.Addr, 0, 8)
		for f, has := range [2]bool{has4(i), has6(i)} {
			if has {
				to = append(to, g.fixed[f])
			}
		}
		if seed != (topicSeed{}) {
			to = append(to, seed.groups(g.scope, i)...)
		}
		for n, group := range to {
			key := memberKey{i.Index, group}
			from := g.from[key.family()]
			if from == nil || slices.Contains(to[:n], group) {
				continue
			}
			b := build(i, key.family() == 1)
			if b == nil {
				continue
			}
			err := from.sendTo(b, i.Index, netip.AddrPortFrom(group, g.port))
			m := g.members[key]
			if m != nil {
				m.sendErr = err
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			sent++
			if m != nil {
				m.sent++
				deaf = g.lost(key, m, time.Now()) || deaf
			}
		}
	}
	if deaf {
		g.reconcile()
	}
	return sent, errors.Join(errs...)
}

// lost leaves a group that gives nothing back, so that it is joined again.
func (g *groups) lost(key memberKey, m *member, now time.Time) bool {
	if m.unheard++; m.unheard == 1 {
		m.since = now
	}
	if m.conn == nil || !m.conn.tells || m.unheard < deafSends || now.Sub(m.since) < max(deafAfter, m.wait) {
		return false
	}
	m.wait = min(max(2*m.wait, deafAfter), deafMax)
	g.quit(key, m)
	return true
}

// state says what does not work.
func (g *groups) state() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]string, 0, len(g.problems))
	for _, err := range g.problems {
		out = append(out, err.Error())
	}
	shared := len(g.topics) - maxTopics
	var last error
	missing := 0
	for key, m := range g.members {
		if m.err == nil || !m.join {
			continue
		}
		if m.derived {
			missing, last = missing+1, m.err
			continue
		}
		out = append(out, fmt.Sprintf("%s %s multicast: %v", m.name, [2]string{"IPv4", "IPv6"}[key.family()], m.err))
	}
	if missing > 0 {
		out = append(out, fmt.Sprintf("%d groups of topics not joined (%v): the fixed groups serve them", missing, last))
	}
	if shared > 0 {
		out = append(out, fmt.Sprintf("%d topics beyond %d use the fixed groups alone", shared, maxTopics))
	}
	slices.Sort(out)
	return out
}

// works reports whether some group is joined.
func (g *groups) works() bool {
	if g == nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.members {
		if m.conn != nil {
			return true
		}
	}
	return false
}
