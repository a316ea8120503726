package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/control"
)

func (e *env) upCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Stay connected to all paired devices until stopped",
		Long: `Look for every paired device, stay connected to those that are there, and serve
the other commands. It runs until it is interrupted or kith down is called, and
prints what changes: devices that connect, disconnect or unpair, and connections
that were refused.
` + exitHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.up(cmd.Context(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print events as JSON, one a line")
	return cmd
}

func (e *env) up(ctx context.Context, asJSON bool) (err error) {
	node, err := e.openPatiently(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	srv, err := control.NewServer(node, e.inboxFolder(node.Dir()), orDiscard(e.logger()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Close()) }()
	events, stop := node.Events()
	defer stop()
	ln, err := control.Listen(node.Dir())
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // ends with srv.Close

	if err := e.hello(node, asJSON); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done(): // the ordinary way to end it
			return nil
		case <-srv.Stopped():
			return nil
		case err := <-served:
			return err
		case ev := <-events:
			if err := e.showEvent(ev, asJSON); err != nil {
				return err
			}
		}
	}
}

const (
	// inUsePatience is how long kith up waits for another command that works on the
	// state directory without a daemon.
	inUsePatience = 20 * time.Second
	inUseRetry    = 100 * time.Millisecond
)

// openPatiently opens the node. Another command may hold the state directory for
// a moment; another daemon holds it for good, and answers.
func (e *env) openPatiently(ctx context.Context) (*kith.Node, error) {
	dir, err := e.dir()
	if err != nil {
		return nil, err
	}
	said := false
	for end := time.Now().Add(inUsePatience); ; {
		node, err := e.open(ctx)
		if !errors.Is(err, kith.ErrInUse) || time.Now().After(end) {
			return node, err
		}
		if _, there := control.Connect(ctx, dir); there == nil {
			return nil, err
		}
		if !said {
			said = true
			fmt.Fprintln(e.err, "waiting for another kith command to end")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(inUseRetry):
		}
	}
}

func (e *env) hello(node *kith.Node, asJSON bool) error {
	st := node.Status()
	if asJSON {
		return e.printJSON(struct {
			Event  string      `json:"event"`
			Status kith.Status `json:"status"`
		}{"up", st})
	}
	fmt.Fprintf(e.out, "kith %s: %s (%s) is up, UDP port %d\n", kith.Version, st.Name, st.ID.Short(), st.Port)
	for _, r := range st.Rendezvous {
		line := r.Detail
		if r.Error != "" {
			line = r.Error
		}
		fmt.Fprintf(e.out, "meets on %s: %s\n", r.Name, line)
	}
	switch n := len(st.Devices); n {
	case 0:
		fmt.Fprintln(e.out, "no device is paired yet: kith pair shows a code for the other device")
	case 1:
		fmt.Fprintln(e.out, "looking for one device")
	default:
		fmt.Fprintf(e.out, "looking for %d devices\n", n)
	}
	return nil
}

func (e *env) showEvent(ev kith.Event, asJSON bool) error {
	if asJSON {
		return e.printJSON(ev)
	}
	line := fmt.Sprintf("%s  %s %s", ev.Time.Format(time.TimeOnly), ev.Device.Name, ev.Kind)
	if ev.Detail != "" {
		line += ": " + ev.Detail
	}
	_, err := fmt.Fprintln(e.out, line)
	return err
}

func (e *env) downCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop the kith up of this state directory", Args: noArgs,
		Long: "Stop the kith up that serves this state directory.\n" + exitHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := e.dir()
			if err != nil {
				return err
			}
			c, err := control.Connect(cmd.Context(), dir)
			if errors.Is(err, control.ErrNoDaemon) {
				return &control.Error{Kind: control.KindNotFound, Text: "kith up is not running for " + dir}
			}
			if err != nil {
				return err
			}
			if _, err := c.Do(cmd.Context(), control.Request{Op: control.OpStop}); err != nil {
				return err
			}
			_, err = fmt.Fprintln(e.out, "stopped")
			return err
		},
	}
}
