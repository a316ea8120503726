package dns

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(server string) Config {
	return Config{Server: server, Zone: zone, Key: keyName, Secret: secret, Resolver: server}
}

// fast polls and sends as fast as the tests want.
func fast(server string) Config {
	c := config(server)
	c.Fast, c.Slow, c.Interval = 5*time.Millisecond, 50*time.Millisecond, time.Millisecond
	return c
}

func open(t testing.TB, cfg Config) *Exchange {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func join(t testing.TB, e *Exchange, p rendezvous.Point) *session {
	t.Helper()
	s, err := e.Join(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return s.(*session)
}

// untilArrives publishes until the frame arrives.
func untilArrives(t testing.TB, from, to rendezvous.Session, f []byte) {
	t.Helper()
	rendezvoustest.UntilArrives(t, from, to, f, 100*time.Millisecond)
}

// A joiner is an exchange at the side that joins: the suite has two devices, and
// does not say which is which.
type joiner struct{ rendezvous.Exchange }

func (j joiner) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if p.Mode == rendezvous.Both {
		p.Side = 1
	}
	return j.Exchange.Join(ctx, p)
}

func TestSuite(t *testing.T) {
	server, _ := startNamed(t, "any")
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		return open(t, fast(server)), joiner{open(t, fast(server))}
	})
}

// TestSuiteThroughResolver has a server that answers no questions but those of a
// resolver.
func TestSuiteThroughResolver(t *testing.T) {
	server, _ := startNamed(t, "127.0.0.2")
	cfg := fast(server)
	cfg.Resolver = startUnbound(t, server, 0)
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) { return open(t, cfg), joiner{open(t, cfg)} })
}

// TestLaggingCache has a resolver that keeps each record, and that there is none,
// for a second although the zone says that it must not.
func TestLaggingCache(t *testing.T) {
	server, _ := startNamed(t, "127.0.0.2")
	cfg := fast(server)
	cfg.Resolver = startUnbound(t, server, 1)
	a, b := open(t, cfg), open(t, cfg)
	sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{Side: 1})
	for i := range byte(3) {
		untilArrives(t, sa, sb, rendezvoustest.Frame(2*i))
		untilArrives(t, sb, sa, rendezvoustest.Frame(2*i+1))
	}
}

// TestBurst holds that the newest frames of a burst arrive, once and in order, that
// the same frame arrives again when it is published again, and that all goes.
func TestBurst(t *testing.T) {
	server, _ := startNamed(t, "any")
	a, b := open(t, fast(server)), open(t, fast(server))
	topic := rendezvous.Topic{1}
	from, to := join(t, a, rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly}), join(t, b, rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})
	rendezvoustest.Await(t, "health", func() bool { return a.Health().Ready && b.Health().Ready })
	receive := func(s rendezvous.Session, want ...byte) {
		t.Helper()
		for _, w := range want {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			m, err := s.Receive(ctx)
			cancel()
			if err != nil || m.Frame[0] != w || !bytes.Equal(m.Frame, rendezvoustest.Frame(w)) {
				t.Fatalf("got %v, %v; want %d of %d", m.Frame[:min(1, len(m.Frame))], err, w, want)
			}
		}
	}
	publish := func(fills ...byte) {
		t.Helper()
		for _, f := range fills {
			if err := from.Publish(t.Context(), rendezvoustest.Frame(f)); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(1, 2, 3)
	receive(to, 1, 2, 3)
	publish(3) // again
	receive(to, 3)
	publish(4)
	receive(to, 4) // and nothing in between
	late := join(t, b, rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})
	receive(late, 2, 3, 3, 4)
	held := func() int {
		return len(a.look("udp", from.to[0], numberSize)) + len(a.look("tcp", from.to[1], numberSize+rendezvous.FrameSize))
	}
	if n := held(); n != 1+kept {
		t.Errorf("the zone holds %d records of this side, want %d", n, 1+kept)
	}
	from.Close()
	rendezvoustest.Await(t, "records of a closed session are gone", func() bool { return held() == 0 })
	again := join(t, a, rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly})
	untilArrives(t, again, to, rendezvoustest.Frame(5))
}

// TestOthersStay holds that a session takes back nothing that another has written.
func TestOthersStay(t *testing.T) {
	server, _ := startNamed(t, "any")
	a, b := open(t, fast(server)), open(t, fast(server))
	one, two := join(t, a, rendezvous.Point{}), join(t, a, rendezvous.Point{})
	to := join(t, b, rendezvous.Point{Side: 1})
	untilArrives(t, one, to, rendezvoustest.Frame(1))
	untilArrives(t, two, to, rendezvoustest.Frame(2))
	one.Close()
	untilArrives(t, join(t, a, rendezvous.Point{Side: 1}), two, rendezvoustest.Frame(3)) // by now it would be gone
	if len(b.look("udp", to.from[0], numberSize)) != 1 {
		t.Error("what another session wrote is gone")
	}
}

// TestRestart kills the server and starts it again.
func TestRestart(t *testing.T) {
	server, restart := startNamed(t, "any")
	a, b := open(t, fast(server)), open(t, fast(server))
	sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{Side: 1})
	untilArrives(t, sa, sb, rendezvoustest.Frame(1))
	restart()
	untilArrives(t, sa, sb, rendezvoustest.Frame(2))
	untilArrives(t, sb, sa, rendezvoustest.Frame(3))
}

func TestHealth(t *testing.T) {
	server, _ := startNamed(t, "any")
	silent, _ := startNamed(t, "127.0.0.2")
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"wrong secret":    {func(c *Config) { c.Secret = base64.StdEncoding.EncodeToString([]byte("other")) }, "NOTAUTH"},
		"unknown key":     {func(c *Config) { c.Key = "other" }, "NOTAUTH"},
		"another zone":    {func(c *Config) { c.Zone = "example.org" }, "REFUSED"},
		"answers nothing": {func(c *Config) { c.Server, c.Resolver = silent, silent }, "REFUSED"},
		"nobody is there": {func(c *Config) { c.Server = "127.0.0.1:" + freePort(t) }, "refused"},
	} {
		cfg := fast(server)
		c.change(&cfg)
		e := open(t, cfg)
		rendezvoustest.Await(t, name, func() bool { return strings.Contains(fmt.Sprint(e.Health().Err), c.want) })
		if h := e.Health(); h.Ready || strings.Contains(fmt.Sprintf("%+v %v", h, cfg), cfg.Secret) {
			t.Errorf("%s: %+v", name, h)
		}
		if err := join(t, e, rendezvous.Point{}).Publish(t.Context(), rendezvoustest.Frame(1)); !errors.Is(err, rendezvous.ErrUnreachable) {
			t.Errorf("%s: publish: %v", name, err)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no server":          func(c *Config) { c.Server = "" },
		"no port":            func(c *Config) { c.Server = "127.0.0.1" },
		"no zone":            func(c *Config) { c.Zone = "" },
		"a zone that is bad": func(c *Config) { c.Zone = "a..b" },
		"a zone too long":    func(c *Config) { c.Zone = strings.Repeat("abcdefg.", 27) },
		"no key":             func(c *Config) { c.Key = "" },
		"no secret":          func(c *Config) { c.Secret = "" },
		"not base64":         func(c *Config) { c.Secret = "hunter2!" },
	} {
		cfg := config("127.0.0.1:53")
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
}

// TestNames holds that both sides agree, and that neither the topic nor two topics
// nor two names of one topic can be seen to belong together.
func TestNames(t *testing.T) {
	e := open(t, config("127.0.0.1:"+freePort(t)))
	topic := rendezvous.Topic{1, 2, 3}
	offerer, joiner := join(t, e, rendezvous.Point{Topic: topic}), join(t, e, rendezvous.Point{Topic: topic, Side: 1})
	if offerer.to != joiner.from || offerer.from != joiner.to {
		t.Errorf("offerer %v %v, joiner %v %v", offerer.to, offerer.from, joiner.to, joiner.from)
	}
	sender, receiver := join(t, e, rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly}), join(t, e, rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})
	if sender.to != receiver.from {
		t.Errorf("sender %v, receiver %v", sender.to, receiver.from)
	}
	other := join(t, e, rendezvous.Point{Topic: rendezvous.Topic{1, 2, 4}})
	all := slices.Concat(offerer.to[:], offerer.from[:], other.to[:], other.from[:])
	slices.Sort(all)
	if len(slices.Compact(all)) != 8 {
		t.Errorf("names are not distinct: %v", all)
	}
	for _, name := range all {
		if len(name) != 33+len(zone) || strings.Contains(name, "010203") {
			t.Errorf("name %q", name)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	for _, raw := range [][]byte{{1, 2, 3, 4}, bytes.Repeat([]byte{7}, numberSize+rendezvous.FrameSize), {}} {
		m := new(mdns.Msg).SetQuestion("x.kith.test.", mdns.TypeTXT)
		m.Answer = []mdns.RR{pack("x.kith.test.", raw), pack("X.kith.test.", raw), pack("y.kith.test.", raw)}
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		var m mdns.Msg
		if m.Unpack(packet) != nil {
			return
		}
		for _, size := range []int{numberSize, numberSize + rendezvous.FrameSize} {
			all := unpack(&m, "x.kith.test.", size)
			for _, raw := range all {
				if len(raw) != size {
					t.Errorf("%d bytes, want %d", len(raw), size)
				}
			}
			if len(all) > len(m.Answer) || !slices.IsSortedFunc(all, bytes.Compare) {
				t.Errorf("%d of %d records", len(all), len(m.Answer))
			}
		}
	})
}

// BenchmarkLatency is the time from Publish to Receive with polls every 300 ms, as
// they are by default: asked at the server, and through a resolver.
func BenchmarkLatency(b *testing.B) {
	direct, _ := startNamed(b, "any")
	silent, _ := startNamed(b, "127.0.0.2")
	cached := config(silent)
	cached.Resolver = startUnbound(b, silent, 0)
	for name, cfg := range map[string]Config{"server": config(direct), "resolver": cached} {
		b.Run(name, func(b *testing.B) {
			cfg.Interval = time.Millisecond
			x, y := open(b, cfg), open(b, cfg)
			from, to := join(b, x, rendezvous.Point{}), join(b, y, rendezvous.Point{Side: 1})
			untilArrives(b, from, to, rendezvoustest.Frame(0))
			var all []time.Duration
			for n := 0; b.Loop(); n++ {
				f := rendezvoustest.Frame(byte(n))
				copy(f, fmt.Sprint("frame ", n))
				start := time.Now()
				if err := from.Publish(b.Context(), f); err != nil {
					b.Fatal(err)
				}
				for {
					m, err := to.Receive(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					if bytes.Equal(m.Frame, f) {
						break
					}
				}
				all = append(all, time.Since(start))
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Milliseconds()), "ms/median")
			b.ReportMetric(float64(all[len(all)*95/100].Milliseconds()), "ms/p95")
		})
	}
}
