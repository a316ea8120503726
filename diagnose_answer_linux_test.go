package kith_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/nettest"
)

// TestNetworkDialBackByDevice has a paired device in another home connect to this one, where
// the user forwards kith's port in the router, and where not.
func TestNetworkDialBackByDevice(t *testing.T) {
	for name, forwarded := range map[string]bool{"forwarded": true, "closed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), doctorBuild)
			defer cancel()
			d := &doctorLab{t: t, lab: nettest.New(t)}
			d.atHome(ctx, nettest.NATEasy)
			d.afar(ctx, nettest.NATEasy)
			if forwarded {
				var status struct{ Port int }
				if err := json.Unmarshal([]byte(d.desk.run(ctx, "status", "--json")), &status); err != nil {
					t.Fatal(err)
				}
				d.home.Router.Nft(fmt.Sprintf("table ip forwarded {\n chain pre {\n type nat hook prerouting priority -110; policy accept\n iifname \"eth0\" tcp dport %d dnat to %s\n }\n}\n",
					status.Port, d.desk.host.Addrs()[0]))
			}
			report := d.desk.diagnose(ctx, "address.dialback")
			i := slices.IndexFunc(report.Results, func(r doctor.Result) bool { return r.Code == "address.dialback" })
			if i < 0 {
				t.Fatalf("%+v", report)
			}
			r := report.Results[i]
			said := strings.Join(r.Evidence, "\n")
			t.Log(said)
			if r.State != doctor.Yes || strings.Contains(said, "only answers come in") == forwarded || strings.Contains(said, "nobody could try") ||
				strings.Contains(said, "laptop says that it has connected to ") != forwarded {
				t.Errorf("%s", r.State)
			}
		})
	}
}
