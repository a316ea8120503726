package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/rendezvous"
)

// A mute medium says of itself what it is told to.
type mute struct {
	rendezvous.Exchange
	ready bool
}

func (m mute) Health() rendezvous.Health { return rendezvous.Health{Ready: m.ready} }

var noon = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when bubbles begin

func addrPort(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 4000)
}

// reply is a device whose side is well, and that has seen all of this device's probes.
func reply() Reply {
	return Reply{Version: "9", Clock: time.Now(), Candidates: []Candidate{{Remote: addrPort(1), Kind: "host", Sent: 3, Answered: 3, Received: 3}}}
}

// healthy is a device that is connected and well.
func healthy() Peer {
	return Peer{
		Name: "laptop", Finished: true, Connected: true, Path: "lan 192.0.2.2:4000", Heard: noon, Version: "9", Answers: true,
		Ask:  func(context.Context, Question) (Reply, error) { return reply(), nil },
		Echo: func(context.Context) (time.Duration, error) { return time.Millisecond, nil },
		Candidates: func() []Candidate {
			return []Candidate{{Remote: addrPort(2), Kind: "host", Path: "lan", Usable: true, Selected: true, Sent: 3, Answered: 3, Received: 3, Size: 1432, RTT: time.Millisecond}}
		},
	}
}

// waitFor is a device that does not answer.
func waitFor(ctx context.Context, _ Question) (Reply, error) {
	<-ctx.Done()
	return Reply{}, ctx.Err()
}

func tells(change func(*Reply)) func(context.Context, Question) (Reply, error) {
	return func(context.Context, Question) (Reply, error) {
		r := reply()
		change(&r)
		return r, nil
	}
}

// apart makes a device that answers questions and is not connected: ours are the probes of
// this side, theirs those of the other.
func apart(ours, theirs Candidate) func(*Peer) {
	ours.Remote, theirs.Remote = addrPort(2), addrPort(1)
	if ours.Kind == "" {
		ours.Kind = "reflexive"
	}
	return func(p *Peer) {
		p.Connected, p.Path = false, ""
		p.Candidates = func() []Candidate { return []Candidate{ours} }
		p.Ask = tells(func(r *Reply) { r.Candidates = []Candidate{theirs} })
	}
}

func away(p *Peer) { p.Connected, p.Path, p.Heard, p.Ask = false, "", time.Time{}, waitFor }

func behind(rule punch.Rule) func() punch.Behaviour {
	return func() punch.Behaviour { return punch.Behaviour{Mapping: rule} }
}

// routers are those on the way to each address.
func routers(_ context.Context, _ *Env, to netip.AddrPort, ttl int) netip.Addr {
	return map[int]netip.Addr{1: netip.MustParseAddr("192.168.1.1"), 3: netip.MustParseAddr("198.51.100.1")}[ttl]
}

// TestPeerFindings has each fault of a pair named as the first cause, and nothing named
// where all is well, or where it cannot be known.
func TestPeerFindings(t *testing.T) {
	const hard = punch.AddressDependent
	hub := []hubaddr.Address{{Host: "hub.example"}}
	small := func(size int) func() []Candidate {
		return func() []Candidate {
			return []Candidate{{Remote: addrPort(2), Kind: "host", Path: "direct", Usable: true, Selected: true, Small: true, Size: size}}
		}
	}
	path := func(kind string) func() []Candidate {
		return func() []Candidate {
			return []Candidate{{Remote: addrPort(2), Path: kind, Selected: true, Usable: true, Size: 1432}}
		}
	}
	for name, test := range map[string]struct {
		peer  func(*Peer)
		env   func(*Env)
		want  string // code/finding of the first cause; "" for none
		also  string // another cause
		says  string // a part of its cause, fix and evidence
		never string // no part of the report
	}{
		"all is well": {},

		"blocked":                    {peer: func(p *Peer) { *p = Peer{Name: p.Name, Named: true, Finished: true, Blocked: true} }, want: "peers.known/blocked", says: "kith unblock laptop"},
		"blocked, and that is meant": {peer: func(p *Peer) { *p = Peer{Name: p.Name, Finished: true, Blocked: true} }},
		"not finished":               {peer: func(p *Peer) { *p = Peer{Name: p.Name, Ask: waitFor} }, want: "peers.known/unfinished"},
		"ended, and known to be":     {peer: func(p *Peer) { *p = Peer{Name: p.Name, Ended: true, Finished: true} }, want: "peers.known/ended"},
		"ended, and says so": {peer: func(p *Peer) {
			away(p)
			p.Ask = func(context.Context, Question) (Reply, error) { return Reply{}, ErrEnded }
		}, want: "peers.known/ended", says: "says so"},
		"never heard": {peer: away, want: "peers.heard/silent", says: "laptop was not heard"},
		"was there":   {peer: func(p *Peer) { away(p); p.Heard = noon.Add(-time.Hour) }, want: "peers.heard/gone", says: "23:00:00"},
		"only the LAN works": {peer: func(p *Peer) { away(p); p.Heard = noon.Add(-time.Hour) }, env: func(e *Env) {
			e.Media = []Medium{{Name: "lan", Exchange: mute{ready: true}}, {Name: "hub hub.example", Exchange: mute{}}}
		}, says: "need not be there"},
		"there is only the LAN": {peer: func(p *Peer) { away(p); p.Heard = noon.Add(-time.Hour) }, env: func(e *Env) {
			e.Media = []Medium{{Name: "lan", Exchange: mute{ready: true}}}
		}, want: "peers.heard/gone"},
		"only the LAN works, where it was": {peer: func(p *Peer) {
			away(p)
			p.Heard = noon.Add(-time.Hour)
			p.Candidates = func() []Candidate { return []Candidate{{Remote: addrPort(2), Kind: "host"}} }
		}, env: func(e *Env) {
			e.Media = []Medium{{Name: "lan", Exchange: mute{ready: true}}, {Name: "hub hub.example", Exchange: mute{}}}
			e.Interfaces = func() ([]netmon.Interface, error) {
				return []netmon.Interface{{Name: "eth0", Up: true, Multicast: true, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}}, nil
			}
		}, want: "peers.heard/gone"},
		"said goodbye":        {peer: func(p *Peer) { away(p); p.Heard, p.Left = noon.Add(-time.Hour), noon.Add(-time.Minute) }, want: "peers.heard/left", says: "23:59:00"},
		"seen in another run": {peer: func(p *Peer) { away(p); p.Seen = noon.Add(-48 * time.Hour) }, want: "peers.heard/silent", says: "came last at about"},
		"seen, and then heard": {
			peer: func(p *Peer) { away(p); p.Seen, p.Heard = noon.Add(-time.Hour), noon.Add(-time.Minute) },
			want: "peers.heard/gone", says: "23:59:00", never: "came last",
		},
		"came back after a goodbye":   {peer: func(p *Peer) { away(p); p.Left, p.Heard = noon.Add(-time.Hour), noon.Add(-time.Minute) }, want: "peers.heard/gone"},
		"speaks and does not hear":    {peer: func(p *Peer) { away(p); p.Speaks = noon.Add(-30 * time.Second) }, want: "peers.heard/deaf"},
		"spoke before it was heard":   {peer: func(p *Peer) { away(p); p.Speaks, p.Heard = noon.Add(-30*time.Second), noon.Add(-time.Second) }, want: "peers.heard/gone"},
		"away, and another one is up": {peer: away, env: func(e *Env) { e.Peers = append(e.Peers, Peer{Name: "tablet", Connected: true, Blocked: true}) }, want: "peers.heard/away"},
		"away, and asked for": {
			peer: func(p *Peer) { away(p); p.Named = true }, want: "peers.heard/silent",
			env: func(e *Env) { e.Peers = append(e.Peers, Peer{Name: "tablet", Connected: true, Blocked: true}) },
		},
		"no medium works":                         {peer: away, env: func(e *Env) { e.Media[0].Exchange = mute{ready: false} }},
		"the media fail, and the tunnel does not": {peer: func(p *Peer) { p.Ask = waitFor }},

		"an older kith": {peer: func(p *Peer) { p.Ask = func(context.Context, Question) (Reply, error) { return Reply{}, ErrOld } }, want: "peers.version/old", says: "version 9"},
		"an older kith, not connected": {peer: func(p *Peer) {
			apart(Candidate{Sent: 9}, Candidate{})(p)
			p.Ask = func(context.Context, Question) (Reply, error) { return Reply{}, ErrOld }
		}, want: "peers.version/old"},

		"clock ahead by days":  {peer: func(p *Peer) { p.Ask = tells(func(r *Reply) { r.Clock = r.Clock.Add(49 * time.Hour) }) }, want: "peers.clock/days", says: "2.0 days apart"},
		"clock behind by days": {peer: func(p *Peer) { p.Ask = tells(func(r *Reply) { r.Clock = r.Clock.Add(-72 * time.Hour) }) }, want: "peers.clock/days", says: "3.0 days apart"},
		"clock off by hours":   {peer: func(p *Peer) { p.Ask = tells(func(r *Reply) { r.Clock = r.Clock.Add(5 * time.Hour) }) }, want: "peers.clock/apart", says: "5h0m0s"},
		"clock off by minutes": {peer: func(p *Peer) { p.Ask = tells(func(r *Reply) { r.Clock = r.Clock.Add(-3 * time.Minute) }) }, want: "peers.clock/drift"},
		"clock off by seconds": {peer: func(p *Peer) { p.Ask = tells(func(r *Reply) { r.Clock = r.Clock.Add(-time.Minute) }) }},
		"a slow answer is no wrong clock": {peer: func(p *Peer) {
			p.Ask = func(context.Context, Question) (Reply, error) {
				r := reply()
				<-time.After(3 * time.Second)
				return r, nil
			}
		}},
		"old, and its clock days off": {peer: func(p *Peer) {
			p.Days = -4
			p.Ask = func(context.Context, Question) (Reply, error) { return Reply{}, ErrOld }
		}, want: "peers.version/old"},

		"a fault of its network": {
			peer: func(p *Peer) {
				apart(Candidate{Sent: 9}, Candidate{Sent: 9, Received: 0})(p)
				p.Ask = tells(func(r *Reply) { r.Causes, r.Candidates = []string{"device.state/low", "device.vpn/captures"}, nil })
			},
			want: "peers.remote/network", says: "device.vpn/captures",
		},
		"another fault": {peer: func(p *Peer) { p.Ask = tells(func(r *Reply) { r.Causes = []string{"device.state/full"} }) }, want: "peers.remote/other", says: "device.state/full"},
		"no route there, and nothing gets in": {
			peer: func(p *Peer) {
				apart(Candidate{Sent: 9, Received: 5}, Candidate{Sent: 9})(p)
				p.Ask = tells(func(r *Reply) { r.Causes, r.Candidates = []string{"device.routes/none"}, nil })
			},
			want: "peers.candidates/out", also: "peers.remote/other",
		},
		"a VPN there, and connected": {peer: func(p *Peer) { p.Ask = tells(func(r *Reply) { r.Causes = []string{"device.vpn/captures"} }) }, want: "peers.remote/other"},
		"its relay setting only":     {peer: func(p *Peer) { p.Ask = tells(func(r *Reply) { r.Causes = []string{neverName} }) }},

		"a fault that this version does not know": {
			peer: func(p *Peer) {
				p.Ask = tells(func(r *Reply) { r.Causes = []string{"kith-update.example.com/fix", "device.vpn/pay-me"} })
			},
			want: "peers.remote/other", says: "something that this version does not know", never: "example.com",
		},
		"of two faults, the one that is known": {
			peer: func(p *Peer) {
				p.Ask = tells(func(r *Reply) { r.Causes = []string{"device.vpn/pay-me", "device.clock/wrong", "device.state/low"} })
			},
			want: "peers.remote/other", says: "laptop says of its side: ", never: "pay-me",
		},

		"relays never here": {peer: apart(Candidate{Sent: 9, Kind: "relayed"}, Candidate{Sent: 9}), env: func(e *Env) { e.Relay = "never" }, want: "peers.policy/never-here", says: "kith config relay auto"},
		"relays never there": {
			peer: func(p *Peer) {
				apart(Candidate{Sent: 9}, Candidate{Sent: 9})(p)
				p.Ask = tells(func(r *Reply) { r.Causes = []string{neverName} })
			},
			env: func(e *Env) { e.Hubs = hub }, want: "peers.policy/never-there",
		},
		"relays never, and there is none": {peer: apart(Candidate{Sent: 9}, Candidate{Sent: 9}), env: func(e *Env) { e.Relay = "never" }, want: "peers.candidates/nothing"},
		"relays alone here":               {peer: apart(Candidate{}, Candidate{}), env: func(e *Env) { e.Relay = "always" }, want: "peers.policy/always-here"},
		"relays alone there": {
			peer: func(p *Peer) {
				apart(Candidate{Sent: 9}, Candidate{})(p)
				p.Ask = tells(func(r *Reply) { r.Causes = []string{alwaysName} })
			}, want: "peers.policy/always-there",
		},
		"relays alone and none": {
			peer: func(p *Peer) {
				apart(Candidate{Sent: 9}, Candidate{})(p)
				p.Ask = tells(func(r *Reply) { r.Causes = []string{neverName} })
			}, env: func(e *Env) { e.Relay = "always" }, want: "peers.policy/clash",
		},

		"nothing comes in here":  {peer: apart(Candidate{Sent: 9}, Candidate{Sent: 9, Received: 5}), want: "peers.candidates/in", says: "it says that packets of this device arrive there"},
		"nothing gets in there":  {peer: apart(Candidate{Sent: 9, Received: 5}, Candidate{Sent: 9}), want: "peers.candidates/out", says: "laptop says that nothing of this device arrives"},
		"hard NATs, no relay":    {peer: func(p *Peer) { apart(Candidate{Sent: 9}, Candidate{Sent: 9})(p); p.NAT.Mapping = hard }, env: func(e *Env) { e.Behaviour = behind(hard) }, want: "peers.candidates/hard"},
		"one hard NAT, no relay": {peer: apart(Candidate{Sent: 9}, Candidate{Sent: 9}), env: func(e *Env) { e.Behaviour = behind(hard) }, want: "peers.candidates/nothing"},
		"a hub is set here": {
			peer: apart(Candidate{Sent: 9}, Candidate{Sent: 9}), env: func(e *Env) { e.Hubs = hub }, want: "peers.candidates/nothing",
			says: "no relay is in use between the two, although one is set here", never: "there is no relay",
		},
		"hard NATs, and a hub is set here": {
			peer: func(p *Peer) { apart(Candidate{Sent: 9}, Candidate{Sent: 9})(p); p.NAT.Mapping = hard },
			env:  func(e *Env) { e.Behaviour, e.Hubs = behind(hard), hub }, want: "peers.candidates/hard",
			says: "although one is set here", never: "there is no relay",
		},
		"not even through a relay":  {peer: apart(Candidate{Sent: 9, Kind: "relayed"}, Candidate{Sent: 9}), want: "peers.candidates/relay"},
		"too late":                  {peer: apart(Candidate{Sent: 9, Received: 4, Late: 3, RTT: 4 * time.Second}, Candidate{Sent: 9, Received: 5}), want: "peers.candidates/late", says: "4s"},
		"slow, and not in time":     {peer: apart(Candidate{Sent: 9, Received: 4, Answered: 3, Usable: true, RTT: 2 * time.Second}, Candidate{Sent: 9, Received: 5}), want: "peers.candidates/late"},
		"WireGuard does not answer": {peer: apart(Candidate{Sent: 9, Received: 4, Answered: 3, Usable: true}, Candidate{Sent: 9, Received: 5}), want: "peers.candidates/tunnel"},
		"no route":                  {peer: apart(Candidate{Failed: 9}, Candidate{}), want: "peers.candidates/unsent"},
		"no addresses": {
			peer: func(p *Peer) {
				apart(Candidate{}, Candidate{})(p)
				p.Candidates = func() []Candidate { return nil }
			}, want: "peers.candidates/none",
		},
		"the way ends after two routers": {
			peer: apart(Candidate{Sent: 9}, Candidate{Sent: 9}), want: "peers.candidates/nothing",
			says: "the way to 192.0.2.2: 192.168.1.1, one that is silent, 198.51.100.1, then silence",
		},
		"with relays alone nothing is sent straight": {
			peer: apart(Candidate{Sent: 9}, Candidate{Sent: 9}), env: func(e *Env) { e.Relay = "always" }, want: "peers.policy/always-here", never: "the way to",
		},
		"it is being looked for": {peer: apart(Candidate{}, Candidate{})},
		"it connects meanwhile": {peer: func(p *Peer) {
			apart(Candidate{Sent: 9}, Candidate{Sent: 9})(p)
			then := *p
			then.Connected = true
			p.Now = func() Peer {
				if time.Since(noon) < 2*time.Second {
					return *p
				}
				return then
			}
		}},

		"an MTU hole":            {peer: func(p *Peer) { p.Candidates = small(1312) }, want: "peers.path/mtu", says: "1340 bytes pass, and those of 1460"},
		"a narrow MTU hole":      {peer: func(p *Peer) { p.Candidates = small(128) }, want: "peers.path/mtu", says: "a few hundred bytes"},
		"through a relay":        {peer: func(p *Peer) { p.Candidates, p.Why = path("relay"), "hard NATs" }, want: "peers.path/relayed", says: "hard NATs"},
		"through a VPN":          {peer: func(p *Peer) { p.Candidates = path("virtual") }, want: "peers.path/virtual"},
		"through a mapping":      {peer: func(p *Peer) { p.Candidates = path("mapped") }},
		"a third gets lost":      {peer: func(p *Peer) { p.Echo = echoes(30, time.Millisecond) }, want: "peers.loss/lossy", says: "30 %"},
		"a little gets lost":     {peer: func(p *Peer) { p.Echo = echoes(9, time.Millisecond) }},
		"nothing comes back":     {peer: func(p *Peer) { p.Echo = echoes(100, time.Millisecond) }, want: "peers.loss/dead"},
		"both":                   {peer: func(p *Peer) { p.Echo = echoes(30, 2*time.Second) }, want: "peers.loss/lossy", also: "peers.latency/late"},
		"two seconds of latency": {peer: func(p *Peer) { p.Echo = echoes(0, 2*time.Second) }, want: "peers.latency/late", says: "2s to laptop"},
		"a satellite":            {peer: func(p *Peer) { p.Echo = echoes(0, 650*time.Millisecond) }},

		"no such path": {
			peer: func(p *Peer) { p.Measure = measured(Measurement{}, fmt.Errorf("%w: x", ErrNoPath)) }, env: func(e *Env) { e.Force = "lan" },
			want: "peers.rate/no-path", says: `"lan"`,
		},
		"not measured": {peer: func(p *Peer) { p.Measure = measured(Measurement{}, errors.New("busy")) }},
		"a slow path":  {peer: func(p *Peer) { p.Measure = measured(Measurement{RateOut: 1000, RateIn: 1e6}, nil) }, want: "peers.rate/slow", says: "8 kbit/s to it and 8.0 Mbit/s"},
		"a fast path":  {peer: func(p *Peer) { p.Measure = measured(Measurement{RateOut: 1e8, RateIn: 1e6}, nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := healthy()
				if test.peer != nil {
					test.peer(&p)
				}
				p.Named = p.Named || p.Measure != nil
				env := &Env{Peers: []Peer{p}, Port: 41641, Media: []Medium{{Name: "memory", Exchange: mute{ready: true}}}}
				if test.env != nil {
					test.env(env)
				}
				start := time.Now()
				r := Run(t.Context(), Config{Table: peersWith(routers), Env: env})
				if took := time.Since(start); took > 25*time.Second {
					t.Errorf("took %v", took)
				}
				got := ""
				if len(r.Causes) > 0 {
					c := r.Causes[0]
					got = c.Name()
					if all := c.Cause + " " + c.Fix + " " + strings.Join(c.Evidence, " "); !strings.Contains(all, test.says) {
						t.Errorf("does not say %q: %s", test.says, all)
					}
					for _, text := range []string{c.Cause, c.Fix} {
						if !strings.HasSuffix(text, ".") || strings.Count(text, ". ") > 0 {
							t.Errorf("not one sentence: %q", text)
						}
					}
				}
				if text := fmt.Sprint(r); test.never != "" && strings.Contains(text, test.never) {
					t.Errorf("says %q: %s", test.never, text)
				}
				if test.also != "" && !slices.Contains(codes(r.Causes), test.also) {
					t.Errorf("causes %v, want also %s", codes(r.Causes), test.also)
				}
				if got != test.want {
					t.Errorf("first cause %q, want %q", got, test.want)
					for _, x := range r.Results {
						t.Logf("%s %s: %s %q because %s", x.Name(), x.State, x.Cause, x.Evidence, x.Because)
					}
				}
			})
		})
	}
}

// echoes is a tunnel that loses some of a hundred echoes.
func echoes(lost int64, took time.Duration) func(context.Context) (time.Duration, error) {
	var n atomic.Int64
	return func(ctx context.Context) (time.Duration, error) {
		if (n.Add(1)*7)%10*10 < lost {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		<-time.After(took)
		return took, nil
	}
}

func measured(m Measurement, err error) func(context.Context, string) (Measurement, error) {
	return func(context.Context, string) (Measurement, error) { return m, err }
}

// TestRemoteWords: of what the other side says, words come from this program's table.
func TestRemoteWords(t *testing.T) {
	env := &Env{Peers: []Peer{{Name: "laptop"}}}
	env.Remember(factAsked+"laptop", askedFact{reply: Reply{Causes: []string{"peers.heard/silent", "peers.known/blocked"}}})
	if a := checkRemote(t.Context(), env, "laptop"); a.State != Yes {
		t.Errorf("what it says of other devices is told: %+v", a)
	}
}

// TestPeerPace: echoes to many devices keep to the pace, and each device is asked once.
func TestPeerPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		env := &Env{Pacer: NewPacer()}
		var asked atomic.Int32
		var sent []time.Time
		gate := make(chan struct{}, 1)
		for i := range 20 {
			p := healthy()
			p.Name = fmt.Sprint("device ", i)
			p.Ask = func(context.Context, Question) (Reply, error) { asked.Add(1); return reply(), nil }
			p.Echo = func(context.Context) (time.Duration, error) {
				gate <- struct{}{}
				sent = append(sent, time.Now())
				<-gate
				return time.Millisecond, nil
			}
			env.Peers = append(env.Peers, p)
		}
		r := Run(t.Context(), Config{Table: peersWith(routers), Env: env})
		if len(r.Causes) > 0 || asked.Load() != 20 || len(sent) != maxEchoed*echoCount {
			t.Errorf("%d questions, %d echoes, causes %v", asked.Load(), len(sent), codes(r.Causes))
		}
		slices.SortFunc(sent, time.Time.Compare)
		for i := range sent {
			if n := slices.IndexFunc(sent[i:], func(at time.Time) bool { return at.Sub(sent[i]) >= time.Second }); n > 100 {
				t.Fatalf("%d echoes and as many answers in a second", n)
			}
		}
	})
}

// TestPeerRows: what was not looked at is not said to be as it should be, and a cause is told
// once.
func TestPeerRows(t *testing.T) {
	for name, test := range map[string]struct {
		peer func(*Peer)
		want map[Code]State
	}{
		"it is away": {func(p *Peer) { away(p); p.Named = false }, map[Code]State{
			"peers.known": Yes, "peers.heard": No, "peers.version": Skipped, "peers.remote": Skipped, "peers.path": Skipped, "peers.loss": Skipped, "peers.latency": Skipped,
		}},
		"it does not connect": {apart(Candidate{Sent: 9}, Candidate{Sent: 9}), map[Code]State{
			"peers.heard": Yes, "peers.version": Yes, "peers.remote": Yes, "peers.path": Skipped, "peers.loss": Skipped, "peers.latency": Skipped,
		}},
		"it does not answer": {func(p *Peer) { p.Ask = waitFor }, map[Code]State{
			"peers.heard": Yes, "peers.version": Unknown, "peers.remote": Unknown, "peers.loss": Yes,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := healthy()
				test.peer(&p)
				env := &Env{Peers: []Peer{p, {Name: "tablet", Connected: true, Blocked: true}}, Media: []Medium{{Name: "memory", Exchange: mute{ready: true}}}}
				for _, r := range Run(t.Context(), Config{Table: peersWith(routers), Env: env}).Results {
					if want, ok := test.want[r.Code]; ok && r.State != want {
						t.Errorf("%s is %s, want %s: %q", r.Code, r.State, want, r.Evidence)
					}
				}
			})
		})
	}
	env := &Env{Peers: []Peer{{Name: "laptop"}}}
	env.Remember(factAsked+"laptop", askedFact{reply: Reply{Causes: []string{"device.state/low", "device.clock/wrong"}}})
	a := checkRemote(t.Context(), env, "laptop")
	if all := strings.Join(a.Evidence, "\n"); a.Evidence[0] != "device.state/low" || !strings.Contains(a.Cause, "nearly full") || !strings.Contains(all, "device.clock/wrong: This device's clock") {
		t.Errorf("%q %q", a.Cause, a.Evidence)
	}
}
