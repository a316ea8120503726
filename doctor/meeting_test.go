package doctor

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// meet runs the checks of the group, for as long as they take, or a total.
func meet(t *testing.T, env *Env, total time.Duration, only ...string) Report {
	t.Helper()
	env.Pacer = NewPacer()
	if env.Port == 0 {
		env.Port = 1
	}
	if env.Interfaces == nil {
		env.Interfaces = noInterfaces
	}
	return Run(t.Context(), Config{Table: meetingWith(lanSources{neighbours: func() []lanNeighbour { return nil }}), Env: env, Total: total, Only: only})
}

// wantCauses compares the causes of a report, worst first.
func wantCauses(t *testing.T, r Report, want ...string) {
	t.Helper()
	if got := codes(r.Causes); !slices.Equal(got, want) {
		t.Errorf("causes %q, want %q", got, want)
	}
	if t.Failed() || testing.Verbose() {
		for _, x := range r.Results {
			t.Logf("%-24s %-12s %-8s %v %q %q", x.Name(), x.Subject, x.State, x.Took.Round(time.Millisecond), x.Cause, x.Evidence)
		}
	}
}

func result(t *testing.T, r Report, code Code) Result {
	t.Helper()
	i := slices.IndexFunc(r.Results, func(x Result) bool { return x.Code == code })
	if i < 0 {
		t.Fatalf("%s is not in the report", code)
	}
	return r.Results[i]
}

// TestMeetingOther is a driver that is not known here.
func TestMeetingOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		x := n.Exchange("etcd")
		env := &Env{Media: []Medium{{Name: "etcd", Exchange: x, Fresh: func() (rendezvous.Exchange, error) { return n.Exchange("etcd"), nil }}}}
		wantCauses(t, meet(t, env, 0))
		x.Cut(true)
		r := meet(t, env, 0)
		wantCauses(t, r, "meeting.other/down")
		if e := result(t, r, "meeting.echo"); e.State != Skipped || e.Because != "meeting.other" {
			t.Errorf("%+v", e)
		}
	})
}

func TestMeetingMedia(t *testing.T) {
	n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	for name, c := range map[string]struct {
		env  *Env
		want State
	}{
		"no node":       {&Env{}, Unknown},
		"not opened":    {&Env{Port: 5, OpenErr: errors.New("in use")}, Unknown},
		"all off":       {&Env{Port: 5}, No},
		"one":           {&Env{Port: 5, Media: []Medium{{Name: "x", Exchange: n.Exchange("x")}}}, Yes},
		"none is there": {&Env{Port: 5, Media: []Medium{{Name: "x"}}}, No},
	} {
		t.Run(name, func(t *testing.T) {
			if a := haveMedia(t.Context(), c.env, ""); a.State != c.want {
				t.Errorf("%+v", a)
			}
		})
	}
	// Without a LAN, and with media that are not there, nothing is looked at.
	r := meet(t, &Env{Port: 5, Media: []Medium{{Name: "x"}}}, 0)
	wantCauses(t, r, "meeting.media/none")
}

func TestPlain(t *testing.T) {
	if got := plain("a\x1b[2Jb\nc\u202ed" + strings.Repeat("é", 400)); strings.ContainsAny(got, "\x1b\n\u202e") || len(got) > 310 || !strings.HasPrefix(got, "a[2Jb cd") {
		t.Errorf("%q", got)
	}
}

func noInterfaces() ([]netmon.Interface, error) { return nil, nil }

// TestMeetingNoInterface: without a network, nobody waits for servers.
func TestMeetingNoInterface(t *testing.T) {
	table := Table()
	for _, c := range table {
		if c.Code.Group() != MeetingGroup || c.Code == "meeting.media" {
			continue
		}
		if !needs(table, c, "device.interfaces") {
			t.Errorf("%s is looked at without a network", c.Code)
		}
	}
}

// needs reports whether a check needs another, by itself or by one that it needs.
func needs(table []Check, c Check, other Code) bool {
	return slices.ContainsFunc(table, func(n Check) bool {
		return slices.Contains(c.Needs, n.Code) && (n.Code == other || needs(table, n, other))
	})
}
