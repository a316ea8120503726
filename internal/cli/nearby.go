package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/control"
)

type nearbyFlags struct {
	pairFlags
	choose string
}

func (e *env) nearbyCommand() *cobra.Command {
	var f nearbyFlags
	cmd := &cobra.Command{
		Use:   "nearby",
		Short: "List the devices of this LAN that are in pairing mode, and pair with one",
		Long: `List the devices of this LAN that are in pairing mode right now: that run kith pair
(they show a code), or kith join and have no code yet (they wait to enter one). On a
terminal one is chosen by its number, else by --choose with its name or its ID.

If it shows a code, the code is asked for here, as by kith join; if it waits to
enter one, a code is shown here, as by kith pair. The list proves nothing: anybody on
this LAN can announce any name. Only the code proves who the other device is.

Looking announces nothing. kith pair and kith join announce this device's name and
system while they run, unless --hidden is given.

With --json each change of the list is one line: nearby, with all devices.
` + exitHelp,
		Example: "  kith nearby\n  kith nearby --choose laptop --code-file code.txt",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return e.nearby(cmd.Context(), f) },
	}
	cmd.Flags().StringVar(&f.choose, "choose", "", "pair with the device of this `name` or ID as soon as it is there")
	cmd.Flags().DurationVar(&f.wait, "wait", 5*time.Second, "how `long` to look")
	cmd.Flags().StringVar(&f.codeFile, "code-file", "", "read the code from a `file` (- for standard input)")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "pair without a further question, as with kith pair and kith join")
	cmd.Flags().BoolVar(&f.json, "json", false, "print events as JSON, one a line")
	return cmd
}

func (e *env) nearby(ctx context.Context, f nearbyFlags) error {
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	in := newLines(e.in)
	d, err := e.look(ctx, c, f, in)
	if err != nil || d == nil {
		return err
	}
	f.wait = 0 // that was for looking; joining has its own
	if !f.json {
		fmt.Fprintf(e.err, "Chosen: %s. The code will prove whether it is that device.\n", nearbyLine(*d))
	}
	if !d.ShowsCode {
		return e.followOn(ctx, c, f.pairFlags, control.Request{Op: control.OpOffer, Yes: f.yes, Endpoints: d.Addrs}, in)
	}
	text, err := e.readCode(ctx, f.pairFlags, in)
	if err != nil {
		return err
	}
	return e.joinOn(ctx, c, f.pairFlags, text, d.Addrs, in)
}

// joinOn pairs by a code that was read.
func (e *env) joinOn(ctx context.Context, c *control.Client, f pairFlags, text string, at []netip.AddrPort, in *lines) error {
	parsed, err := code.Parse(text, time.Now())
	if err != nil {
		return codeError(err)
	}
	req := control.Request{
		Op: control.OpJoin, Code: text, Yes: f.yes, Wait: f.wait, Offline: f.offline, Hidden: f.hidden, Endpoints: at,
	}
	if err := e.followOn(ctx, c, f, req, in); err != nil {
		return err
	}
	return e.keepHub(parsed.Hints(), f.json)
}

// look shows who is nearby until one is chosen or the time is over: then it
// returns nil, unless one was to be chosen.
func (e *env) look(ctx context.Context, c *control.Client, f nearbyFlags, in *lines) (*kith.NearbyDevice, error) {
	call, err := c.Call(ctx, control.Request{Op: control.OpNearby})
	if err != nil {
		return nil, err
	}
	defer call.Close()
	l := lookout{e: e, f: f, talks: f.choose == "" && !f.json && e.onTerminal()}
	lists, failed := make(chan []kith.NearbyDevice), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the call
		for {
			r, err := call.Next()
			if err == nil && r.Done {
				err = errors.New("the node has ended")
			}
			if err != nil {
				failed <- err
				return
			}
			select {
			case lists <- r.Nearby:
			case <-ctx.Done():
				return
			}
		}
	}()
	if l.talks {
		fmt.Fprintln(e.err, "… looking; devices appear here when they run kith pair or kith join")
	}
	over := time.After(f.wait)
	for {
		var typed <-chan string
		if l.talks {
			typed = in.lines()
		}
		select {
		case list := <-lists:
			if err := l.update(list); err != nil {
				return nil, err
			}
			if f.choose == "" {
				continue
			}
			if d, err := l.named(); d != nil || err != nil {
				return d, err
			}
		case line, ok := <-typed:
			in.asked = false
			if !ok || strings.EqualFold(strings.TrimSpace(line), "n") {
				return nil, ctx.Err()
			}
			if d := l.numbered(line); d != nil {
				return d, nil
			}
			fmt.Fprint(e.err, "Type a number of the list, or n: ")
		case <-over:
			if l.talks && len(l.list) > 0 {
				continue // the person chooses without haste
			}
			return nil, l.end()
		case err := <-failed:
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A lookout is what one kith nearby knows.
type lookout struct {
	e     *env
	f     nearbyFlags
	talks bool // to a person, who chooses by number
	list  []kith.NearbyDevice
	// numbers stay with a device, so that one that appears while a person types
	// is not chosen in place of another.
	numbers map[string]int
}

// key is what a number belongs to: all that a device says.
func key(d kith.NearbyDevice) string {
	return strings.Join([]string{d.Instance, d.Name, d.Kind, strconv.FormatBool(d.ShowsCode)}, "\x00")
}

// update takes a new list, and shows it to who follows it.
func (l *lookout) update(list []kith.NearbyDevice) error {
	if l.numbers == nil {
		l.numbers = make(map[string]int)
	}
	l.list = list
	for _, d := range list {
		if l.numbers[key(d)] == 0 {
			l.numbers[key(d)] = len(l.numbers) + 1
		}
	}
	switch {
	case l.f.json:
		if list == nil {
			list = []kith.NearbyDevice{}
		}
		return l.e.printJSON(struct {
			Event   string              `json:"event"`
			Devices []kith.NearbyDevice `json:"devices"`
		}{"nearby", list})
	case l.talks && len(list) > 0:
		if err := l.show(); err != nil {
			return err
		}
		fmt.Fprint(l.e.err, "Number of the device to pair with, or n: ")
	}
	return nil
}

// show prints the list.
func (l *lookout) show() error {
	var b strings.Builder
	b.WriteString("\n")
	for _, d := range l.list {
		fmt.Fprintf(&b, "%3d) %s\n", l.numbers[key(d)], nearbyLine(d))
	}
	b.WriteString("These names are not proved: anybody on this network can announce any. The code proves it.\n")
	_, err := io.WriteString(l.e.out, b.String())
	return err
}

func nearbyLine(d kith.NearbyDevice) string {
	var at []string
	for _, a := range d.Addrs {
		if s := a.Addr().String(); len(at) == 0 || at[len(at)-1] != s {
			at = append(at, s)
		}
	}
	what := "waits to enter a code"
	if d.ShowsCode {
		what = "shows a code"
	}
	return fmt.Sprintf("%q (%s) at %s, %s, ID %s", d.Name, d.Kind, strings.Join(at, ", "), what, d.Instance)
}

// end is what to say when the time is over.
func (l *lookout) end() error {
	switch {
	case l.f.choose != "":
		return &control.Error{
			Kind: control.KindNotFound, Text: fmt.Sprintf("no device in pairing mode called %q was found on this network", l.f.choose),
			Hint: "run kith pair or kith join there and look again; where multicast is blocked the code alone works",
		}
	case l.f.json:
		return nil
	case len(l.list) == 0:
		fmt.Fprintln(l.e.err, "No device of this network is in pairing mode. Run kith pair or kith join on the other one.")
		return nil
	}
	return l.show()
}

// named returns the device that was to be chosen, if it is there. It errs if there
// are several.
func (l *lookout) named() (*kith.NearbyDevice, error) {
	var found *kith.NearbyDevice
	for _, d := range l.list {
		if d.Name != l.f.choose && d.Instance != l.f.choose {
			continue
		}
		if found != nil {
			return nil, usage(fmt.Sprintf("several devices in pairing mode are called %q", l.f.choose), "kith nearby lists them: choose by the ID")
		}
		found = &d
	}
	return found, nil
}

func (l *lookout) numbered(line string) *kith.NearbyDevice {
	number, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return nil
	}
	for _, d := range l.list {
		if l.numbers[key(d)] == number {
			return &d
		}
	}
	return nil
}

// promptly is how soon a code comes that nobody has to type.
const promptly = 200 * time.Millisecond

// awaitCode reads the code from a person. If it does not come at once, others see
// nearby that this device waits for one, as long as it does.
func (e *env) awaitCode(ctx context.Context, f pairFlags, in *lines) (text string, c *control.Client, end func(), err error) {
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the context
		text, err := e.readCode(reading, f, in)
		done <- result{text, err}
	}()
	select {
	case r := <-done:
		return r.text, nil, nil, r.err
	case <-time.After(promptly):
	}
	if c, end, err = e.client(ctx); err != nil {
		return "", nil, nil, err
	}
	call, err := c.Call(ctx, control.Request{Op: control.OpWaiting})
	if err == nil { // without the LAN the code alone does it
		defer call.Close()
	}
	r := <-done
	if r.err != nil {
		end()
		return "", nil, nil, r.err
	}
	return r.text, c, end, nil
}
