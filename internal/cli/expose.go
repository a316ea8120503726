package cli

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/internal/control"
)

func (e *env) exposeCommand() *cobra.Command {
	var f forwardFlags
	cmd := &cobra.Command{
		Use:   "expose [[HOST:]PORT[/udp] DEVICE[:PORT]]",
		Short: "Make a service of this machine a port of another device's localhost",
		Long: `Make a service of this machine a port of another device's localhost, until
interrupted; with --keep for good, as long as kith up runs here and there.
Programs on the other device then open 127.0.0.1:PORT and reach HOST:PORT as
this machine does. HOST is localhost, and the device's PORT the same, unless they
are given. It goes on by itself when the device comes back.

The other device must allow it: kith allow THIS-DEVICE listen:PORT there. It
gets no right to anything else here. Alone the command lists what is exposed,
and which ports of this machine other devices have.
` + exitHelp,
		Example: "  kith expose 3000 laptop:8080\n  kith expose 5353/udp laptop --keep\n  kith expose 192.168.1.20:80 laptop:8081\n  kith expose --remove laptop:8080",
		Args:    atMostArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.remove && len(args) == 1:
				return e.unexpose(cmd.Context(), args[0])
			case len(args) == 0 && !f.remove:
				return e.listExposed(cmd.Context(), f.json)
			case len(args) == 2 && !f.remove:
				return e.expose(cmd.Context(), args[0], args[1], f)
			}
			return usage("what is to be exposed?", "usage: "+cmd.UseLine())
		},
	}
	f.register(cmd, "end what is exposed at DEVICE:PORT[/udp]", "list as a JSON object")
	return cmd
}

func (e *env) expose(ctx context.Context, service, remote string, f forwardFlags) error {
	req, err := exposeRequest(service, remote)
	if err != nil {
		return err
	}
	req.Keep, req.Wait = f.keep, f.wait
	call, end, err := e.call(ctx, req)
	if err != nil {
		return err
	}
	defer end()
	began := false
	return follow(ctx, call, func(r control.Reply) {
		switch {
		case len(r.Forwards) == 1:
			e.showExposed(r.Forwards[0], began, r.Done)
		case r.Text != "":
			fmt.Fprintln(e.err, "connection failed:", oneLine(r.Text))
		}
		began = true
	})
}

// showExposed says how an exposure does: at its beginning, and when that changes.
func (e *env) showExposed(fw control.Forward, again, kept bool) {
	port := control.Port{Network: string(fw.Protocol), Number: fw.Port}
	switch {
	case fw.Err != "":
		fmt.Fprintln(e.err, "interrupted:", oneLine(fw.Err))
		if fw.Hint != "" {
			fmt.Fprintln(e.err, "hint:", oneLine(fw.Hint))
		}
	case again:
		fmt.Fprintf(e.err, "%s listens on port %s again\n", fw.Name, port)
	case kept:
		fmt.Fprintf(e.out, "Port %s of %s leads to %s here from now on, while kith up runs.\n", port, fw.Name, fw.Address)
	default:
		fmt.Fprintf(e.out, "port %s of %s leads to %s here; Ctrl-C ends it\n", port, fw.Name, fw.Address)
	}
}

// exposeRequest reads [HOST:]PORT[/udp] and DEVICE[:PORT].
func exposeRequest(service, remote string) (control.Request, error) {
	address, network, err := localAddress(service)
	if err != nil {
		return control.Request{}, err
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return control.Request{}, err
	}
	port, err := parsePort(portText)
	if err != nil {
		return control.Request{}, err
	}
	if place, _, _ := strings.Cut(service, "/"); !strings.Contains(place, ":") {
		host = "localhost"
	}
	device, there, named := strings.Cut(remote, ":")
	req := control.Request{
		Op: control.OpExpose, Device: device, Network: network, Port: port,
		Address: net.JoinHostPort(host, strconv.Itoa(int(port))),
	}
	if device == "" || named && there == "" {
		return control.Request{}, usage(fmt.Sprintf("%q is not DEVICE[:PORT]", remote), "for example: kith expose 3000 laptop:8080")
	}
	if named {
		if req.Port, err = exposedPort(there, network); err != nil {
			return control.Request{}, err
		}
	}
	return req, nil
}

// exposedPort reads PORT, behind which the network may stand once more.
func exposedPort(text, network string) (uint16, error) {
	number, named, has := strings.Cut(text, "/")
	if has && named != network {
		return 0, usage(fmt.Sprintf("a port of %s cannot become one of %s", network, named), "for example: kith expose 5353/udp laptop:5353")
	}
	return parsePort(number)
}

func (e *env) unexpose(ctx context.Context, remote string) error {
	i := strings.LastIndexByte(remote, ':')
	if i < 1 {
		return usage(fmt.Sprintf("%q is not DEVICE:PORT[/udp]", remote), "kith expose lists what is exposed")
	}
	number, network, named := strings.Cut(remote[i+1:], "/")
	if !named {
		network = "tcp"
	}
	port, err := parsePort(number)
	if err != nil {
		return err
	}
	r, err := e.do(ctx, control.Request{Op: control.OpUnexpose, Device: remote[:i], Port: port, Network: network})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "Nothing is exposed at port %s of %s any more.\n", control.Port{Network: network, Number: port}, r.Device.Name)
	return nil
}

func (e *env) listExposed(ctx context.Context, asJSON bool) error {
	r, err := e.do(ctx, control.Request{Op: control.OpExposed})
	if err != nil {
		return err
	}
	if asJSON {
		return e.printJSON(struct {
			Exposed []control.Forward `json:"exposed"`
			Here    []control.Hosted  `json:"here"`
		}{append([]control.Forward{}, r.Forwards...), append([]control.Hosted{}, r.Hosted...)})
	}
	if len(r.Forwards)+len(r.Hosted) == 0 {
		fmt.Fprintln(e.err, "Nothing is exposed. For example: kith expose 3000 laptop:8080")
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	if len(r.Forwards) > 0 {
		fmt.Fprintln(w, "THERE\tLEADS TO\tKEPT\tCONNECTIONS\tSTATE")
	}
	for _, f := range r.Forwards {
		state, kept := "listening", "-"
		switch {
		case f.Err != "":
			state = oneLine(f.Err)
		case f.Listening == "":
			state = "asking"
		case f.LastFailure != "":
			state = "last failure: " + oneLine(f.LastFailure)
		}
		if f.Kept {
			kept = "kept"
		}
		port := control.Port{Network: string(f.Protocol), Number: f.Port}
		fmt.Fprintf(w, "%s:%s\t%s\t%s\t%d of %d\t%s\n", f.Name, port, f.Address, kept, f.Open, f.Total, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Hosted) > 0 {
		fmt.Fprintln(w, "HERE\tLEADS TO\tCONNECTIONS")
	}
	for _, h := range r.Hosted {
		fmt.Fprintf(w, "localhost:%s\t%s\t%d of %d\n", control.Port{Network: string(h.Protocol), Number: h.Port}, h.Device, h.Open, h.Total)
	}
	return w.Flush()
}
