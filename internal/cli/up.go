package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/internal/control"
	"github.com/kithproject/kith/internal/netif"
)

func (e *env) upCommand() *cobra.Command {
	var asJSON, tun bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Stay connected to all paired devices until stopped",
		Long: `Look for every paired device, stay connected to those that are there, and serve
the other commands. It runs until it is interrupted or kith down is called, and
prints what changes: devices that connect, disconnect or unpair, and connections
that were refused.

With --tun, which needs root or CAP_NET_ADMIN on Linux, any program reaches the
devices by their addresses and by NAME.kith, through a network interface (kith0)
that is gone when kith up ends: docs/tun.md.
` + exitHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.up(cmd.Context(), asJSON, tun) },
	}
	cmd.Flags().BoolVar(&tun, "tun", false, "also make a network interface to the devices (Linux, root)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print events as JSON, one a line")
	return cmd
}

func (e *env) up(ctx context.Context, asJSON, tun bool) (err error) {
	if tun {
		if err := control.CheckInterface(); err != nil {
			return err
		}
	}
	if err := netif.Mend(); err != nil {
		fmt.Fprintln(e.err, "warning:", oneLine(err.Error()))
	}
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
	if err := e.keepMail(srv); err != nil {
		return err
	}
	events, stop := node.Events()
	defer stop()
	ln, err := control.Listen(node.Dir())
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // ends with srv.Close

	var inter *control.Interface
	if tun {
		if inter, err = e.openInterface(ctx, srv); err != nil {
			return err
		}
	}
	if err := e.hello(node, inter, asJSON); err != nil {
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
		case err := <-srv.InterfaceFailed():
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

func (e *env) hello(node *kith.Node, i *control.Interface, asJSON bool) error {
	st := node.Status()
	if asJSON {
		return e.printJSON(struct {
			Event     string             `json:"event"`
			Status    kith.Status        `json:"status"`
			Interface *control.Interface `json:"interface,omitempty"`
		}{"up", st, i})
	}
	fmt.Fprintf(e.out, "kith %s: %s (%s) is up, UDP port %d\n", kith.Version, st.Name, st.ID.Short(), st.Port)
	if i != nil {
		fmt.Fprintf(e.out, "interface %s, %s\n", i.Name, namesLine(i))
	}
	for _, r := range st.Rendezvous {
		line := r.Detail
		if r.Error != "" {
			line = r.Error
		}
		fmt.Fprintf(e.out, "meets on %s: %s\n", r.Name, line)
	}
	if _, received := node.Introductions(); slices.ContainsFunc(received, func(r kin.Received) bool { return r.State == kin.EndDelivered }) {
		fmt.Fprintln(e.out, "an introduction waits for your answer: kith introductions")
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

// guardName is the command that calls netif.Guard.
const guardName = "tun-guard"

// openInterface makes the interface of kith up --tun. Without names it goes on.
func (e *env) openInterface(ctx context.Context, srv *control.Server) (*control.Interface, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	i, err := srv.OpenInterface(ctx, []string{self, guardName})
	if err != nil {
		return nil, err
	}
	if i.Problem != "" {
		fmt.Fprintln(e.err, "warning: names in .kith work only through kith proxy:", oneLine(i.Problem))
	}
	return &i, nil
}

// guardCommand is what kith up --tun runs beside itself.
func (e *env) guardCommand() *cobra.Command {
	return &cobra.Command{
		Use: guardName + " FILE RUN", Hidden: true, Args: exactArgs(2), Short: "Bring a file back when kith up --tun is killed",
		RunE: func(_ *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // its end is that of kith up
			return netif.Guard(e.in, args[0], args[1])
		},
	}
}

func (e *env) showEvent(ev kith.Event, asJSON bool) error {
	if asJSON {
		return e.printJSON(ev)
	}
	if ev.Kind == kith.EventRights && ev.Detail == "" {
		ev.Detail = "now " + mayReach(ev.Device.Rights)
	}
	line := fmt.Sprintf("%s  %s %s", ev.Time.Format(time.TimeOnly), ev.Device.Name, ev.Kind)
	if ev.Room != nil {
		line = fmt.Sprintf("%s  %s", ev.Time.Format(time.TimeOnly), roomEvent(ev))
		ev.Detail = ""
	}
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
