package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/control"
)

// watchAll runs a watch over scripted reports, and returns its lines.
func watchAll(t *testing.T, asJSON bool, looks []func() (doctor.Report, error)) (lines []string, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var out bytes.Buffer
		e := &env{out: &out, err: &out}
		at := time.Now()
		i := 0
		err = e.watchDoctor(ctx, doctorFlags{every: watchEvery, json: asJSON}, func(context.Context) (doctor.Report, error) {
			if took := time.Since(at); took != time.Duration(i)*watchEvery {
				t.Errorf("look %d after %v", i, took)
			}
			if i == len(looks) {
				cancel()
				return doctor.Report{}, ctx.Err()
			}
			i++
			r, err := looks[i-1]()
			r.Started = time.Now()
			return r, err
		})
		for line := range strings.Lines(out.String()) {
			if !asJSON {
				_, rest, ok := strings.Cut(line, "  ")
				if _, err := time.ParseInLocation(time.DateTime, line[:len(time.DateTime)], time.Local); err != nil || !ok {
					t.Errorf("%v: %q", err, line)
				}
				line = rest
			}
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
	})
	return lines, err
}

func look(results ...doctor.Result) func() (doctor.Report, error) {
	return func() (doctor.Report, error) { return report("So it is.", results...), nil }
}

// TestWatch: a watch prints what changes between what is known, outlives errors, and says
// nothing of what could not be found out or follows from something else.
func TestWatch(t *testing.T) {
	bad := no("relays.tcp", "attic", doctor.Fault, "refused")
	good := doctor.Result{Code: "relays.tcp", Subject: "attic", State: doctor.Yes, Evidence: []string{"attic answers"}}
	looks := []func() (doctor.Report, error){
		look(yes("nat.udp"), good),
		look(yes("nat.udp"), good),
		look(without("nat.udp", doctor.Unknown, "", "no time"), good),
		look(yes("nat.udp"), bad),
		func() (doctor.Report, error) { return doctor.Report{}, control.ErrEnded },
		look(no("nat.udp", "", doctor.Limit), doctor.Result{Code: "relays.tcp", Subject: "attic", State: doctor.Skipped, Because: "nat.udp"}),
		look(yes("nat.udp", "answers come back"), bad, because(no("relays.udp", "attic", doctor.Limit), "relays.tcp/bad")),
		look(yes("nat.udp"), good, no("peers.clock", "laptop", doctor.Limit)),
	}
	lines, err := watchAll(t, false, looks)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	want := []string{
		"So it is.",
		"fault  relays.tcp attic  It is bad at relays.tcp.",
		"could not look: kith up has ended while it worked on this",
		"limit  nat.udp  It is bad at nat.udp.",
		"ok     nat.udp  answers come back",
		"ok     relays.tcp attic  attic answers",
		"limit  peers.clock laptop  It is bad at peers.clock.",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}

	lines, _ = watchAll(t, true, looks)
	if len(lines) != len(want)-1 {
		t.Fatalf("%q", lines)
	}
	var got struct {
		At    time.Time
		Was   doctor.State
		Now   doctor.Result
		Error string
	}
	if err := json.Unmarshal([]byte(lines[0]), &got); err != nil || got.Was != doctor.Yes || got.Now.Finding != "bad" || got.At.IsZero() {
		t.Errorf("%v: %s", err, lines[0])
	}
	if err := json.Unmarshal([]byte(lines[1]), &got); err != nil || got.Error == "" {
		t.Errorf("%v: %s", err, lines[1])
	}
}

// TestWatchWraps: on a terminal the lines of a watch fit, and elsewhere a change is one line.
func TestWatchWraps(t *testing.T) {
	const head, text = "2026-01-02 03:04:05  limit  ", "peers.loss laptop  Of packets to laptop and back 30 % get lost."
	const in80 = head + "peers.loss laptop Of packets to laptop and back 30\n                            % get lost.\n"
	for width, want := range map[int]string{
		0: head + text + "\n", 80: in80, 200: in80,
		45: head + "peers.loss\n         laptop Of packets to laptop and\n         back 30 % get lost.\n",
	} {
		var out bytes.Buffer
		if err := writeWatch(&out, width, head, text); err != nil || out.String() != want {
			t.Errorf("%d characters: %v, got\n%s\nwant\n%s", width, err, out.String(), want)
		}
	}
}

// TestWatchOfNobody: what was asked wrongly ends a watch at once; a device that goes away
// later does not.
func TestWatchOfNobody(t *testing.T) {
	nobody := func() (doctor.Report, error) {
		return doctor.Report{}, &control.Error{Kind: control.KindNotFound, Text: "no such device"}
	}
	if lines, err := watchAll(t, false, []func() (doctor.Report, error){nobody}); len(lines) != 0 || !errors.As(err, new(*control.Error)) {
		t.Errorf("%v: %q", err, lines)
	}
	if lines, err := watchAll(t, false, []func() (doctor.Report, error){look(yes("nat.udp")), nobody}); len(lines) != 2 || !errors.Is(err, context.Canceled) {
		t.Errorf("%v: %q", err, lines)
	}
}

// TestWatched: a watch leaves out what changes the router or takes long, unless it is
// named, and no check that it makes needs one of those.
func TestWatched(t *testing.T) {
	all := watched(nil)
	for _, c := range doctor.Table() {
		left := slices.Contains(notWatched, c.Code)
		if slices.Contains(all, string(c.Code)) == left {
			t.Errorf("%s: left out %v", c.Code, left)
		}
		for _, need := range c.Needs {
			if !left && slices.Contains(notWatched, need) {
				t.Errorf("%s needs %s", c.Code, need)
			}
		}
		if c.Slow && !left {
			t.Errorf("%s is slow", c.Code)
		}
	}
	for _, code := range notWatched {
		if !slices.ContainsFunc(doctor.Table(), func(c doctor.Check) bool { return c.Code == code }) {
			t.Errorf("there is no %s", code)
		}
	}
	if got := watched([]string{"nat.upnp", "address"}); !slices.Contains(got, "nat.upnp") || !slices.Contains(got, "address.outbound") || slices.Contains(got, "nat.udp") {
		t.Errorf("%q", got)
	}
	if got := watched([]string{"nat"}); slices.Contains(got, "nat.upnp") || !slices.Contains(got, "nat.udp") {
		t.Errorf("%q", got)
	}
}
