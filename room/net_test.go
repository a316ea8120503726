package room

import (
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/retry"
	"github.com/kithproject/kith/pairing"
)

var start = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// device returns the identity of a name, always the same.
func device(t testing.TB, name string) *identity.Identity {
	t.Helper()
	id, err := identity.FromSeeds(sha256.Sum256([]byte("sign "+name)), sha256.Sum256([]byte("wg "+name)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func infoOf(name string) pairing.Info {
	return pairing.Info{Name: name, OS: "linux", Version: "test"}
}

func found(t testing.TB, name string, mode Mode) *Roster {
	t.Helper()
	r, err := Found(device(t, name), "the room", name, mode, start, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func longCode(t testing.TB, id ID) code.Room {
	t.Helper()
	c, err := code.NewRoom(id, code.RoomOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func shortCode(t testing.TB) code.Room {
	t.Helper()
	c, err := code.NewRoomShort(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A side is a host or a joiner on the net.
type side struct {
	name   string
	host   *Host
	joiner *Joiner
	topics []int // of the medium, by index

	// of a host: what its driver does and has
	admitted  map[identity.DeviceID]int
	chains    map[identity.DeviceID]Admission
	asked     []Request
	notices   []Notice
	guard     Guard
	decide    func(Request) (admit, now bool)
	store     func(Admission) error
	admission int
	// of a joiner
	events   []Event
	grant    *Grant
	failed   Reason
	password []string // given when asked
}

// A packet is a frame on its way.
type packet struct {
	from  *side
	topic int // of the medium: 0 is the long code's, 1 the short one's
	frame []byte
}

// A network carries frames of one room by hand: each to all other sides.
type network struct {
	t     testing.TB
	now   time.Time
	sides []*side
	queue []packet
	seen  []packet            // everything that was ever sent
	drop  func(packet) bool   // lost
	alter func(*side, packet) // instead of delivery, if set
	err   error
}

func newNetwork(t testing.TB) *network { return &network{t: t, now: start} }

func (n *network) addHost(cfg HostConfig) *side {
	n.t.Helper()
	if cfg.Info.Name == "" {
		cfg.Info = infoOf("host")
	}
	h, err := NewHost(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	s := &side{
		name: "host", host: h, topics: []int{0, 1}, admitted: make(map[identity.DeviceID]int),
		chains: make(map[identity.DeviceID]Admission), guard: cfg.Guard,
	}
	n.sides = append(n.sides, s)
	return s
}

func (n *network) addJoiner(name string, cfg JoinerConfig) *side {
	n.t.Helper()
	if cfg.Identity == nil {
		cfg.Identity = device(n.t, name)
	}
	if cfg.Info.Name == "" {
		cfg.Info = infoOf(name)
	}
	j, err := NewJoiner(cfg, n.now)
	if err != nil {
		n.t.Fatal(err)
	}
	topic := 0
	if cfg.Code.Method() == code.RoomShort {
		topic = 1
	}
	s := &side{name: name, joiner: j, topics: []int{topic}}
	n.sides = append(n.sides, s)
	return s
}

// drain carries out what a side wants.
func (n *network) drain(s *side) {
	for s.host != nil {
		a, ok := s.host.Poll()
		if !ok {
			return
		}
		switch a.Kind {
		case ActionSend:
			n.put(packet{s, s.topics[a.Topic], a.Frame})
		case ActionAdmit:
			n.admit(s, a.Admission)
		case ActionAsk:
			s.asked = append(s.asked, a.Request)
			if s.decide != nil {
				if yes, now := s.decide(a.Request); now {
					if err := s.host.Decide(n.now, a.Request.ID, yes); err != nil {
						n.t.Errorf("decide: %v", err)
					}
				}
			}
		case ActionTold:
			s.notices, s.guard = append(s.notices, a.Notice), a.Guard
		}
	}
	for {
		step, ok := s.joiner.Poll()
		if !ok {
			return
		}
		if step.Frame != nil {
			n.put(packet{s, s.topics[0], step.Frame})
			continue
		}
		s.events = append(s.events, step.Event)
		switch step.Event.Kind {
		case EventAdmitted:
			g := step.Event.Grant
			s.grant = &g
		case EventFailed:
			s.failed = step.Event.Reason
		case EventNeedPassword, EventWrongPassword:
			if len(s.password) > 0 {
				p := s.password[0]
				s.password = s.password[1:]
				if err := s.joiner.Password(n.now, p); err != nil {
					n.t.Errorf("password: %v", err)
				}
			}
		}
	}
}

func (n *network) admit(s *side, a Admission) {
	s.admission++
	var err error
	if s.store != nil {
		err = s.store(a)
	}
	if err == nil {
		s.admitted[a.Member.ID]++
		if a.HasChain {
			s.chains[a.Member.ID] = a
		}
		if a.New && s.name == "host" {
			if bad := a.Roster.Verify(s.host.Roster(), a.Roster.Room); bad != nil {
				n.t.Errorf("the host's own roster is not valid: %v", bad)
			}
		}
	}
	s.host.Admitted(n.now, a.Member.ID, err)
}

func (n *network) put(p packet) {
	n.queue, n.seen = append(n.queue, p), append(n.seen, p)
}

// deliver gives a frame to a side.
func (n *network) deliver(s *side, p packet) {
	if s == p.from {
		return
	}
	for i, topic := range s.topics {
		if topic != p.topic {
			continue
		}
		if s.host != nil {
			s.host.Receive(n.now, i, p.frame)
		} else {
			s.joiner.Receive(n.now, p.frame)
		}
	}
	n.drain(s)
}

// settle carries everything until nothing moves.
func (n *network) settle() {
	for _, s := range n.sides {
		n.drain(s)
	}
	for len(n.queue) > 0 {
		p := n.queue[0]
		n.queue = n.queue[1:]
		if n.drop != nil && n.drop(p) {
			continue
		}
		for _, s := range n.sides {
			if n.alter != nil {
				n.alter(s, p)
				continue
			}
			n.deliver(s, p)
		}
	}
}

// run lets time pass until done, at most for d.
func (n *network) run(d time.Duration, done func() bool) {
	end := n.now.Add(d)
	n.settle()
	for !done() {
		var next time.Time
		for _, s := range n.sides {
			if s.joiner != nil {
				next = retry.Earliest(next, s.joiner.Next())
			}
		}
		if next.IsZero() || next.After(end) {
			n.now = end
			return
		}
		if next.After(n.now) {
			n.now = next
		}
		for _, s := range n.sides {
			if s.joiner != nil {
				s.joiner.Tick(n.now)
			}
		}
		n.settle()
	}
}

// join runs one joiner until it is in or out.
func (n *network) join(s *side) {
	n.run(20*time.Minute, func() bool { return s.grant != nil || s.failed != 0 })
}

// agreed checks that both ends of an admission hold the same.
func agreed(t testing.TB, host, joiner *side) {
	t.Helper()
	id := joiner.joiner.cfg.Identity.ID()
	if joiner.grant == nil {
		t.Fatalf("%s is not in: %v, %v", joiner.name, joiner.failed, joiner.events)
	}
	a, ok := host.chains[id]
	if !ok || a.Chain != joiner.grant.Chain || a.PairID != joiner.grant.PairID {
		t.Errorf("%s and the host do not have the same keys", joiner.name)
	}
	m, ok := host.host.Roster().Member(id)
	if !ok || m.Number != joiner.grant.Number || m.Name != joiner.grant.Name {
		t.Errorf("%s is %q, number %d, in the roster, and believes to be %q, number %d", joiner.name, m.Name, m.Number, joiner.grant.Name, joiner.grant.Number)
	}
	if joiner.grant.Room != host.host.Roster().Room || joiner.grant.Host != host.host.cfg.Identity.ID() {
		t.Errorf("%s is in another room", joiner.name)
	}
}

var errDisk = errors.New("disk full")

func mustSign(t testing.TB, r *Roster, by string) *Roster {
	t.Helper()
	if err := r.Sign(device(t, by)); err != nil {
		t.Fatal(err)
	}
	return r
}

func memberOf(t testing.TB, name string) Member {
	t.Helper()
	d := device(t, name)
	return Member{ID: d.ID(), WireGuard: d.WireGuardPublic(), WGSig: SignWireGuard(d), Name: name, Added: start}
}

// mustAdmit returns the next roster with devices in it, signed by the founder of
// tests.
func mustAdmit(t testing.TB, r *Roster, names ...string) *Roster {
	t.Helper()
	for _, name := range names {
		next, err := r.Admit(memberOf(t, name))
		if err != nil {
			t.Fatal(err)
		}
		r = mustSign(t, next, "host")
	}
	return r
}
