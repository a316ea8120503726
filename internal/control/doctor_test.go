package control

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/kithproject/kith/doctor"
)

// TestLongReport: what strangers and many devices add to a report never makes it longer
// than a line of the protocol, and it says what it leaves out.
func TestLongReport(t *testing.T) {
	line := strings.Repeat("<", 300) // six bytes each in JSON
	lines := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprint(i, line)
		}
		return out
	}
	cause := doctor.Result{Code: "device.gateway", Asks: "Is it so?", State: doctor.No, Finding: "silent", Severity: doctor.Fault, Cause: "It is silent.", Fix: "Mend it."}
	for name, test := range map[string]struct {
		results, evidence int
		left, results2    int // lines of evidence of each result, and results
	}{
		"short":               {3, 2, 2, 3},
		"a flood of evidence": {3, 7000, maxEvidence + 1, 3},
		"many results":        {60, 7000, 6, 60},
		"a flood of results":  {9000, 9, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			report := doctor.Report{Causes: []doctor.Result{cause}}
			for i := range test.results {
				report.Results = append(report.Results, doctor.Result{Code: "meeting.lan.others", Subject: fmt.Sprint(i), State: doctor.Yes, Evidence: lines(test.evidence)})
			}
			report.Causes[0].Evidence = lines(test.evidence)
			small, err := fit(report)
			if err != nil {
				t.Fatal(err)
			}
			near, far := net.Pipe()
			defer near.Close()
			defer far.Close()
			sent := make(chan error, 1)
			go func() { sent <- newStream(near).send(Reply{Report: &small, Done: true}) }()
			var got Reply
			if err := newStream(far).receive(&got); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			r := got.Report
			if len(r.Results) != test.results2 || len(r.Results[0].Evidence) != test.left || len(r.Causes) != 1 || r.Causes[0].Cause != cause.Cause {
				t.Fatalf("%d results with %d lines each, causes %d", len(r.Results), len(r.Results[0].Evidence), len(r.Causes))
			}
			if last := r.Results[0].Evidence[test.left-1]; test.left < test.evidence && last != fmt.Sprintf("and %d lines more", test.evidence-test.left+1) {
				t.Errorf("the last line is %q", last)
			}
			if len(report.Results[0].Evidence) != test.evidence {
				t.Error("the report itself has been cut")
			}
		})
	}
}

func TestLongText(t *testing.T) {
	r := bounded(doctor.Result{Cause: strings.Repeat("ä", 900), Evidence: []string{strings.Repeat("x", 5000)}}, 4)
	if len(r.Evidence[0]) > maxText+8 || len(r.Cause) > maxText+8 || !strings.HasSuffix(r.Cause, "ä …") {
		t.Errorf("%d, %d bytes: …%q", len(r.Evidence[0]), len(r.Cause), r.Cause[len(r.Cause)-10:])
	}
}
