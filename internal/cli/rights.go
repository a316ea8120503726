package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/control"
)

const whatHelp = `What it may:
  PORT, PORT/udp         reach this port of this machine's localhost (kith forward)
  listen:PORT[/udp]      make this port of localhost lead to a service of its own
                         (kith expose); listen:any is every port from 1024
  files                  send files without asking
Until then every port is denied, and each offer of files waits in kith inbox.`

func (e *env) allowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "allow DEVICE WHAT...", Short: "Let a device use ports of this machine, or send files unasked", Args: atLeastArgs(2),
		Long:    "Let a device do more here. It is remembered; kith deny takes it back, and kith\nrights shows it.\n\n" + whatHelp + "\n" + exitHelp,
		Example: "  kith allow phone 80\n  kith allow phone 53/udp files\n  kith allow phone listen:8080",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.setRights(cmd.Context(), args[0], args[1:], false)
		},
	}
}

func (e *env) denyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "deny DEVICE WHAT...", Short: "Take back what allow gave", Args: atLeastArgs(2),
		Long: "Take back what kith allow gave, and end the device's connections by such a port.\n\n" + whatHelp + "\n" + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.setRights(cmd.Context(), args[0], args[1:], true)
		},
	}
}

func (e *env) setRights(ctx context.Context, device string, what []string, take bool) error {
	change := control.Change{Take: take}
	for _, w := range what {
		if err := addRight(&change, w); err != nil {
			return err
		}
	}
	d, err := e.changeRights(ctx, device, change)
	if err != nil {
		return err
	}
	may := "may"
	if take {
		may = "may not"
	}
	for _, p := range change.Ports {
		fmt.Fprintf(e.out, "%s %s reach port %s of this machine.\n", d.Name, may, p)
	}
	for _, p := range change.Listen {
		fmt.Fprintf(e.out, "%s %s listen on %s of this machine.\n", d.Name, may, listenWords(p))
	}
	if change.Files {
		fmt.Fprintf(e.out, "%s %s send files here without asking.\n", d.Name, may)
	}
	return nil
}

// addRight reads what is given or taken: PORT[/udp], listen:PORT[/udp], listen:any[/udp]
// or files.
func addRight(change *control.Change, what string) error {
	if what == "files" {
		change.Files = true
		return nil
	}
	port, listen := strings.CutPrefix(what, "listen:")
	number, network, named := strings.Cut(port, "/")
	if !named {
		network = "tcp"
	}
	p := control.Port{Network: network, Number: kith.AnyPort}
	if !listen || number != "any" {
		n, err := parsePort(number)
		if err != nil && number != "" && strings.Trim(number, "0123456789") == "" {
			return err
		}
		if err != nil {
			return notARight(what)
		}
		p.Number = n
	}
	if network != "tcp" && network != "udp" {
		return notARight(what)
	}
	if listen {
		change.Listen = append(change.Listen, p)
	} else {
		change.Ports = append(change.Ports, p)
	}
	return nil
}

func notARight(what string) error {
	return usage(fmt.Sprintf("%q is nothing that can be allowed", what), "a port like 80 or 53/udp, listen:8080, or files")
}

// listenWords is a port on which a device may listen.
func listenWords(p control.Port) string {
	switch {
	case p.Number != kith.AnyPort:
		return "port " + p.String()
	case p.Network == "udp":
		return fmt.Sprintf("any UDP port from %d", kith.FirstAnyPort)
	}
	return fmt.Sprintf("any port from %d", kith.FirstAnyPort)
}

func (e *env) changeRights(ctx context.Context, device string, change control.Change) (*kith.Device, error) {
	r, err := e.do(ctx, control.Request{Op: control.OpRights, Device: device, Change: &change})
	if err != nil {
		return nil, err
	}
	return r.Device, nil
}

func (e *env) blockCommand() *cobra.Command {
	return &cobra.Command{
		Use: "block DEVICE", Short: "Have nothing to do with a device until unblock", Args: exactArgs(1),
		Long: `Have nothing to do with a device: its connections end at once, and it can neither
connect nor see whether this device is there. The pair and the device's rights are
kept; kith unblock gives them back.
` + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := e.changeRights(cmd.Context(), args[0], control.Change{Blocked: true})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(e.out, "%s is blocked. To end that: kith unblock %s\n", d.Name, d.Name)
			return err
		},
	}
}

func (e *env) unblockCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unblock DEVICE", Short: "End what block began", Args: exactArgs(1),
		Long: "End what kith block began. The device has the rights it had before.\n" + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := e.changeRights(cmd.Context(), args[0], control.Change{Blocked: true, Take: true})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(e.out, "%s is not blocked any more.\n", d.Name)
			return err
		},
	}
}

func (e *env) shareCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "share FOLDER DEVICE", Short: "Let a device get files from a folder", Args: exactArgs(2),
		Long: `Let a device get files from a folder, and list it, with kith get. Nothing outside the
folder can be named, and nothing in it can be changed. The device sees the share's
name and not where the folder is. kith unshare takes it back.
` + exitHelp,
		Example: "  kith share ~/photos phone",
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if fi, err := os.Stat(path); err != nil || !fi.IsDir() {
				return usage(path+" is not a folder", "name one that is there")
			}
			if name == "" {
				name = filepath.Base(path)
			}
			d, err := e.changeRights(cmd.Context(), args[1], control.Change{Share: &kith.Share{Name: name, Path: path}})
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%s may get files from %s. There: kith get %s:%s\n", d.Name, path, "THIS-DEVICE", name)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "as", "", "the `name` that the device sees (default: the folder's)")
	return cmd
}

func (e *env) unshareCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unshare NAME DEVICE", Short: "Take back what share gave", Args: exactArgs(2),
		Long: "Take back what kith share gave, and end what the device gets from there.\n" + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := e.changeRights(cmd.Context(), args[1], control.Change{Take: true, Share: &kith.Share{Name: args[0]}})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(e.out, "%s is not shared with %s any more.\n", args[0], d.Name)
			return err
		},
	}
}

func (e *env) rightsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "rights [DEVICE]", Short: "Show what each device may do here", Args: atMostArgs(1),
		Long: `Show what each device may do here. Every paired device may ping, chat and offer files.
More is given by kith allow and kith share, taken by kith deny and kith unshare, and
withheld by kith block.
` + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := e.do(cmd.Context(), control.Request{Op: control.OpStatus})
			if err != nil {
				return err
			}
			devices := r.Status.Devices
			if len(args) == 1 {
				i := slices.IndexFunc(devices, func(d kith.Device) bool {
					return d.Name == args[0] || len(args[0]) >= 4 && strings.HasPrefix(d.ID.String(), args[0])
				})
				if i < 0 {
					return &control.Error{Kind: control.KindNotFound, Text: fmt.Sprintf("no device is called %q", args[0]), Hint: "kith devices lists them"}
				}
				devices = devices[i : i+1]
			}
			if asJSON {
				all := make(map[string]kith.Rights, len(devices))
				for _, d := range devices {
					all[d.Name] = d.Rights
				}
				return e.printJSON(all)
			}
			w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
			for _, d := range devices {
				for i, line := range rightsLines(d.Rights) {
					name := d.Name
					if i > 0 {
						name = ""
					}
					fmt.Fprintf(w, "%s\t%s\n", name, line)
				}
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

func rightsLines(r kith.Rights) (lines []string) {
	if r.Blocked {
		lines = append(lines, "blocked: nothing of what follows holds")
	}
	files := "ping, chat, offer files"
	if r.Files {
		files = "ping, chat, send files without asking"
	}
	lines = append(lines, files)
	if list := portList(r); len(list) > 0 {
		lines = append(lines, "reach port "+strings.Join(list, ", ")+" of this machine")
	}
	if list := listenList(r); len(list) > 0 {
		words := make([]string, 0, len(list))
		for _, p := range list {
			words = append(words, listenWords(p))
		}
		lines = append(lines, "listen on "+strings.Join(words, ", ")+" of this machine")
	}
	for _, s := range r.Shares {
		lines = append(lines, fmt.Sprintf("get files from %s, as %s", s.Path, s.Name))
	}
	return lines
}

func portList(r kith.Rights) (list []string) {
	for _, p := range r.TCP {
		list = append(list, strconv.Itoa(int(p)))
	}
	for _, p := range r.UDP {
		list = append(list, strconv.Itoa(int(p))+"/udp")
	}
	return list
}

func listenList(r kith.Rights) (list []control.Port) {
	for _, p := range r.ListenTCP {
		list = append(list, control.Port{Network: "tcp", Number: p})
	}
	for _, p := range r.ListenUDP {
		list = append(list, control.Port{Network: "udp", Number: p})
	}
	return list
}

// mayReach is a device's rights in one word or few.
func mayReach(r kith.Rights) string {
	if r.Blocked {
		return "blocked"
	}
	list := portList(r)
	for _, p := range listenList(r) {
		list = append(list, "listen:"+p.String())
	}
	if r.Files {
		list = append(list, "files")
	}
	for _, s := range r.Shares {
		list = append(list, s.Name+"/")
	}
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}
