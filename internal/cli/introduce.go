package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/internal/control"
)

func (e *env) introduceCommand() *cobra.Command {
	var asJSON bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "introduce DEVICE DEVICE", Short: "Make two of your devices known to each other", Args: exactArgs(2),
		Long: `Make two devices known to each other that this one is paired with by a code. Each of
them asks its user (kith introductions there), or accepts by itself if this device is
marked there as an own one (kith own). Then they pair with each other; this device never
learns their key.

It shows how far each side is, for as long as --wait says, and goes on by itself for
seven days while kith up runs here: a device that is away gets it when it returns.
` + exitHelp,
		Example: "  kith introduce laptop phone",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.introduce(cmd.Context(), args[0], args[1], wait, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the introduction as a JSON object, one a line, as it changes")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how `long` to wait for both sides")
	return cmd
}

func (e *env) introduce(ctx context.Context, one, two string, wait time.Duration, asJSON bool) error {
	call, end, err := e.call(ctx, control.Request{Op: control.OpIntroduce, Device: one, Wait: max(wait, time.Millisecond), Kin: &control.KinRequest{Peer: two}})
	if err != nil {
		return err
	}
	defer end()
	said := make(map[string]string)
	for first := true; ; first = false {
		r, err := call.Next()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, control.ErrEnded) && !first {
				return &control.Error{Kind: control.KindOther, Text: err.Error(), Hint: "the introduction goes on when it runs again: kith up"}
			}
			return err
		}
		if r.Kin == nil || len(r.Kin.Given) != 1 {
			return fmt.Errorf("the node's answer is not understood")
		}
		g := r.Kin.Given[0]
		if asJSON {
			if err := e.printJSON(g); err != nil {
				return err
			}
		} else {
			if first && !r.Kin.Begun {
				fmt.Fprintln(e.err, "They are being introduced already.")
			}
			for _, end := range g.Ends {
				if line := endWords(end.State); said[end.Name] != line {
					said[end.Name] = line
					fmt.Fprintf(e.err, "… %s: %s\n", end.Name, line)
				}
			}
		}
		if r.Done {
			return e.introduced(g, asJSON)
		}
	}
}

// introduced says how an introduction ended, or that it goes on.
func (e *env) introduced(g kin.Given, asJSON bool) error {
	a, b := g.Ends[0], g.Ends[1]
	switch {
	case !g.Over():
		if !asJSON {
			fmt.Fprintf(e.out, "It goes on by itself while kith up runs here, until %s: kith introductions\n", day(g.Expires))
		}
		return nil
	case g.Good():
		if asJSON {
			return nil
		}
		what := "are paired"
		if a.State == kin.EndAlready || b.State == kin.EndAlready {
			what = "were paired already; nothing was changed"
		}
		_, err := fmt.Fprintf(e.out, "%s and %s %s.\n", a.Name, b.Name, what)
		return err
	}
	for _, end := range g.Ends {
		if end.State != kin.EndPaired && end.State != kin.EndWithdrawn && end.State != kin.EndAlready {
			return &control.Error{Kind: control.KindRefused, Text: fmt.Sprintf("%s and %s were not introduced: %s: %s", a.Name, b.Name, end.Name, endWords(end.State))}
		}
	}
	return &control.Error{Kind: control.KindRefused, Text: fmt.Sprintf("%s (%s) and %s (%s) do not agree", a.Name, endWords(a.State), b.Name, endWords(b.State)),
		Hint: "one of them has lost the pair: end it on the other one with kith unpair, and introduce them again"}
}

// endWords say how far an introduction is on one side, as its introducer sees it.
func endWords(s kin.EndState) string {
	switch s {
	case kin.EndWaiting:
		return "gets it as soon as it is connected"
	case kin.EndDelivered:
		return "asks its user"
	case kin.EndAccepted:
		return "said yes, and looks for the other one"
	case kin.EndPaired:
		return "paired"
	case kin.EndAlready:
		return "was paired with it already"
	case kin.EndDeclined:
		return "said no"
	case kin.EndRemoved:
		return "has removed the other one (there: kith introductions --forget)"
	case kin.EndRefused:
		return "takes no introductions from this device"
	case kin.EndExpired:
		return "it took too long"
	case kin.EndWithdrawn:
		return "it is over"
	case kin.EndGone:
		return "is no longer paired with this device"
	}
	return s.String()
}

func day(t time.Time) string { return t.Local().Format("Mon 2 Jan 15:04") }

func (e *env) introductionsCommand() *cobra.Command {
	var asJSON, all bool
	var forget string
	cmd := &cobra.Command{
		Use: "introductions [accept|decline NUMBER]", Short: "Show introductions, and answer them", Args: noArgs,
		Long: `Show the introductions that other devices make to this one and that wait for an answer,
and those that this device makes. kith introductions accept says yes to one, decline no.
Say yes if you trust the introducer to name the right device: kith verify compares both
sides at any time.

A device that you have unpaired from does not come back by an introduction. --forget
takes it off that list; pairing with it by a code does, too.
` + exitHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if forget != "" {
				r, err := e.do(cmd.Context(), control.Request{Op: control.OpIntroForget, Device: forget})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(e.out, "%s can be introduced to this device again.\n", r.Kin.Removed[0].Name)
				return err
			}
			r, err := e.do(cmd.Context(), control.Request{Op: control.OpIntroductions})
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(r.Kin)
			}
			return e.listIntroductions(r.Kin, all)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.Flags().BoolVar(&all, "all", false, "also those that are over, and the devices that are not to come back")
	cmd.Flags().StringVar(&forget, "forget", "", "let a removed `device` be introduced again: its name, or the start of its ID")
	answer := func(use, short, op, said string) *cobra.Command {
		return &cobra.Command{
			Use: use + " NUMBER", Short: short, Args: exactArgs(1),
			Long: short + ", by the number that kith introductions shows.\n" + exitHelp,
			RunE: func(cmd *cobra.Command, args []string) error {
				n, err := strconv.ParseUint(args[0], 10, 64)
				if err != nil {
					return usage(fmt.Sprintf("%q is not the number of an introduction", args[0]), "kith introductions lists them")
				}
				r, err := e.do(cmd.Context(), control.Request{Op: op, Number: n})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(e.out, said+"\n", r.Kin.Received[0].Name)
				return err
			},
		}
	}
	cmd.AddCommand(
		answer("accept", "Say yes to an introduction", control.OpIntroAccept, "Accepted. This device and %s pair as soon as both have said yes and kith up runs on both."),
		answer("decline", "Say no to an introduction", control.OpIntroDecline, "Declined: %s is not paired with this device."),
	)
	return cmd
}

func (e *env) listIntroductions(k *control.KinReply, all bool) error {
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	lines := 0
	for _, r := range k.Received {
		over := r.State >= kin.EndPaired
		if over && !all {
			continue
		}
		lines++
		number := strconv.FormatUint(r.Number, 10)
		if over {
			number = "-"
		}
		fmt.Fprintf(w, "%s\t%s introduces %q\t%s\t%s\n", number, r.From, r.Name, r.Other.Short(), receivedWords(r))
	}
	for _, g := range k.Given {
		if g.Over() && !all {
			continue
		}
		lines++
		fmt.Fprintf(w, "-\t%s and %s\t\t%s: %s; %s: %s\n", g.Ends[0].Name, g.Ends[1].Name, g.Ends[0].Name, endWords(g.Ends[0].State), g.Ends[1].Name, endWords(g.Ends[1].State))
	}
	if all {
		for _, r := range k.Removed {
			lines++
			fmt.Fprintf(w, "-\t%s\t%s\tremoved: does not come back by an introduction\n", r.Name, r.ID.Short())
		}
	}
	if lines == 0 {
		fmt.Fprintln(e.err, "No introduction is under way. kith introduce DEVICE DEVICE makes two devices known to each other.")
	}
	return w.Flush()
}

// receivedWords say how far an introduction to this device is.
func receivedWords(r control.Introduction) string {
	switch r.State {
	case kin.EndDelivered:
		return fmt.Sprintf("kith introductions accept %d, or decline, until %s", r.Number, day(r.Expires))
	case kin.EndAccepted:
		return "accepted; looking for it until " + day(r.Expires)
	case kin.EndPaired:
		return "paired"
	case kin.EndAlready:
		return "was paired already"
	case kin.EndDeclined:
		return "declined"
	case kin.EndRemoved:
		return "was removed here"
	case kin.EndExpired:
		return "expired"
	case kin.EndWithdrawn:
		return "over: " + r.From + " says so"
	case kin.EndGone:
		return "over: its introducer is gone"
	case kin.EndWaiting, kin.EndRefused:
	}
	return r.State.String()
}

func (e *env) ownCommand() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "own DEVICE", Short: "Mark a device as your own", Args: exactArgs(1),
		Long: `Mark a device as your own: what it introduces is accepted here without asking, and this
device tells it of each new pair, and takes such news from it (kith devices --new). It may
undo new pairs of this device. Run it on both devices, naming the other. --off ends it.
` + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := e.do(cmd.Context(), control.Request{Op: control.OpOwn, Device: args[0], Kin: &control.KinRequest{Off: off}})
			if err != nil {
				return err
			}
			what := "marked as your own. On it: kith own, with this device's name"
			if off {
				what = "no longer marked as your own"
			}
			_, err = fmt.Fprintf(e.out, "%s is %s.\n", r.Device.Name, what)
			return err
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "it is not your own")
	return cmd
}

func (e *env) verifyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "verify DEVICE [NUMBER]", Short: "Compare the check number of a pair", Args: argsBetween(1, 5),
		Long: `Show the check number of the pair with a device, twelve digits: kith verify on the
other device shows the same one, unless somebody is between the two. With the number
that the other device shows, or on a terminal when you answer yes, the device is marked
as verified. That is worth doing for a device that was introduced: nobody has compared
anything yet.
` + exitHelp,
		Example: "  kith verify phone\n  kith verify phone 123456789012",
		RunE: func(cmd *cobra.Command, args []string) error {
			digits := strings.Join(args[1:], "")
			digits = strings.NewReplacer(" ", "", "-", "").Replace(digits)
			if digits != "" && (strings.Trim(digits, "0123456789") != "" || len(digits) != 12) {
				return usage(fmt.Sprintf("%q is not a check number", strings.Join(args[1:], " ")), "it has twelve digits")
			}
			return e.verify(cmd.Context(), args[0], digits, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

func (e *env) verify(ctx context.Context, device, digits string, asJSON bool) error {
	ask := func(digits string) (control.Reply, error) {
		return e.do(ctx, control.Request{Op: control.OpVerify, Device: device, Kin: &control.KinRequest{Digits: digits}})
	}
	r, err := ask(digits)
	if err != nil {
		return err
	}
	show := func() error {
		if asJSON {
			return e.printJSON(struct {
				Name     string `json:"name"`
				ID       string `json:"id"`
				Number   string `json:"number"`
				Verified bool   `json:"verified"`
			}{r.Device.Name, r.Device.ID.String(), r.Kin.Number, r.Device.Verified})
		}
		if digits != "" {
			_, err := fmt.Fprintf(e.out, "The numbers are the same: %s is verified.\n", r.Device.Name)
			return err
		}
		state := "not verified yet"
		if r.Device.Verified {
			state = "verified"
		}
		_, err := fmt.Fprintf(e.out, "%s  %s (%s)\n", groups(r.Kin.Number), r.Device.Name, state)
		return err
	}
	if err := show(); err != nil || digits != "" || asJSON || !e.onTerminal() || r.Device.Verified {
		return err
	}
	answer, err := e.answer(ctx, fmt.Sprintf("On %s run kith verify with this device's name. Does it show the same number? [y/n] ", r.Device.Name))
	if err != nil {
		return err
	}
	switch answer {
	case "y", "yes":
		digits = r.Kin.Number
		if r, err = ask(digits); err != nil {
			return err
		}
		return show()
	case "n", "no":
		return &control.Error{Kind: control.KindRefused, Text: "the numbers differ: somebody may be between the two devices",
			Hint: "end the pair with kith unpair " + device + ", and pair the two by a code"}
	}
	return nil
}

// groups are digits in threes.
func groups(digits string) string {
	var out []string
	for i := 0; i < len(digits); i += 3 {
		out = append(out, digits[i:min(i+3, len(digits))])
	}
	return strings.Join(out, " ")
}

// unpair ends a pair. Devices that the other one has introduced stay, unless somebody
// says otherwise.
func (e *env) unpair(ctx context.Context, device, vouched string) error {
	if vouched != "" && vouched != "keep" && vouched != "remove" {
		return usage(fmt.Sprintf("--vouched %s is not known", vouched), "keep or remove")
	}
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	if vouched == "" && e.onTerminal() {
		if vouched, err = e.askVouched(ctx, c, device); err != nil {
			return err
		}
	}
	r, err := c.Do(ctx, control.Request{Op: control.OpUnpair, Device: device, Wait: unpairWait, Kin: &control.KinRequest{Vouched: vouched}})
	if err != nil {
		return err
	}
	told := "It will be told when it next appears while kith runs here."
	if r.Told {
		told = "It has been told."
	}
	if _, err = fmt.Fprintf(e.out, "Unpaired from %s. %s\n", r.Device.Name, told); err != nil || r.Kin == nil || len(r.Kin.Vouched) == 0 {
		return err
	}
	if r.Kin.Dropped {
		_, err = fmt.Fprintf(e.out, "Unpaired, too, from what it had introduced: %s.\n", strings.Join(r.Kin.Vouched, ", "))
		return err
	}
	_, err = fmt.Fprintf(e.out, "What it had introduced stays paired: %s. To end that: kith unpair NAME\n", strings.Join(r.Kin.Vouched, ", "))
	return err
}

// askVouched asks what becomes of the devices that a device has introduced, if there are
// any.
func (e *env) askVouched(ctx context.Context, c *control.Client, device string) (string, error) {
	r, err := c.Do(ctx, control.Request{Op: control.OpStatus})
	if err != nil {
		return "", err
	}
	devices := r.Status.Devices
	i := slices.IndexFunc(devices, named(device))
	if i < 0 {
		return "", nil // unpair says so
	}
	var names []string
	for _, d := range devices {
		if d.VouchedBy == devices[i].ID {
			names = append(names, d.Name)
		}
	}
	if len(names) == 0 {
		return "", nil
	}
	answer, err := e.answer(ctx, fmt.Sprintf("%s has introduced to this device: %s.\nKeep them paired? [Y/n] ", devices[i].Name, strings.Join(names, ", ")))
	if err == nil && (answer == "n" || answer == "no") {
		return "remove", nil
	}
	return "keep", err
}
