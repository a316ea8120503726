package cli

import (
	"encoding/json"

	"github.com/rogpeppe/go-internal/testscript"
)

// newPair: newpair FILE ON VAR puts the ID of the new pair of a device, of kith devices
// --new --json, into VAR.
func newPair(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: newpair FILE ON VAR")
	}
	var list []struct {
		ID string `json:"id"`
		On string `json:"on"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &list))
	for _, p := range list {
		if p.On == args[1] {
			ts.Setenv(args[2], p.ID)
			return
		}
	}
	ts.Fatalf("no new pair on %s", args[1])
}

// introNumber: introno FILE VAR puts the number of the introduction that waits for an
// answer, of kith introductions --json, into VAR.
func introNumber(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: introno FILE VAR")
	}
	var list struct {
		Received []struct {
			Number json.Number `json:"number"`
			State  string      `json:"state"`
		} `json:"received"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &list))
	for _, r := range list.Received {
		if r.State == "delivered" {
			ts.Setenv(args[1], r.Number.String())
			return
		}
	}
	ts.Fatalf("no introduction waits")
}
