package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/control"
)

func asParse(err error) (*code.ParseError, bool) {
	var p *code.ParseError
	ok := errors.As(err, &p)
	return p, ok
}

func (e *env) devicesCommand() *cobra.Command {
	var asJSON, fresh bool
	var undo string
	cmd := &cobra.Command{
		Use:   "devices",
		Short: "List the paired devices",
		Long: `List the paired devices, and pairings that are not finished.

With --new: the pairs of the last 24 hours, of this device and of those that are marked
as your own (kith own). On a terminal one key undoes one; elsewhere --undo ID does, or
--undo DEVICE:ID. A pair of another own device is ended by that one: it is asked to,
within the next 24 hours.
` + exitHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if fresh || undo != "" {
				return e.newPairs(cmd.Context(), undo, asJSON)
			}
			r, err := e.do(cmd.Context(), control.Request{Op: control.OpStatus})
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(r.Status.Devices)
			}
			return e.listDevices(r.Status.Devices)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.Flags().BoolVar(&fresh, "new", false, "the pairs of the last 24 hours, also of your own other devices")
	cmd.Flags().StringVar(&undo, "undo", "", "end the new pair with this `id`")
	return cmd
}

// remarks are what is special about a device.
func remarks(d kith.Device) string {
	var all []string
	if d.Own {
		all = append(all, "own")
	}
	if d.IntroducedBy != "" {
		all = append(all, "introduced by "+d.IntroducedBy)
	}
	return strings.Join(all, ", ")
}

func (e *env) listDevices(devices []kith.Device) error {
	if len(devices) == 0 {
		fmt.Fprintln(e.err, "No device is paired yet. Run kith pair here and kith join on the other device.")
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	special := slices.ContainsFunc(devices, func(d kith.Device) bool { return remarks(d) != "" })
	head := "NAME\tID\tSTATE\tLAST SEEN\tMAY REACH"
	if special {
		head += "\tREMARKS"
	}
	fmt.Fprintln(w, head)
	for _, d := range devices {
		state := string(d.State)
		switch {
		case d.Rights.Blocked:
			state = "blocked"
		case d.Connected:
			state = "connected"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s", d.Name, d.ID.Short(), state, ago(d.LastSeen), mayReach(d.Rights))
		if special {
			fmt.Fprint(w, "\t", remarks(d))
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, d := range devices {
		if d.State == kith.NotFinished {
			fmt.Fprintf(e.err, "%s is not finished: it becomes paired by itself when both devices meet;\nto discard it: kith unpair %s\n", d.Name, d.Name)
		}
	}
	return nil
}

// ago says how long ago a time was, in one unit.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	switch d := time.Since(t); {
	case d < time.Minute:
		return "now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return t.Format(time.DateOnly)
	}
}

func (e *env) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename DEVICE NAME", Short: "Change what this device calls another", Args: exactArgs(2),
		Long: "Change what this device calls another one. The other device does not notice.\n" + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := e.do(cmd.Context(), control.Request{Op: control.OpRename, Device: args[0], Name: args[1]})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(e.out, "%s is now called %s.\n", args[0], r.Device.Name)
			return err
		},
	}
}

// unpairWait is how long unpair waits for the other side to confirm.
const unpairWait = 3 * time.Second

func (e *env) unpairCommand() *cobra.Command {
	var vouched string
	cmd := &cobra.Command{
		Use: "unpair DEVICE", Short: "End the pair with a device, on both sides", Args: exactArgs(1),
		Long: `End the pair with a device. Its rights and connections end at once. The other
device learns of it now if it can be reached, and otherwise whenever it next
appears within 90 days. The two can be paired again with a new code; the device does
not come back by an introduction. Devices that it has introduced to this one stay, unless
you answer otherwise or give --vouched remove.
` + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.unpair(cmd.Context(), args[0], vouched)
		},
	}
	cmd.Flags().StringVar(&vouched, "vouched", "", "keep or remove the devices that it has introduced: `what` (default keep)")
	return cmd
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, usage(fmt.Sprintf("%q is not a port", text), "a port is a number from 1 to 65535")
	}
	return uint16(port), nil
}
