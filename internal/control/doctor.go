package control

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/doctor"
)

// A DoctorRequest says what the doctor looks at. Request.Device is the device that it is
// about, or empty.
type DoctorRequest struct {
	Only  []string `json:"only,omitempty"`  // groups and checks
	Slow  bool     `json:"slow,omitempty"`  // also what takes long
	Force string   `json:"force,omitempty"` // the kind of path that is measured
	// Names looks at nothing, and replies with what tells who somebody is.
	Names bool `json:"names,omitempty"`
}

// doctor runs the checks; it ends when the client goes away.
func (s *Server) doctor(st *stream, req Request) (Reply, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	in := inputs(ctx, st)
	go func() { // ends with the connection
		for range in { // nothing is to be said
		}
		cancel()
	}()
	ask := DoctorRequest{}
	if req.Doctor != nil {
		ask = *req.Doctor
	}
	if ask.Names {
		return Reply{Names: s.node.DiagnoseNames()}, nil
	}
	report, err := s.node.Diagnose(ctx, kith.DiagnoseConfig{
		Device: req.Device, Only: ask.Only, Slow: ask.Slow, Force: ask.Force,
		Events: func(r doctor.Result) {
			r = bounded(r, maxEvidence)
			if st.send(Reply{Check: &r}) != nil {
				cancel()
			}
		},
	})
	if err != nil {
		return Reply{}, err
	}
	report, err = fit(report)
	return Reply{Report: &report}, err
}

const (
	// maxEvidence is how many lines of evidence of one result are told, a count, and
	// maxText how long one text of it may be, in bytes: strangers have a part in both.
	maxEvidence = 40
	maxText     = 1000
)

// fit cuts a report so that it is one line of the protocol. It errs if it cannot be
// marshalled.
func fit(report doctor.Report) (doctor.Report, error) {
	const rest = 1 << 10 // what stands around the report in its line, in bytes
	for lines := maxEvidence; ; lines /= 2 {
		small := report
		small.Results, small.Causes = allBounded(report.Results, lines), allBounded(report.Causes, lines)
		if lines == 0 { // hundreds of devices: what matters is what is wrong
			small.Results = small.Causes
		}
		raw, err := json.Marshal(small)
		if err != nil {
			return doctor.Report{}, fmt.Errorf("control: report: %w", err)
		}
		if len(raw) < MaxLine-rest || lines == 0 {
			return small, nil
		}
	}
}

func allBounded(all []doctor.Result, lines int) []doctor.Result {
	out := make([]doctor.Result, len(all))
	for i, r := range all {
		out[i] = bounded(r, lines)
	}
	return out
}

// bounded is a result with so many lines of evidence at most, and one that says how many
// more there were.
func bounded(r doctor.Result, lines int) doctor.Result {
	evidence := make([]string, 0, min(len(r.Evidence), lines+1))
	for i, text := range r.Evidence {
		if i == lines {
			evidence = append(evidence, fmt.Sprintf("and %d lines more", len(r.Evidence)-lines))
			break
		}
		evidence = append(evidence, clipped(text))
	}
	r.Evidence = evidence
	r.Cause, r.Fix = clipped(r.Cause), clipped(r.Fix)
	return r
}

func clipped(text string) string {
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText], "") + " …"
}
