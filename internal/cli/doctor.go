package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/control"
)

type doctorFlags struct {
	json, all, slow, watch bool
	bundle, force          string
	only                   []string
	every                  time.Duration
}

// watchEvery is how often kith doctor --watch looks, unless it is told otherwise.
const watchEvery = 5 * time.Minute

func (e *env) doctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor [DEVICE]",
		Short: "Find what is in the way between devices, and what to do about it",
		Long: `Find what is in the way between this device and others, and what to do about it.
With a DEVICE both ends look, and what is between them is measured.

It looks at this device, its own address, the NAT in front of it, the media to meet
on, relays and paired devices. It shows what is wrong with what was seen of it, and at
the end what that comes to: how it is, why, and what to do. What follows from another
fault is left out. --all shows every check.

It takes up to half a minute, needs neither root nor a running kith up, and sends at
most ` + fmt.Sprint(doctor.Rate) + ` packets a second, but for the measurement with a DEVICE. docs/doctor.md lists
all checks, and what a run sends to whom.

--bundle writes all of it to a new file for a report of a bug: addresses, names and
keys are replaced, each by the same word everywhere.

--watch prints what changes. It leaves the router's ports alone, and what takes long.
` + exitHelp,
		Example: "  kith doctor\n  kith doctor laptop\n  kith doctor laptop --force relay\n  kith doctor --only nat,meeting --json\n  kith doctor --bundle report.json\n  kith doctor --watch",
		Args:    atMostArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			device := ""
			if len(args) > 0 {
				device = args[0]
			}
			if cmd.Flags().Changed("every") && !f.watch {
				return usage("--every goes with --watch", "usage: kith doctor --watch --every "+f.every.String())
			}
			return e.doctor(cmd.Context(), device, f)
		},
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print the report as a JSON object; with --watch one a line for each change")
	cmd.Flags().BoolVar(&f.all, "all", false, "show every check with all that was seen, also what was left out")
	cmd.Flags().BoolVar(&f.slow, "slow", false, "also make checks that take minutes")
	cmd.Flags().StringSliceVar(&f.only, "only", nil, "only these `groups` or checks, such as nat or device.dns")
	cmd.Flags().StringVar(&f.force, "force", "", "measure over this `kind` of path: relay, direct or lan")
	cmd.Flags().StringVar(&f.bundle, "bundle", "", "write a new `file` for a report of a bug")
	cmd.Flags().BoolVar(&f.watch, "watch", false, "look again and again, and print what changes")
	cmd.Flags().DurationVar(&f.every, "every", watchEvery, "with --watch, how `often`")
	return cmd
}

// A doctorError is how kith doctor ends when it found something.
type doctorError struct{ severity doctor.Severity }

func (d *doctorError) Error() string { return "the doctor found a " + d.severity.String() }

// status is the exit status.
func (d *doctorError) status() int {
	if d.severity == doctor.Fault {
		return exitFault
	}
	return exitLimit
}

func (e *env) doctor(ctx context.Context, device string, f doctorFlags) error {
	if err := f.check(device); err != nil {
		return err
	}
	if f.watch {
		f.only = watched(f.only)
		e.sayAlone(ctx, f)
		live := newLive(e.err, false)
		return e.watchDoctor(ctx, f, func(ctx context.Context) (doctor.Report, error) {
			defer live.end() // it is for the first look alone
			report, _, err := e.diagnose(ctx, device, f, live.take)
			return report, err
		})
	}
	var file *bundleFile
	if f.bundle != "" {
		var err error
		if file, err = newBundleFile(f.bundle); err != nil {
			return err
		}
		defer file.drop()
	}
	e.sayAlone(ctx, f)
	live := newLive(e.err, f.slow)
	report, alone, err := e.diagnose(ctx, device, f, live.take)
	live.end()
	if err != nil {
		return err
	}
	if alone && !f.json {
		fmt.Fprint(e.err, "kith cannot start here: the doctor has looked at the network alone.\n\n")
	}
	if file != nil {
		if err := e.writeBundle(ctx, file, report, alone); err != nil {
			return err
		}
	}
	if f.json {
		err = e.printReport(report)
	} else {
		err = writeReport(e.out, report, reportOptions{all: f.all, device: device, width: terminalWidth(e.out)})
	}
	if err != nil {
		return err
	}
	if s := report.Verdict.Severity; s > doctor.Note {
		return &doctorError{s}
	}
	return nil
}

// check says what of the flags does not fit.
func (f doctorFlags) check(device string) error {
	known := make(map[string]bool)
	for _, g := range doctor.Groups() {
		known[string(g)] = true
	}
	for _, c := range doctor.Table() {
		known[string(c.Code)] = true
	}
	for _, name := range f.only {
		if !known[name] {
			return usage(fmt.Sprintf("%q is no check and no group of checks", name), "docs/doctor.md lists them; the groups are device, address, nat, meeting, relays and peers")
		}
	}
	switch {
	case f.force != "" && !slices.Contains([]string{"relay", "direct", "lan"}, f.force):
		return usage(fmt.Sprintf("%q is no kind of path", f.force), "relay, direct and lan are")
	case f.force != "" && device == "":
		return usage("--force measures a path to one device", "usage: kith doctor DEVICE --force "+f.force)
	case f.watch && f.bundle != "":
		return usage("--watch and --bundle do not go together", "end the watch, then write a bundle")
	case f.watch && f.slow:
		return usage("--watch and --slow do not go together", "a watch leaves out what takes long")
	case f.every < 10*time.Second:
		return usage("--every is ten seconds or more", "")
	}
	return nil
}

// sayAlone says on standard error what a run without a daemon cannot know.
func (e *env) sayAlone(ctx context.Context, f doctorFlags) {
	dir, err := e.dir()
	if err != nil || f.json {
		return
	}
	if _, err := control.Connect(ctx, dir); errors.Is(err, control.ErrNoDaemon) {
		fmt.Fprint(e.err, "kith up is not running, so no device stays connected. To start it: kith up\n"+
			"Until then the doctor knows of other devices only what these seconds show.\n\n")
	}
}

// diagnose has the daemon, or a node of this command, look. Where none can be opened
// what remains is looked at without one: alone.
func (e *env) diagnose(ctx context.Context, device string, f doctorFlags, events func(doctor.Result)) (report doctor.Report, alone bool, err error) {
	call, end, err := e.call(ctx, control.Request{
		Op: control.OpDoctor, Device: device, Doctor: &control.DoctorRequest{Only: f.only, Slow: f.slow, Force: f.force},
	})
	if err != nil {
		if ctx.Err() != nil || errors.As(err, new(*control.Error)) {
			return doctor.Report{}, false, err
		}
		report, err = e.diagnoseAlone(ctx, err, f, events)
		return report, true, err
	}
	defer end()
	for {
		r, err := call.Next()
		switch {
		case err != nil && ctx.Err() != nil:
			return doctor.Report{}, false, ctx.Err()
		case err != nil:
			return doctor.Report{}, false, err
		case r.Report != nil:
			return *r.Report, false, nil
		case r.Check != nil:
			events(*r.Check)
		}
	}
}

// diagnoseAlone looks without a node, which could not be opened.
func (e *env) diagnoseAlone(ctx context.Context, why error, f doctorFlags, events func(doctor.Result)) (doctor.Report, error) {
	_, cfg, err := e.settled()
	if err != nil {
		return doctor.Report{}, err
	}
	env := cfg.DoctorEnv()
	env.OpenErr = why
	return doctor.Run(ctx, doctor.Config{Table: doctor.Table(), Env: env, Slow: f.slow, Only: f.only, Events: events}), nil
}

// printReport prints a value of package doctor as one line of JSON. Signs that would
// drive a terminal, or turn text round, stand there as escapes.
func (e *env) printReport(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "%s\n", harmless(raw))
	return err
}

// harmless writes signs of a JSON text that JSON leaves alone and terminals do not, such
// as C1 controls and those for the direction of text, as \u escapes: they stand in strings
// only.
func harmless(raw []byte) string {
	var b strings.Builder
	for _, r := range string(raw) {
		if r > 0x7e && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Co)) {
			for _, half := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04x`, half)
			}
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// clean is a text of a report as a terminal may have it.
func clean(text string) string { return chat.CleanText(text) }
