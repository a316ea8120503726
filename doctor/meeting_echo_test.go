package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/dht"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// TestMeetingEcho uses a medium in memory, in a bubble: what it says, and that it never
// takes longer than it may.
func TestMeetingEcho(t *testing.T) {
	for name, c := range map[string]struct {
		driver string
		faults rendezvoustest.Faults
		fresh  func(*rendezvoustest.Network) func() (rendezvous.Exchange, error)
		want   State
		says   string
	}{
		"works":                  {driver: "mqtt", faults: rendezvoustest.Faults{MaxDelay: 80 * time.Millisecond}, want: Yes, says: "round trip of a frame"},
		"works in a mailbox":     {driver: "dht", want: Yes, says: "stored and read back"},
		"works with half lost":   {driver: "waku", faults: rendezvoustest.Faults{Loss: 0.5}, want: Yes, says: "round trip"},
		"is slow":                {driver: "etcd", faults: rendezvoustest.Faults{MaxDelay: 4 * time.Second}, want: Yes, says: "round trip"},
		"loses all":              {driver: "mqtt", faults: rendezvoustest.Faults{Loss: 1}, want: No, says: "none came back"},
		"a mailbox that is slow": {driver: "dht", faults: rendezvoustest.Faults{Loss: 1}, want: Unknown, says: "none came back"},
		"cannot be opened again": {driver: "mqtt", fresh: noFresh, want: Unknown, says: "cannot be opened"},
		"is not opened again":    {driver: "mqtt", fresh: badFresh, want: Unknown, says: "no[31m room"},
		"the second does not get there, and nobody knows why": {driver: "mqtt", fresh: cutFresh("mqtt"), want: Unknown, says: "not connected"},
		"the second does not get there":                       {driver: "etcd", fresh: cutFresh("etcd"), want: No, says: "not connected"},
		"all nodes of a DHT are gone":                         {driver: "dht", fresh: deadFresh(fmt.Errorf("%w of 3", dht.ErrSilent)), want: No, says: "no DHT node answered"},
		"a second node of a DHT knows none":                   {driver: "dht", fresh: deadFresh(dht.ErrNoNodes), want: Unknown, says: "not connected"},
		"the medium of a test is none":                        {driver: "paper", want: Skipped},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := rendezvoustest.NewNetwork(7, c.faults)
				m := Medium{Name: "it", Exchange: n.Exchange(c.driver), Fresh: func() (rendezvous.Exchange, error) { return n.Exchange(c.driver), nil }}
				if c.fresh != nil {
					m.Fresh = c.fresh(n)
				}
				start := time.Now()
				r := meet(t, &Env{Media: []Medium{m}}, 0, "meeting.echo")
				if took := time.Since(start); took > meetingEchoLimit {
					t.Errorf("took %v", took)
				}
				i := slices.IndexFunc(r.Results, func(x Result) bool { return x.Code == "meeting.echo" })
				if c.want == Skipped {
					if i >= 0 {
						t.Errorf("%+v", r.Results[i])
					}
					return
				}
				if x := result(t, r, "meeting.echo"); x.State == No && c.driver == "dht" && x.Name() != "meeting.echo/silent" {
					t.Errorf("%+v", x)
				} else if x.State != c.want || !strings.Contains(strings.Join(x.Evidence, " "), c.says) {
					t.Errorf("%+v", x)
				}
			})
		})
	}
}

// A dead exchange is one that cannot carry anything.
type dead struct {
	rendezvous.Exchange
	err error
}

func (d dead) Health() rendezvous.Health { return rendezvous.Health{Name: d.Name(), Err: d.err} }

func deadFresh(err error) func(*rendezvoustest.Network) func() (rendezvous.Exchange, error) {
	return func(n *rendezvoustest.Network) func() (rendezvous.Exchange, error) {
		return func() (rendezvous.Exchange, error) { return dead{n.Exchange("dht"), err}, nil }
	}
}

// TestEchoOfDHTIsNoCause: that the nodes of a DHT are gone is no second fault where the hub is
// down that is one, or the network lets no UDP out.
func TestEchoOfDHTIsNoCause(t *testing.T) {
	for _, why := range []string{"relays.tcp/hub", "relays.tcp/hub-silent", "nat.web/only443", "nat.udp/blocked", "device.firewall/out"} {
		code, finding, _ := strings.Cut(why, "/")
		results := []Result{
			{Code: "meeting.echo", Subject: "dht", State: No, Finding: "silent", Severity: Limit},
			{Code: Code(code), State: No, Finding: finding, Severity: Limit},
		}
		explain(Table(), results)
		if got := codes(causes(&Env{}, results)); !slices.Equal(got, []string{why}) {
			t.Errorf("causes %q, want %s alone", got, why)
		}
	}
}

func noFresh(*rendezvoustest.Network) func() (rendezvous.Exchange, error) { return nil }

func badFresh(*rendezvoustest.Network) func() (rendezvous.Exchange, error) {
	return func() (rendezvous.Exchange, error) { return nil, errors.New("no\x1b[31m room") }
}

func cutFresh(driver string) func(n *rendezvoustest.Network) func() (rendezvous.Exchange, error) {
	return func(n *rendezvoustest.Network) func() (rendezvous.Exchange, error) {
		return func() (rendezvous.Exchange, error) {
			x := n.Exchange(driver)
			x.Cut(true)
			return x, nil
		}
	}
}
