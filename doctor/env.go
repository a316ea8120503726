package doctor

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/link/relay"
	"github.com/kithproject/kith/rendezvous"
)

// An Env is what checks may look at: this device, its settings, and its node.
// Checks only read it, several at a time. The zero value is a device without a
// node and with no settings.
//
// # What a run contacts
//
// These, and no others:
//
//   - the router, the DNS servers of the system, and devices of the own network, by
//     multicast if the LAN is among the Media;
//   - the servers that this device is told to use: Hubs, STUN, TURN, and those of Media; and
//     nodes of the DHT that one of these has found, if it uses that;
//   - paired devices, through what they are connected by;
//   - nobody: packets that as a rule end on the way, by a hop limit of at most 5, to 9.9.9.9,
//     193.0.14.129, 2001:7fd::1, 2620:fe::fe or one of those servers, and a page at
//     198.51.100.73, an address that nobody has; who answers there all the same, and a host
//     of the internet or the own network to which that page leads, at port 80 or 443;
//   - strangers, only with Strangers set: the servers of NTP if no hub told the time or no
//     server answers over UDP or IPv6, and example.com, whose page and address everybody
//     knows.
//
// A small run (Config.Quick) asks no strangers.
type Env struct {
	// Dir is the state directory.
	Dir string
	// OpenErr is why no node could be opened; then all that a node tells is missing.
	OpenErr error
	// Root says whether this process may do what only root may.
	Root bool
	// Port is the UDP port number of the tunnel; without a node that of the settings, or 0.
	Port uint16
	// Hubs, STUN (host:port) and TURN are the servers that this device is told to use.
	Hubs []hubaddr.Address
	STUN []string
	TURN []relay.Config
	// Relaying names the hubs (host) and TURN servers (URL) at which the node itself has an
	// address at this moment; nil without one.
	Relaying func() []string
	// Relay is the relay policy: "auto", "never" or "always".
	Relay string
	// NoPortMapping says that the router is not to be asked for ports.
	NoPortMapping bool
	// Media are the media to meet on.
	Media []Medium
	// Peers are the paired devices, or those that the run is about. No two have one name.
	Peers []Peer
	// Force is the kind of path that is measured: "relay", "direct" or "lan"; "" for any.
	Force string
	// Strangers says that servers may be asked that are neither this device's user's nor
	// the network's: NTP, and example.com. A small run clears it.
	Strangers bool
	// NTP are the servers of network time (host or host:port) to compare clocks with, if
	// Strangers is set.
	NTP []string
	// Behaviour is what the node knows of the NAT in front of its socket; nil without one.
	Behaviour func() punch.Behaviour
	// Interfaces lists the network interfaces; default netmon.Interfaces.
	Interfaces func() ([]netmon.Interface, error)
	// Loopback says that devices of this machine are met, too, so that loopback counts as an interface.
	Loopback bool
	// Gateway looks the router up that may map ports, and this device's address towards it;
	// default portmap.DefaultGateway.
	Gateway func() (gw, self netip.Addr, ok bool)
	// Quick says that the run is a small one (Config.Quick), which is made without that the
	// user has asked for it: nothing is asked of servers that are not in the settings, and
	// nothing is taken or stirred that is in use. Run sets it.
	Quick bool
	// Pacer holds back what probes send; default one of Rate.
	Pacer *Pacer
	// Now is the wall clock of this device; default time.Now.
	Now func() time.Time
	// Logger gets what a developer would want to see. Default: discard.
	Logger *slog.Logger

	lookup func(ctx context.Context, host string) ([]netip.Addr, error) // default: as the system does

	mu    sync.Mutex
	facts map[string]any
}

// Fact returns what an earlier check of the run remembered under a name, and
// whether it did.
func Fact[T any](e *Env, name string) (T, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, ok := e.facts[name].(T)
	return v, ok
}

// Remember keeps a fact for the checks that need the one that found it.
func (e *Env) Remember(name string, value any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.facts == nil {
		e.facts = make(map[string]any)
	}
	e.facts[name] = value
}

// A Medium is one way to meet.
type Medium struct {
	Name string
	// Exchange is the one that is in use.
	Exchange rendezvous.Exchange
	// Fresh opens another one of the same settings, as another device would, for reading
	// back what the first one published. The caller closes it. Nil: there is no such.
	Fresh func() (rendezvous.Exchange, error)
	// Servers are the host:port that it depends on, if any.
	Servers []string
	// Hub is the hub whose broker it is, or the zero Address.
	Hub hubaddr.Address
}

// A Peer is a paired device as this one knows it.
type Peer struct {
	ID        identity.DeviceID
	Name      string
	Named     bool // the run is about it
	Finished  bool // both sides have finished pairing
	Blocked   bool // this device's user has blocked it
	Ended     bool // it has ended the pair
	Connected bool
	Path      string          // the selected path for people; "" without one
	Why       string          // why the path is not straight, for people; "" if it is
	Heard     time.Time       // when its last presence came on any medium; zero: never in this run
	Speaks    time.Time       // when something of it came last that did not show that it hears this device; zero: never
	Left      time.Time       // when it said goodbye; zero: it did not, in this run
	Seen      time.Time       // when anything of it came last, in whatever run, to about ten minutes; zero: never
	Version   string          // its program, as it says; "" if not known
	Answers   bool            // it says that it answers questions
	Days      int64           // what its calendar day is ahead of this device's, in days, by its last presence
	NAT       punch.Behaviour // of its NAT, as it says; the zero Behaviour if it is not known
	// Now returns the same at this moment. Nil: it does not change.
	Now func() Peer
	// Candidates are the addresses that were tried, and what came of it. Nil: none were.
	Candidates func() []Candidate
	// Sizes has the sizes that pass found out anew, which takes some seconds. Nil: it cannot.
	Sizes func()
	// Ask has the other side look and answer. It errs with ErrEnded if it says that the pair is
	// over, with ErrOld if it says that it answers no questions, and with the context's error
	// if no answer comes until ctx ends. Nil: it cannot be asked.
	Ask func(ctx context.Context, q Question) (Reply, error)
	// Echo is one round trip through the tunnel. Nil: there is none.
	Echo func(ctx context.Context) (time.Duration, error)
	// Measure sends data both ways through the tunnel. Nil: it cannot. force is "", "relay",
	// "direct" or "lan".
	Measure func(ctx context.Context, force string) (Measurement, error)
}

// What comes of asking a Peer.
var (
	ErrEnded = errors.New("doctor: the other device has ended the pair")
	ErrOld   = errors.New("doctor: the other device answers no questions")
	// ErrNoPath is the error of Peer.Measure for a kind of path that there is none of.
	ErrNoPath = errors.New("doctor: there is no path of that kind")
)

// A Candidate is one address of a peer, and what this side saw of it.
type Candidate struct {
	Local    netip.AddrPort `json:"local"`
	Remote   netip.AddrPort `json:"remote"`
	Kind     string         `json:"kind"`               // host, mapped, reflexive, relayed; "" if it was only heard from
	Path     string         `json:"path,omitempty"`     // the kind of path: loopback, lan, direct, mapped, punched, virtual, relay
	Via      string         `json:"via,omitempty"`      // the relay of this side that carries it
	Usable   bool           `json:"usable,omitempty"`   // it answers
	Selected bool           `json:"selected,omitempty"` // data goes there
	Sent     uint64         `json:"sent"`               // probes sent there, a count
	Failed   uint64         `json:"failed,omitempty"`   // probes that the system refused to send, a count
	Answered uint64         `json:"answered"`           // probes that were answered in time, a count
	Late     uint64         `json:"late,omitempty"`     // probes that were answered too late to count, a count
	Received uint64         `json:"received"`           // probes of the peer that came from there, a count
	Small    bool           `json:"small,omitempty"`    // it answers small probes, and not those of data size
	Sizing   bool           `json:"sizing,omitempty"`   // its Size is being found out
	Size     int            `json:"size"`               // largest datagram that was answered, bytes of UDP payload
	RTT      time.Duration  `json:"rtt_ns,omitempty"`   // round trip, or that of the last late answer
}

// A Question is what this device asks another one to look at.
type Question struct {
	// DialBack, if valid, is where this device listens over TLS for a connection that says
	// Secret; Pin is the SHA-256 of the listener's certificate.
	DialBack netip.AddrPort
	Secret   [16]byte
	Pin      [32]byte
}

// A Reply is what the other device says of itself and of what it sees of this one.
type Reply struct {
	Version string
	Clock   time.Time // by its own clock, when it answered
	// Causes are the names (code/finding) of what is wrong at its side.
	Causes []string
	// Candidates are this device's addresses as the other one tried them.
	Candidates []Candidate
	// DialBack says what came of Question.DialBack: "" if it was not asked for, "ok", or why not.
	DialBack string
	// From is where the other device saw this one's probes come from.
	From []netip.AddrPort
}

// A Measurement is what a path carries.
type Measurement struct {
	Path string
	RTT  time.Duration
	// Latency is that of one direction, if the quickest packets took as long out as back.
	LatencyOut, LatencyIn time.Duration
	JitterOut, JitterIn   time.Duration
	RateOut, RateIn       float64 // bytes a second
	LossOut, LossIn       float64 // shares of 1, a count of lost packets to one of all
	Duration              time.Duration
	BytesOut, BytesIn     uint64 // bytes that were sent and received for it
}
