package doctor

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultLimit is how long a check may take that does not say so itself.
	DefaultLimit = 5 * time.Second
	// DefaultTotal is how long a run may take.
	DefaultTotal = 28 * time.Second
	// SlowTotal is how long a run with Slow may take.
	SlowTotal = 150 * time.Second
	// QuickTotal is how long a quick run may take.
	QuickTotal = 2 * time.Second
	// atOnce is how many checks run side by side, in number.
	atOnce = 16
	// grace is what a check, or who is told, has when its time is over, to end by itself.
	grace = time.Second
)

// A Config says what a Run looks at. Table and Env are required.
type Config struct {
	Table []Check
	Env   *Env
	// Total is how long the run may take; default DefaultTotal, SlowTotal, or QuickTotal.
	Total time.Duration
	// Slow also runs checks that take long or disturb.
	Slow bool
	// Quick runs those alone that are marked so.
	Quick bool
	// Only, if not empty, leaves out what is neither one of these groups or codes nor
	// needed by one.
	Only []string
	// Events is called, by one goroutine at a time, for each Result as it is known, and
	// before that once with each as Pending, in the order of the table. While it blocks the
	// run goes on; if it still does when the run's time is over, no more is told. Default: none.
	Events func(Result)
}

// A node of the graph of a run: a check and one of its subjects.
type task struct {
	check   Check
	subject string
	needs   []*task
	done    chan struct{}
	result  Result
	cut     bool // it could not find out before the run was over
}

// Run looks at all checks of the table and returns what it found when all have
// answered or run out of time. It never ends early: a run whose ctx ends reports
// what it could not find out. A check that panics, or that does not end a second after its
// time, is Unknown.
func Run(ctx context.Context, cfg Config) Report {
	total := cfg.Total
	switch {
	case total == 0 && cfg.Quick:
		total = QuickTotal
	case total == 0 && cfg.Slow:
		total = SlowTotal
	case total == 0:
		total = DefaultTotal
	}
	ctx, cancel := context.WithTimeout(ctx, total)
	defer cancel()
	cfg.Env.Quick = cfg.Quick
	report := Report{Started: time.Now(), System: runtime.GOOS, Root: cfg.Env.Root}
	if cfg.Quick { // it runs without having been asked for
		cfg.Env.Strangers = false
	}
	tasks := plan(cfg)
	slots := make(chan struct{}, atOnce)
	tell, told := teller(cfg.Events, tasks)
	var wg sync.WaitGroup
	for _, t := range tasks {
		wg.Go(func() {
			defer close(t.done)
			t.run(ctx, cfg, slots)
			tell(t.result)
		})
	}
	wg.Wait()
	told(ctx)
	for _, t := range tasks {
		report.Results = append(report.Results, t.result)
		if line := t.check.RootAdds; line != "" && !cfg.Env.Root && !slices.Contains(report.RootAdds, line) {
			report.RootAdds = append(report.RootAdds, line)
		}
	}
	explain(cfg.Table, report.Results)
	if cfg.Quick {
		waver(tasks, report.Results)
	}
	fulfil(cfg.Table, cfg.Env, report.Results)
	report.Causes = causes(cfg.Env, report.Results)
	report.Verdict = judge(cfg.Env, report)
	report.Took = time.Since(report.Started)
	return report
}

// teller calls events for each task, and then for what tell is called with, which does not
// block. told waits until all has been told, but not for long when ctx has ended.
func teller(events func(Result), tasks []*task) (tell func(Result), told func(context.Context)) {
	if events == nil {
		return func(Result) {}, func(context.Context) {}
	}
	queue, over := make(chan Result, 2*len(tasks)), make(chan struct{})
	for _, t := range tasks {
		queue <- t.result
	}
	var gone atomic.Bool
	go func() {
		defer close(over)
		for r := range queue {
			if !gone.Load() {
				events(r)
			}
		}
	}()
	return func(r Result) { queue <- r }, func(ctx context.Context) {
		close(queue)
		gone.Store(!outlasts(ctx, over))
	}
}

// outlasts waits until done is closed, or until ctx has ended and a while after that, and
// reports whether done is closed.
func outlasts(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// plan makes a task of every check and subject, and ties them.
func plan(cfg Config) []*task {
	wanted := selected(cfg)
	var tasks []*task
	byCode := make(map[Code][]*task)
	for _, c := range cfg.Table {
		if !wanted[c.Code] {
			continue
		}
		subjects := []string{""}
		if c.Subjects != nil {
			subjects = c.Subjects(cfg.Env)
		}
		for _, s := range subjects {
			t := &task{
				check: c, subject: s, done: make(chan struct{}),
				result: Result{Code: c.Code, Subject: s, Asks: c.Asks, State: Pending},
			}
			for _, need := range c.Needs {
				for _, n := range byCode[need] {
					if n.subject == "" || n.subject == s {
						t.needs = append(t.needs, n)
					}
				}
			}
			tasks = append(tasks, t)
			byCode[c.Code] = append(byCode[c.Code], t)
		}
	}
	return tasks
}

// selected says which checks take part.
func selected(cfg Config) map[Code]bool {
	out := make(map[Code]bool)
	for _, c := range slices.Backward(cfg.Table) { // needs stand before those that need them
		part := !cfg.Quick || c.Quick
		if len(cfg.Only) > 0 {
			part = part && slices.ContainsFunc(cfg.Only, func(name string) bool {
				return name == string(c.Code) || name == string(c.Code.Group())
			})
		}
		if part || out[c.Code] {
			out[c.Code] = true
			for _, n := range c.Needs {
				out[n] = true
			}
		}
	}
	return out
}

func (t *task) run(ctx context.Context, cfg Config, slots chan struct{}) {
	if t.check.Slow && !cfg.Slow {
		t.result.State, t.result.Evidence = Skipped, []string{"takes long: runs with --slow"}
		return
	}
	for _, n := range t.needs {
		<-n.done // ends with the run's context at the latest
		if !n.holds() {
			t.result.State, t.result.Because = Skipped, string(n.check.Code)
			if n.result.State == Skipped && n.result.Because != "" {
				t.result.Because = n.result.Because
			}
			return
		}
	}
	slots <- struct{}{} // everyone who holds one ends with the context
	defer func() { <-slots }()
	limit := t.check.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	asking, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	answer := t.ask(asking, cfg.Env)
	t.result.Took = time.Since(start)
	if answer.State == No && ctx.Err() != nil { // silence shows nothing if it was not waited for
		answer = Unclear(append(slices.Clone(answer.Evidence), "the run was over before this was certain")...)
	}
	t.result.take(t.check, answer)
	t.cut = t.result.State == Unknown && ctx.Err() != nil
}

// holds reports whether checks that need this one have something to look at. What could
// not be found out may be as it should.
func (t *task) holds() bool {
	r := t.result
	return r.State == Yes || r.State == Unknown || r.State == No && r.Severity <= Note
}

// ask calls Run, and outlives its panic and its not ending.
func (t *task) ask(ctx context.Context, env *Env) Answer {
	var a Answer
	done := make(chan struct{})
	go func() { // it ends when the check does
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				a = Unclear(fmt.Sprintf("the check itself failed, which is a fault of kith: %v", p))
			}
		}()
		a = t.check.Run(ctx, env, t.subject)
	}()
	if !outlasts(ctx, done) {
		return Unclear("ran out of time and does not end, as if the system were stuck")
	}
	if a.State == Unknown && ctx.Err() != nil {
		a.Evidence = append(a.Evidence, "ran out of time")
	}
	return a
}

// take makes a result of an answer and what the table says of its finding.
func (r *Result) take(c Check, a Answer) {
	r.State, r.Evidence, r.Silent, r.about, r.apart = a.State, a.Evidence, a.Silent, a.About, a.Apart
	if a.State != No {
		return
	}
	i := slices.IndexFunc(c.Findings, func(f Finding) bool { return f.ID == a.Finding })
	if i < 0 {
		r.State = Unknown
		r.Evidence = append(r.Evidence, fmt.Sprintf("the check gave a finding %q that is not in its table, which is a fault of kith", a.Finding))
		return
	}
	f := c.Findings[i]
	r.Finding, r.Severity, r.Cause, r.Fix = f.ID, f.Severity, f.Cause, f.Fix
	if a.Cause != "" {
		r.Cause = a.Cause
	}
	if a.Fix != "" {
		r.Fix = a.Fix
	}
}

// explain marks findings that another one of the run explains.
func explain(table []Check, results []Result) {
	why := make(map[string][]Result) // what is explained → by what
	for _, r := range results {
		if r.State != No {
			continue
		}
		for _, name := range findingOf(table, r).Explains {
			why[name] = append(why[name], r)
		}
	}
	for i := range results {
		r := &results[i]
		if r.State != No {
			continue
		}
		for _, by := range slices.Concat(why[r.Name()], why[string(r.Code)]) {
			if by.explains(*r) {
				r.Because = by.Name()
				break
			}
		}
	}
}

// fulfil has findings say so that ask for what is there already.
func fulfil(table []Check, env *Env, results []Result) {
	for i, r := range results {
		if f := findingOf(table, r); r.State == No && f.Settled != nil {
			results[i].Fix = cmp.Or(f.Settled(env, r, results), r.Fix)
		}
	}
}

// waver takes findings of a small run back that nothing explains and something might: a check
// that could not find out before the run was over. Nobody looks at what such a run says more
// closely.
func waver(tasks []*task, results []Result) {
	for i := range results {
		r := &results[i]
		if r.State != No || r.Because != "" {
			continue
		}
		j := slices.IndexFunc(tasks, func(t *task) bool { return t.cut && t.mightExplain(*r) })
		if j < 0 {
			continue
		}
		r.State, r.Finding, r.Severity, r.Cause, r.Fix = Unknown, "", Fine, "", ""
		r.Evidence = append(slices.Clone(r.Evidence), fmt.Sprintf("the run was over before it was certain whether that comes from something else (%s)", tasks[j].check.Code))
	}
}

// mightExplain reports whether a finding of the task's check would explain a result.
func (t *task) mightExplain(r Result) bool {
	if t.check.Code == r.Code || !t.result.explains(r) {
		return false
	}
	return slices.ContainsFunc(t.check.Findings, func(f Finding) bool {
		return slices.Contains(f.Explains, r.Name()) || slices.Contains(f.Explains, string(r.Code))
	})
}

func findingOf(table []Check, r Result) Finding {
	for _, c := range table {
		for _, f := range c.Findings {
			if c.Code == r.Code && f.ID == r.Finding {
				return f
			}
		}
	}
	return Finding{}
}

// causes are the findings that nothing explains, worst first, and among equals those of
// the devices that the run is about, then in the order of the table. What is found with
// a device that was asked about is of no use below a NAT that all devices here are behind.
func causes(env *Env, results []Result) []Result {
	var out []Result
	for _, r := range results {
		if r.State == No && r.Because == "" && r.Severity > Fine {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b Result) int {
		return cmp.Or(int(b.Severity)-int(a.Severity), bit(about(env, b))-bit(about(env, a)))
	})
	return out
}

// about reports whether a result is of a device that the run is about.
func about(env *Env, r Result) bool {
	return r.Code.Group() == PeerGroup && slices.ContainsFunc(env.Peers, func(p Peer) bool { return p.Named && p.Name == r.Subject })
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
