package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/internal/control"
)

// forwardFlags are those of forward and expose.
type forwardFlags struct {
	wait   time.Duration
	keep   bool
	remove bool
	json   bool
}

func (e *env) forwardCommand() *cobra.Command {
	var f forwardFlags
	cmd := &cobra.Command{
		Use:   "forward [[ADDRESS:]PORT[/udp] DEVICE:PORT]",
		Short: "Make a port of another device's localhost a port of this machine",
		Long: `Make a port of another device's localhost a port of this machine, until
interrupted; with --keep for good, as long as kith up runs. The other device must allow
it: kith allow THIS-DEVICE PORT there. The local port listens on localhost unless an
address is given; port 0 lets the system pick one. Alone it lists the forwards.
` + exitHelp,
		Example: "  kith forward 8080 laptop:80\n  kith forward 5353/udp laptop:53 --keep\n  kith forward --remove 5353/udp",
		Args:    atMostArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.remove && len(args) == 1:
				return e.unforward(cmd.Context(), args[0])
			case len(args) == 0 && !f.remove:
				return e.listForwards(cmd.Context(), f.json)
			case len(args) == 2 && !f.remove:
				return e.forward(cmd.Context(), args[0], args[1], f, func(fw control.Forward) {
					fmt.Fprintf(e.out, "%s is port %d of %s; Ctrl-C ends it\n", fw.Listening, fw.Port, fw.Name)
				})
			}
			return usage("what is to be forwarded?", "usage: "+cmd.UseLine())
		},
	}
	f.register(cmd, "end the forward of a local port", "list as a JSON array")
	return cmd
}

// register makes the flags of a command.
func (f *forwardFlags) register(cmd *cobra.Command, remove, list string) {
	cmd.Flags().DurationVar(&f.wait, "wait", 15*time.Second, "how `long` to wait for the device")
	cmd.Flags().BoolVar(&f.keep, "keep", false, "keep it, also after a restart of kith up")
	cmd.Flags().BoolVar(&f.remove, "remove", false, remove)
	cmd.Flags().BoolVar(&f.json, "json", false, list)
}

// forward begins one, and follows it until ctx ends, unless it is kept.
func (e *env) forward(ctx context.Context, local, remote string, f forwardFlags, begun func(control.Forward)) error {
	i := strings.LastIndexByte(remote, ':')
	if i < 1 {
		return usage(fmt.Sprintf("%q is not DEVICE:PORT", remote), "for example: kith forward 8080 laptop:80")
	}
	device := remote[:i]
	port, err := parsePort(remote[i+1:])
	if err != nil {
		return err
	}
	address, network, err := localAddress(local)
	if err != nil {
		return err
	}
	c, end, err := e.askPort(ctx, device, control.Port{Network: network, Number: port}, f.wait)
	if err != nil {
		return err
	}
	defer end()
	call, err := c.Call(ctx, control.Request{Op: control.OpForward, Device: device, Port: port, Network: network, Address: address, Keep: f.keep})
	if err != nil {
		return err
	}
	defer call.Close()
	return follow(ctx, call, func(r control.Reply) {
		switch {
		case len(r.Forwards) == 1 && r.Done:
			fmt.Fprintf(e.out, "%s is port %d of %s from now on, while kith up runs.\n", r.Forwards[0].Listening, port, r.Forwards[0].Name)
		case len(r.Forwards) == 1:
			begun(r.Forwards[0])
		case r.Text != "":
			fmt.Fprintln(e.err, "connection failed:", oneLine(r.Text))
		}
	})
}

// follow shows each reply of a call until the last one, or until ctx ends: that is the
// ordinary way to end what goes on.
func follow(ctx context.Context, call *control.Call, show func(control.Reply)) error {
	for {
		r, err := call.Next()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if show(r); r.Done {
			return nil
		}
	}
}

func (e *env) unforward(ctx context.Context, local string) error {
	address, network, err := localAddress(local)
	if err != nil {
		return err
	}
	if _, err := e.do(ctx, control.Request{Op: control.OpUnforward, Address: address + "/" + network}); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "%s is not forwarded any more.\n", local)
	return nil
}

func (e *env) listForwards(ctx context.Context, asJSON bool) error {
	r, err := e.do(ctx, control.Request{Op: control.OpForwards})
	if err != nil {
		return err
	}
	if asJSON {
		return e.printJSON(r.Forwards)
	}
	if len(r.Forwards) == 0 {
		fmt.Fprintln(e.err, "Nothing is forwarded. For example: kith forward 8080 laptop:80")
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "HERE\tLEADS TO\tKEPT\tCONNECTIONS\tSTATE")
	for _, f := range r.Forwards {
		state, kept := "listening", "-"
		switch {
		case f.Err != "":
			state = f.Err
		case f.LastFailure != "":
			state = "last failure: " + oneLine(f.LastFailure)
		}
		if f.Kept {
			kept = "kept"
		}
		port := control.Port{Network: string(f.Protocol), Number: f.Port}
		fmt.Fprintf(w, "%s\t%s:%s\t%s\t%d of %d\t%s\n", f.Address, f.Name, port, kept, f.Open, f.Total, state)
	}
	return w.Flush()
}

// askPort returns a client, and the function that ends it, after the device has said that
// it allows the port. That nothing listens there yet is a warning: it may come later.
func (e *env) askPort(ctx context.Context, device string, port control.Port, wait time.Duration) (*control.Client, func(), error) {
	c, end, err := e.client(ctx)
	if err != nil {
		return nil, nil, err
	}
	_, err = c.Do(ctx, control.Request{Op: control.OpAsk, Device: device, Port: port.Number, Network: port.Network, Wait: wait})
	var told *control.Error
	switch {
	case errors.As(err, &told) && told.Text == forward.ErrClosed.Error():
		fmt.Fprintf(e.err, "warning: nothing listens on port %s of %s at the moment\n", port, device)
	case err != nil:
		end()
		return nil, nil, err
	}
	return c, end, nil
}

// localAddress reads [ADDRESS:]PORT[/udp].
func localAddress(text string) (address, network string, err error) {
	place, network, named := strings.Cut(text, "/")
	if !named {
		network = "tcp"
	}
	host, port := "127.0.0.1", place
	if strings.Contains(place, ":") {
		if host, port, err = net.SplitHostPort(place); err != nil {
			return "", "", usage(fmt.Sprintf("%q is not [ADDRESS:]PORT", text), "for example 8080, or 0.0.0.0:8080 to let others in")
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n > 65535 || network != "tcp" && network != "udp" {
		return "", "", usage(fmt.Sprintf("%q is not a port", text), "a port is a number from 0 to 65535; 53/udp is one of UDP")
	}
	return net.JoinHostPort(host, port), network, nil
}

func (e *env) httpCommand() *cobra.Command {
	f := forwardFlags{wait: 15 * time.Second}
	return &cobra.Command{
		Use: "http DEVICE[:PORT]", Short: "Open a web server of another device at an address of this machine", Args: exactArgs(1),
		Long: "Make a web server of another device, port 80 if none is given, one of this machine's\nlocalhost, at a port that is free, and print its address, until interrupted.\n" + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			remote := args[0]
			if !strings.Contains(remote, ":") {
				remote += ":80"
			}
			return e.forward(cmd.Context(), "0", remote, f, func(fw control.Forward) {
				fmt.Fprintf(e.out, "http://%s/ is port %d of %s; Ctrl-C ends it\n", fw.Listening, fw.Port, fw.Name)
			})
		},
	}
}
