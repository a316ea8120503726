package cli

import (
	"errors"
	"fmt"
	"strconv"
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
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "devices",
		Short: "List the paired devices",
		Long:  "List the paired devices, and pairings that are not finished.\n" + exitHelp,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
	return cmd
}

func (e *env) listDevices(devices []kith.Device) error {
	if len(devices) == 0 {
		fmt.Fprintln(e.err, "No device is paired yet. Run kith pair here and kith join on the other device.")
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tID\tSTATE\tLAST SEEN\tMAY REACH")
	for _, d := range devices {
		state := string(d.State)
		switch {
		case d.Rights.Blocked:
			state = "blocked"
		case d.Connected:
			state = "connected"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Name, d.ID.Short(), state, ago(d.LastSeen), mayReach(d.Rights))
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
	return &cobra.Command{
		Use: "unpair DEVICE", Short: "End the pair with a device, on both sides", Args: exactArgs(1),
		Long: `End the pair with a device. Its rights and connections end at once. The other
device learns of it now if it can be reached, and otherwise whenever it next
appears within 90 days. The two can be paired again with a new code.
` + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := e.do(cmd.Context(), control.Request{Op: control.OpUnpair, Device: args[0], Wait: unpairWait})
			if err != nil {
				return err
			}
			told := "It will be told when it next appears while kith runs here."
			if r.Told {
				told = "It has been told."
			}
			_, err = fmt.Fprintf(e.out, "Unpaired from %s. %s\n", r.Device.Name, told)
			return err
		},
	}
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, usage(fmt.Sprintf("%q is not a port", text), "a port is a number from 1 to 65535")
	}
	return uint16(port), nil
}
