package doctor

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var update = flag.Bool("update", false, "write docs/doctor.md anew")

// answering is a check that gives one answer for each subject.
func answering(code Code, a Answer, needs ...Code) Check {
	return Check{
		Code: code, Asks: "Is it so?", Needs: needs,
		Findings: []Finding{
			{ID: "bad", Severity: Fault, Cause: "It is bad.", Fix: "Mend it."},
			{ID: "poor", Severity: Limit, Cause: "It is poor.", Fix: "Help it."},
			{ID: "odd", Severity: Note, Cause: "It is odd.", Fix: "Nothing."},
			{ID: "root", Severity: Fault, Cause: "The root.", Fix: "Dig.", Explains: []string{"nat.b", "nat.c/poor"}},
		},
		Run: func(context.Context, *Env, string) Answer { return a },
	}
}

func codes(rs []Result) (out []string) {
	for _, r := range rs {
		out = append(out, r.Name())
	}
	return out
}

func TestCauses(t *testing.T) {
	for name, test := range map[string]struct {
		table []Check
		want  []string
		skip  []string
	}{
		"all is well": {table: []Check{answering("device.a", OK())}},
		"worst first": {
			table: []Check{answering("device.a", Fails("poor")), answering("nat.b", Fails("bad"))},
			want:  []string{"nat.b/bad", "device.a/poor"},
		},
		"the first of equals": {
			table: []Check{answering("device.a", Fails("poor")), answering("nat.b", Fails("poor"))},
			want:  []string{"device.a/poor", "nat.b/poor"},
		},
		"a consequence is not looked at": {
			table: []Check{answering("device.a", Fails("bad")), answering("nat.b", Fails("bad"), "device.a"), answering("nat.c", Fails("bad"), "nat.b")},
			want:  []string{"device.a/bad"}, skip: []string{"nat.b", "nat.c"},
		},
		"a note stops nothing": {
			table: []Check{answering("device.a", Fails("odd")), answering("nat.b", Fails("bad"), "device.a")},
			want:  []string{"nat.b/bad", "device.a/odd"},
		},
		"what is not known stops nothing": {
			table: []Check{answering("device.a", Unclear("?")), answering("nat.b", Fails("bad"), "device.a")},
			want:  []string{"nat.b/bad"},
		},
		"explained": {
			table: []Check{answering("device.a", Fails("root")), answering("nat.b", Fails("bad")), answering("nat.c", Fails("poor"))},
			want:  []string{"device.a/root"},
		},
		"another finding is not explained": {
			table: []Check{answering("device.a", Fails("root")), answering("nat.c", Fails("bad"))},
			want:  []string{"device.a/root", "nat.c/bad"},
		},
		"a finding that is not in the table is no accusation": {table: []Check{answering("device.a", Fails("nonsense"))}},
	} {
		t.Run(name, func(t *testing.T) {
			r := Run(t.Context(), Config{Table: test.table, Env: new(Env)})
			if got := codes(r.Causes); !slices.Equal(got, test.want) {
				t.Errorf("causes %v, want %v", got, test.want)
			}
			var skipped []string
			for _, x := range r.Results {
				if x.State == Skipped {
					skipped = append(skipped, string(x.Code))
					if x.Because != "device.a" {
						t.Errorf("%s was skipped because of %q", x.Code, x.Because)
					}
				}
			}
			if !slices.Equal(skipped, test.skip) {
				t.Errorf("skipped %v, want %v", skipped, test.skip)
			}
			if len(r.Results) != len(test.table) {
				t.Errorf("%d results of %d checks", len(r.Results), len(test.table))
			}
			if _, err := json.Marshal(r); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSubjects(t *testing.T) {
	hub := answering("relays.a", OK())
	hub.Subjects = func(*Env) []string { return []string{"one", "two"} }
	hub.Run = func(_ context.Context, _ *Env, s string) Answer {
		if s == "one" {
			return Fails("bad")
		}
		return OK()
	}
	echo := answering("relays.b", Fails("poor"), "relays.a")
	echo.Subjects = hub.Subjects
	r := Run(t.Context(), Config{Table: []Check{hub, echo}, Env: new(Env)})
	var got []string
	for _, x := range r.Results {
		got = append(got, x.Name()+" "+x.Subject+" "+string(x.State))
	}
	want := []string{"relays.a/bad one no", "relays.a two yes", "relays.b one skipped", "relays.b/poor two no"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestExplainsItsSubject: what is wrong with one hub explains nothing of another one, and
// what is wrong with the device explains both.
func TestExplainsItsSubject(t *testing.T) {
	each := func(code Code, findings map[string]string) Check {
		c := answering(code, OK())
		c.Subjects = func(*Env) []string { return []string{"one", "two"} }
		c.Run = func(_ context.Context, _ *Env, s string) Answer {
			if f := findings[s]; f != "" {
				return Fails(f)
			}
			return OK()
		}
		return c
	}
	table := []Check{each("nat.a", map[string]string{"one": "root"}), each("nat.b", map[string]string{"one": "bad", "two": "bad"})}
	r := Run(t.Context(), Config{Table: table, Env: new(Env)})
	if len(r.Causes) != 2 || r.Causes[0].Subject != "one" || r.Causes[1].Subject != "two" || r.Causes[1].Code != "nat.b" {
		t.Errorf("%+v", r.Causes)
	}
	table[0] = answering("nat.a", Fails("root"))
	if r = Run(t.Context(), Config{Table: table, Env: new(Env)}); len(r.Causes) != 1 {
		t.Errorf("%+v", r.Causes)
	}
	table[0] = answering("nat.a", Answer{State: No, Finding: "root", About: []string{"two"}})
	if r = Run(t.Context(), Config{Table: table, Env: new(Env)}); len(r.Causes) != 2 || r.Causes[1].Subject != "one" {
		t.Errorf("of what is wrong with one of two: %+v", r.Causes)
	}
	table = []Check{answering("nat.a", Fails("root")), answering("nat.b", Answer{State: No, Finding: "bad", Apart: []Code{"nat.a"}})}
	if r = Run(t.Context(), Config{Table: table, Env: new(Env)}); len(r.Causes) != 2 {
		t.Errorf("of what has a reason of its own: %+v", r.Causes)
	}
}

// TestTime: checks run side by side, each ends at its limit, and the run at its own.
func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(code Code, limit time.Duration) Check {
			return Check{Code: code, Limit: limit, Run: func(ctx context.Context, _ *Env, _ string) Answer {
				<-ctx.Done()
				return Unclear()
			}}
		}
		start := time.Now()
		var told []Code
		r := Run(t.Context(), Config{
			Table: []Check{hang("device.a", time.Second), hang("device.b", 2*time.Second), hang("device.c", time.Hour)}, Env: new(Env),
			Total: 10 * time.Second, Events: func(r Result) {
				if r.State != Pending {
					told = append(told, r.Code)
				}
			},
		})
		if took := time.Since(start); took != 10*time.Second || r.Took != took {
			t.Errorf("took %v, and says %v", took, r.Took)
		}
		if want := []Code{"device.a", "device.b", "device.c"}; !slices.Equal(told, want) {
			t.Errorf("told in the order %v", told)
		}
		if len(r.Causes) != 0 || r.Verdict.Severity != Fine {
			t.Errorf("accused: %+v", r.Verdict)
		}
	})
}

func TestPanic(t *testing.T) {
	c := answering("device.a", OK())
	c.Run = func(context.Context, *Env, string) Answer { panic("oh") }
	r := Run(t.Context(), Config{Table: []Check{c, answering("device.b", OK())}, Env: new(Env)})
	if r.Results[0].State != Unknown || r.Results[1].State != Yes {
		t.Errorf("%+v", r.Results)
	}
}

func TestOnly(t *testing.T) {
	table := []Check{answering("device.a", OK()), answering("device.b", OK()), answering("nat.c", OK(), "device.a"), answering("nat.d", OK())}
	for only, want := range map[string][]string{
		"nat.c": {"device.a", "nat.c"}, "nat": {"device.a", "nat.c", "nat.d"}, "device": {"device.a", "device.b"},
	} {
		r := Run(t.Context(), Config{Table: table, Env: new(Env), Only: []string{only}})
		if got := codes(r.Results); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", only, got, want)
		}
	}
}

func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		start := time.Now()
		for range 1000 {
			if err := p.Wait(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(start)
		if rate := (1000 - Burst) / took.Seconds(); rate > Rate+1 || rate < Rate-1 {
			t.Errorf("%.0f packets a second, want %d", rate, Rate)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if p.Wait(ctx, 1000) == nil {
			t.Error("waits for a run that ended")
		}
	})
}

// TestTable holds what a table must be: codes once, needs before those that need them,
// every finding whole and known to those who explain it.
func TestTable(t *testing.T) {
	table := Table()
	seen := make(map[string]bool)
	for _, c := range table {
		if seen[string(c.Code)] {
			t.Errorf("%s is there twice", c.Code)
		}
		seen[string(c.Code)] = true
		if !slices.Contains(Groups(), c.Code.Group()) {
			t.Errorf("%s is of no group", c.Code)
		}
		if c.Run == nil || !strings.HasSuffix(c.Asks, "?") {
			t.Errorf("%s asks nothing", c.Code)
		}
		for _, n := range c.Needs {
			if !seen[string(n)] {
				t.Errorf("%s needs %s, which does not stand before it", c.Code, n)
			}
		}
		for _, f := range c.Findings {
			name := string(c.Code) + "/" + f.ID
			if f.ID == "" || seen[name] || f.Severity <= Fine || f.Severity > Fault {
				t.Errorf("%s: finding %q", c.Code, f.ID)
			}
			seen[name] = true
			for _, text := range []string{f.Cause, f.Fix} {
				if !strings.HasSuffix(text, ".") || strings.Count(text, ". ") > 0 {
					t.Errorf("%s: not one sentence: %q", name, text)
				}
			}
		}
	}
	for _, c := range table {
		for _, f := range c.Findings {
			for _, e := range f.Explains {
				if !seen[e] {
					t.Errorf("%s/%s explains %s, which is not in the table", c.Code, f.ID, e)
				}
			}
		}
	}
}

// TestDocument compares docs/doctor.md with the table.
func TestDocument(t *testing.T) {
	const path, mark = "../docs/doctor.md", "<!-- From here on generated by go test ./doctor -update -->\n"
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	intro, _, ok := strings.Cut(string(old), mark)
	if !ok {
		t.Fatalf("%s has no line %q", path, mark)
	}
	text := intro + mark + Document(Table())
	if text == string(old) {
		return
	}
	if !*update {
		t.Fatalf("%s is not that of the table: go test ./doctor -update", path)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
