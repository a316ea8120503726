package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/control"
)

// notWatched are checks that change something in the router, or take long: nobody wants
// them every few minutes.
var notWatched = []doctor.Code{"nat.upnp", "nat.pcp", "nat.natpmp", "nat.lifetime", "nat.timeout"} //nolint:gochecknoglobals // a table

// watched are the checks of a watch: those that were asked for by name, and of groups,
// or of all, those that may be made again and again.
func watched(only []string) (out []string) {
	for _, c := range doctor.Table() {
		group := len(only) == 0 || slices.Contains(only, string(c.Code.Group()))
		if slices.Contains(only, string(c.Code)) || group && !slices.Contains(notWatched, c.Code) {
			out = append(out, string(c.Code))
		}
	}
	return out
}

// watchDoctor looks again and again until ctx ends, and prints what changed.
func (e *env) watchDoctor(ctx context.Context, f doctorFlags, look func(context.Context) (doctor.Report, error)) error {
	w := watch{known: make(map[string]doctor.Result)}
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for first := true; ; {
		at := time.Now()
		report, err := look(ctx)
		var wrong *control.Error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && first && errors.As(err, &wrong) && (wrong.Kind == control.KindUsage || wrong.Kind == control.KindNotFound):
			return err
		case err != nil:
			err = e.watchError(at, err, f.json)
		case first:
			err = e.watchBegin(report, f.json)
			w.changes(report)
			first = false
		default:
			for _, c := range w.changes(report) {
				if err = e.changed(report.Started, c, f.json); err != nil {
					break
				}
			}
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// A watch knows what each check said last, of those that said yes or no.
type watch struct{ known map[string]doctor.Result }

// A change is what a check said before, or "", and what it says now.
type change struct {
	was doctor.State
	now doctor.Result
}

// changes are the checks that say something else than before. What could not be found out
// this time, and what follows from something else, changes nothing.
func (w *watch) changes(report doctor.Report) (out []change) {
	for _, r := range report.Results {
		if r.State != doctor.Yes && r.State != doctor.No || r.Because != "" {
			continue
		}
		id := string(r.Code) + " " + r.Subject
		was, ok := w.known[id]
		w.known[id] = r
		if ok && (was.State != r.State || was.Finding != r.Finding) || !ok && r.State == doctor.No {
			out = append(out, change{was.State, r})
		}
	}
	return out
}

// watchBegin prints how it is at the begin of a watch.
func (e *env) watchBegin(report doctor.Report, asJSON bool) error {
	if asJSON {
		return nil
	}
	return e.watchLine(report.Started, "", report.Verdict.String())
}

func (e *env) watchError(at time.Time, why error, asJSON bool) error {
	_, text, _ := classify(why)
	if asJSON {
		return e.printReport(struct {
			At    time.Time `json:"at"`
			Error string    `json:"error"`
		}{at, text})
	}
	return e.watchLine(at, "", "could not look: "+text)
}

// changed prints what changed.
func (e *env) changed(at time.Time, c change, asJSON bool) error {
	if asJSON {
		return e.printReport(struct {
			At  time.Time     `json:"at"`
			Was doctor.State  `json:"was,omitempty"`
			Now doctor.Result `json:"now"`
		}{at, c.was, c.now})
	}
	return e.watchLine(at, fmt.Sprintf("%-5s  ", mark(c.now)), checkName(c.now)+"  "+saying(c.now))
}

// watchLine prints a line with the time and some columns before it.
func (e *env) watchLine(at time.Time, columns, text string) error {
	return writeWatch(e.out, terminalWidth(e.out), stamp(at)+"  "+columns, clean(text))
}

// writeWatch writes head and text in one line, or, for a terminal of a width in characters, in
// lines that fit, of which the next ones are as far in as the text.
func writeWatch(out io.Writer, width int, head, text string) error {
	if width == 0 {
		_, err := fmt.Fprintln(out, strings.TrimSpace(head+text))
		return err
	}
	w := &reportWriter{out: bufio.NewWriter(out), o: reportOptions{width: width}}
	hang := len(head)
	if w.o.room() < 60 {
		hang = 9
	}
	w.wrapped(head, strings.Repeat(" ", hang), text)
	return w.out.Flush()
}

func stamp(t time.Time) string { return t.Local().Format(time.DateTime) }
