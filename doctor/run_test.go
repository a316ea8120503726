package doctor

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// TestStuck: a check that does not end, such as one that reads a disk that hangs, ends
// neither the run nor the other checks.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mended := make(chan struct{})
		stuck := Check{Code: "device.a", Limit: time.Second, Run: func(context.Context, *Env, string) Answer {
			<-mended
			return Fails("late")
		}}
		start := time.Now()
		r := Run(t.Context(), Config{Table: []Check{stuck, answering("device.b", OK(), "device.a")}, Env: new(Env), Total: 10 * time.Second})
		if took := time.Since(start); took > time.Second+grace {
			t.Errorf("took %v", took)
		}
		if r.Results[0].State != Unknown || r.Results[1].State != Yes {
			t.Errorf("%+v", r.Results)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start = time.Now()
		Run(ctx, Config{Table: []Check{stuck}, Env: new(Env)})
		if took := time.Since(start); took > grace {
			t.Errorf("a run that was given up took %v", took)
		}
		close(mended)
	})
}

// TestDeafEvents: who is told and blocks holds the run up until its time is over, and is
// told no more then.
func TestDeafEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goesOn := make(chan struct{})
		told := 0
		start := time.Now()
		r := Run(t.Context(), Config{
			Table: []Check{answering("device.a", OK()), answering("device.b", OK())}, Env: new(Env), Total: 10 * time.Second,
			Events: func(Result) {
				told++
				<-goesOn
			},
		})
		if took := time.Since(start); took > 10*time.Second+grace {
			t.Errorf("took %v", took)
		}
		if len(r.Results) != 2 || r.Results[1].State != Yes {
			t.Errorf("%+v", r.Results)
		}
		close(goesOn)
		synctest.Wait()
		if told != 1 {
			t.Errorf("told %d times", told)
		}
	})
}

// A quietExchange counts how often it was stirred.
type quietExchange struct {
	rendezvous.Exchange
	checks int
}

func (*quietExchange) Name() string              { return dhtDriver }
func (*quietExchange) Health() rendezvous.Health { return rendezvous.Health{Ready: true} }
func (x *quietExchange) Check()                  { x.checks++ }

// TestQuickIsQuiet: the small run, which others can have made, takes part in nothing that
// takes or stirs what is in use.
func TestQuickIsQuiet(t *testing.T) {
	var got []Code
	wanted := selected(Config{Table: Table(), Quick: true})
	for _, c := range Table() {
		if wanted[c.Code] {
			got = append(got, c.Code)
		}
	}
	want := []Code{
		"device.state", "device.interfaces", "device.firewall", "device.addresses", "device.routes", "device.gateway", "device.portal", "device.outside",
		"device.dns", "device.clock", "device.ports", "address.outbound", "address.discovery", "nat.tcp", "nat.udp", "nat.mapping",
		"meeting.media", "meeting.broker", "meeting.waku", "meeting.dht", "meeting.lan.port", "relays.resolve", "relays.tcp", "relays.tls",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the small run has %v, want %v", got, want)
	}
	for _, quick := range []bool{true, false} {
		x := new(quietExchange)
		env := deviceEnv()
		env.Media = []Medium{{Name: "dht", Exchange: x}}
		r := Run(t.Context(), Config{Table: Table(), Env: env, Quick: quick, Only: []string{"meeting.dht"}})
		if i := slices.IndexFunc(r.Results, func(r Result) bool { return r.Code == "meeting.dht" }); i < 0 || r.Results[i].State != Yes {
			t.Errorf("quick %v: %+v", quick, r.Results)
		}
		if (x.checks > 0) == quick {
			t.Errorf("quick %v: the medium was stirred %d times", quick, x.checks)
		}
	}
}

// TestQuickFindsUDP: where UDP is silent and the hub answers by TCP, a quick run says so in
// the six seconds that a device has to answer another one.
func TestQuickFindsUDP(t *testing.T) {
	start := time.Now()
	env := newFakeHub(t, nil).env()
	env.Quick = true
	if a := checkDiscovery(t.Context(), env, ""); a.State != Unknown {
		t.Fatalf("%+v", a)
	}
	if a := checkUDP(t.Context(), env, ""); a.Finding != "blocked" {
		t.Errorf("%+v", a)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestCutShort holds that a check that the end of the run cuts short accuses nobody, and
// that one that used up its own time may.
func TestCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := func(code Code, limit time.Duration) Check {
			return Check{Code: code, Limit: limit, Findings: []Finding{{ID: "silent", Severity: Fault, Cause: "C.", Fix: "F."}}, Run: func(ctx context.Context, _ *Env, _ string) Answer {
				<-ctx.Done()
				return Fails("silent", "no answer")
			}}
		}
		r := Run(t.Context(), Config{Table: []Check{silent("device.a", time.Second), silent("device.b", 5*time.Second)}, Env: new(Env), Total: 2 * time.Second})
		if a := r.Results[0]; a.State != No {
			t.Errorf("a check that had its own time: %+v", a)
		}
		if b := r.Results[1]; b.State != Unknown || b.Cause != "" || len(b.Evidence) < 2 || b.Evidence[0] != "no answer" {
			t.Errorf("a check that was cut short: %+v", b)
		}
		if len(r.Causes) != 1 {
			t.Errorf("causes: %+v", r.Causes)
		}
	})
}

// TestQuickWavers: a small run that ends before it is known whether a finding comes from
// something else does not tell of it as a cause.
func TestQuickWavers(t *testing.T) {
	late := func(code Code, a Answer, took time.Duration, explains ...string) Check {
		return Check{Code: code, Limit: time.Minute, Findings: []Finding{{ID: "bad", Severity: Limit, Cause: "C.", Fix: "F.", Explains: explains}}, Run: func(ctx context.Context, _ *Env, _ string) Answer {
			select {
			case <-time.After(took):
				return a
			case <-ctx.Done():
				return Unclear()
			}
		}}
	}
	for name, test := range map[string]struct {
		full bool
		udp  Check
		want []string
	}{
		"it is not known what explains it":  {udp: late("nat.udp", Fails("bad"), time.Hour, "meeting.dht/bad")},
		"nor what explains all of a check":  {udp: late("nat.udp", Fails("bad"), time.Hour, "meeting.dht")},
		"it is known":                       {udp: late("nat.udp", Fails("bad"), time.Second, "meeting.dht/bad"), want: []string{"nat.udp/bad"}},
		"it is known that nothing does":     {udp: late("nat.udp", OK(), time.Second, "meeting.dht/bad"), want: []string{"meeting.dht/bad"}},
		"it cannot be known":                {udp: late("nat.udp", Unclear(), time.Second, "meeting.dht/bad"), want: []string{"meeting.dht/bad"}},
		"what is not known explains others": {udp: late("nat.udp", OK(), time.Hour, "meeting.dht/other"), want: []string{"meeting.dht/bad"}},
		"a run that the user has asked for": {full: true, udp: late("nat.udp", OK(), time.Hour, "meeting.dht/bad"), want: []string{"meeting.dht/bad"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := []Check{test.udp, late("meeting.dht", Fails("bad"), time.Millisecond)}
				table[0].Quick, table[1].Quick = true, true
				r := Run(t.Context(), Config{Table: table, Env: new(Env), Quick: !test.full, Total: 6 * time.Second})
				if got := codes(r.Causes); !slices.Equal(got, test.want) {
					t.Errorf("causes %q, want %q", got, test.want)
				}
				if dht := r.Results[1]; dht.State == Unknown && (dht.Cause != "" || dht.Finding != "" || !strings.Contains(strings.Join(dht.Evidence, "\n"), "nat.udp")) {
					t.Errorf("%+v", dht)
				}
			})
		})
	}
}
