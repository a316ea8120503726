package cli

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/control"
	"github.com/kithproject/kith/link"
)

func (e *env) statusCommand() *cobra.Command {
	var asJSON, media bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this device, how it meets others, and who is connected",
		Long:  "Show this device, how it meets others, and who is connected over which path.\n" + exitHelp,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := e.do(cmd.Context(), control.Request{Op: control.OpStatus})
			if err != nil {
				return err
			}
			switch {
			case asJSON && media:
				return e.printJSON(r.Status.Rendezvous)
			case asJSON:
				return e.printJSON(struct {
					*kith.Status
					Interface *control.Interface `json:"interface,omitempty"`
					Mail      *control.Mail      `json:"mail,omitempty"`
				}{r.Status, r.Interface, r.Mail})
			case media:
				writeMedia(e.out, r.Status.Rendezvous)
				return nil
			}
			return e.showStatus(cmd.Context(), *r.Status, r.Interface, r.Mail)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	cmd.Flags().BoolVar(&media, "rendezvous", false, "show how each medium to meet on does, and what it carried")
	return cmd
}

func (e *env) showStatus(ctx context.Context, st kith.Status, i *control.Interface, m *control.Mail) error {
	fmt.Fprintf(e.out, "%s  %s  kith %s\n", st.Name, st.ID.Short(), st.Version)
	fmt.Fprintf(e.out, "  address in the tunnel  %s\n", st.Addr)
	fmt.Fprintf(e.out, "  UDP port               %d\n", st.Port)
	if i != nil {
		fmt.Fprintf(e.out, "  interface              %s, %s\n", i.Name, namesLine(i))
	}
	if st.NAT != "" {
		fmt.Fprintf(e.out, "  seen from outside      %s\n", st.NAT)
	}
	for _, m := range st.Mappings {
		fmt.Fprintf(e.out, "  the router has         %s\n", m)
	}
	for _, r := range st.Rendezvous {
		line := r.Detail
		if r.Error != "" {
			line = "not working: " + r.Error
		}
		fmt.Fprintf(e.out, "  meets on %-13s %s\n", r.Name, line)
	}
	showMail(e.out, m)
	for _, p := range st.Problems {
		fmt.Fprintf(e.err, "warning: %s\n", p)
	}
	dir, err := e.dir()
	if err != nil {
		return err
	}
	if _, err := control.Connect(ctx, dir); errors.Is(err, control.ErrNoDaemon) {
		fmt.Fprintln(e.err, "kith up is not running: nothing stays connected.")
	}
	if st.RelaySent+st.RelayReceived > 0 {
		fmt.Fprintf(e.out, "  through relays         %s sent, %s received\n", size(st.RelaySent), size(st.RelayReceived))
	}
	if len(st.Devices) == 0 {
		fmt.Fprintln(e.out, "no device is paired")
		return nil
	}
	fmt.Fprintln(e.out)
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	for _, d := range st.Devices {
		switch {
		case d.Connected && d.Path != nil:
			fmt.Fprintf(w, "%s\tconnected\t%s\tfor %s\n", d.Name, d.Path, since(d.Since))
			if d.Better != "" {
				fmt.Fprintf(w, "\t\tnot straight: %s\n", d.Better)
			}
			for _, line := range trafficLines(d.Traffic) {
				fmt.Fprintf(w, "\t\t%s\n", line)
			}
			if d.LaneSent+d.LaneReceived > 0 {
				fmt.Fprintf(w, "\t\tbeside the tunnel: %s sent, %s received\n", size(d.LaneSent), size(d.LaneReceived))
			}
		case d.State == kith.NotFinished:
			fmt.Fprintf(w, "%s\tnot finished\twaiting for it to confirm the pairing\t\n", d.Name)
		default:
			fmt.Fprintf(w, "%s\tnot connected\t%s\tfor %s\n", d.Name, d.Looking, since(d.Since))
		}
	}
	return w.Flush()
}

// namesLine says how programs find names in .kith.
func namesLine(i *control.Interface) string {
	if i.Names == "" {
		return "without names in .kith: " + i.Problem
	}
	return "names in .kith by " + i.Names
}

// trafficLines say what a device's tunnel carries: a line per direction while
// something flows, one for both while nothing does.
func trafficLines(t *link.Traffic) []string {
	if t == nil {
		return nil
	}
	line := func(way string, bytes uint64, rate, peak, loss float64) string {
		text := fmt.Sprintf("%s %s, now %s/s, best %s/s", size(bytes), way, size(uint64(rate)), size(uint64(peak)))
		if loss >= 0 {
			text += fmt.Sprintf(", %.2g %% lost", 100*loss)
		}
		return text
	}
	if t.SendRate+t.ReceiveRate == 0 {
		return []string{fmt.Sprintf("%s sent, %s received", size(t.Sent), size(t.Received))}
	}
	return []string{
		line("sent", t.Sent, t.SendRate, t.PeakSend, t.LossOut), line("received", t.Received, t.ReceiveRate, t.PeakReceive, t.LossIn),
	}
}

// size is a number of bytes for people.
func size(n uint64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1000_000_000:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

func rtt(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(100 * time.Microsecond).String()
}

func since(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}

func (e *env) pingCommand() *cobra.Command {
	var (
		asJSON bool
		direct bool
		count  int
		wait   time.Duration
	)
	cmd := &cobra.Command{
		Use:   "ping DEVICE",
		Short: "Measure the round trip to a device through the tunnel",
		Long: `Measure the round trip to a device through the tunnel, and show the path that is
used. It waits for the device to connect.
` + exitHelp,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 {
				return usage("--count must be 1 or more", "")
			}
			if direct && !cmd.Flags().Changed("count") {
				count = untilDirectCount
			}
			return e.ping(cmd.Context(), args[0], pingOptions{count: count, wait: wait, asJSON: asJSON, untilDirect: direct})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object per answer")
	cmd.Flags().BoolVar(&direct, "until-direct", false, "go on until the path leads through no relay, at most 30 times unless --count is given")
	cmd.Flags().IntVarP(&count, "count", "c", 4, "how many `times`")
	cmd.Flags().DurationVar(&wait, "wait", 15*time.Second, "how `long` to wait for the device and for each answer")
	return cmd
}

// untilDirectCount is how often ping --until-direct asks at most, about half a minute.
const untilDirectCount = 30

type pingOptions struct {
	count       int
	wait        time.Duration
	asJSON      bool
	untilDirect bool
}

func (e *env) ping(ctx context.Context, device string, opt pingOptions) error {
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	const pause = time.Second
	next := time.NewTimer(0)
	defer next.Stop()
	for i := range opt.count {
		select {
		case <-next.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		next.Reset(pause)
		r, err := c.Do(ctx, control.Request{Op: control.OpPing, Device: device, Wait: opt.wait})
		if err != nil {
			return err
		}
		if opt.asJSON {
			err = e.printJSON(r.Ping)
		} else {
			path := "path unknown"
			if r.Ping.Path != nil {
				path = r.Ping.Path.String()
			}
			_, err = fmt.Fprintf(e.out, "%s  %d  %s  %s\n", r.Ping.Device, i+1, rtt(r.Ping.RTT), path)
		}
		if err != nil {
			return err
		}
		if opt.untilDirect && r.Ping.Path != nil && r.Ping.Path.Kind != link.Relay {
			return nil
		}
	}
	if opt.untilDirect {
		return &control.Error{
			Kind: control.KindOther, Text: fmt.Sprintf("the path to %s still leads through a relay", device),
			Hint: "kith status says why",
		}
	}
	return nil
}
