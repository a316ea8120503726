package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/internal/control"
)

func (e *env) forwardCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "forward [ADDRESS:]PORT DEVICE:PORT",
		Short: "Make a port of another device's localhost a port of this machine",
		Long: `Make a TCP port of another device's localhost a port of this machine, until
interrupted. The other device must allow it: kith allow THIS-DEVICE PORT there.
The local port listens on localhost unless an address is given; port 0 lets the
system pick one.
` + exitHelp,
		Example: "  kith forward 8080 laptop:80",
		Args:    exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.forward(cmd.Context(), args[0], args[1], wait)
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 15*time.Second, "how `long` to wait for the device")
	return cmd
}

func (e *env) forward(ctx context.Context, local, remote string, wait time.Duration) error {
	i := strings.LastIndexByte(remote, ':')
	if i < 1 {
		return usage(fmt.Sprintf("%q is not DEVICE:PORT", remote), "for example: kith forward 8080 laptop:80")
	}
	device := remote[:i]
	port, err := parsePort(remote[i+1:])
	if err != nil {
		return err
	}
	address, err := localAddress(local)
	if err != nil {
		return err
	}
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = c.Do(ctx, control.Request{Op: control.OpAsk, Device: device, Port: port, Wait: wait})
	if err := e.explainAsk(err, device, port); err != nil {
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return &control.Error{Kind: control.KindOther, Text: "cannot listen: " + err.Error(), Hint: "choose another local port, or 0 for any that is free"}
	}
	fmt.Fprintf(e.out, "%s is port %d of %s; Ctrl-C ends it\n", ln.Addr(), port, device)
	return forward.Serve(ctx, ln,
		func(ctx context.Context) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, wait)
			defer cancel()
			return c.Dial(ctx, control.Request{Device: device, Port: port, Wait: wait})
		},
		func(err error) { fmt.Fprintln(e.err, "connection failed:", oneLine(err.Error())) },
	)
}

// explainAsk turns the other device's answer into what to do. That nothing
// listens there yet is only a warning: it may come later.
func (e *env) explainAsk(err error, device string, port uint16) error {
	var told *control.Error
	if !errors.As(err, &told) {
		return err
	}
	switch {
	case told.Kind == control.KindDenied:
		return &control.Error{
			Kind: control.KindDenied, Text: fmt.Sprintf("%s does not allow this device to reach its port %d", device, port),
			Hint: fmt.Sprintf("on %s run: kith allow THIS-DEVICE %d (kith devices there shows its name)", device, port),
		}
	case told.Text == forward.ErrClosed.Error():
		fmt.Fprintf(e.err, "warning: nothing listens on port %d of %s at the moment\n", port, device)
		return nil
	}
	return err
}

func localAddress(text string) (string, error) {
	host, port := "127.0.0.1", text
	if strings.Contains(text, ":") {
		var err error
		if host, port, err = net.SplitHostPort(text); err != nil {
			return "", usage(fmt.Sprintf("%q is not [ADDRESS:]PORT", text), "for example 8080, or 0.0.0.0:8080 to let others in")
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n > 65535 {
		return "", usage(fmt.Sprintf("%q is not a port", port), "a port is a number from 0 to 65535")
	}
	return net.JoinHostPort(host, port), nil
}
