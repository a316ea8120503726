package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/internal/control"
)

// sendFlags are those of send and get.
type sendFlags struct {
	json      bool
	name      string
	dir       string
	overwrite bool
	wait      time.Duration
}

func (e *env) sendCommand() *cobra.Command {
	var f sendFlags
	cmd := &cobra.Command{
		Use: "send PATH... DEVICE|ROOM", Short: "Send files and folders to a device or a room", Args: atLeastArgs(2),
		Long: `Send files and folders to a device, or to all other members of a room. It is asked
there, unless it has allowed this device to send without asking: kith allow THIS-DEVICE
files. What arrives is in its inbox folder (kith inbox shows which). The offer is a line in
the chat with the device or room, which says how far it is.

To a room it ends when each member has it, has declined or was away for --wait. The exit
status is 0 only if all have it.

A transfer goes on by itself after any break, and where it stopped when the same is
sent again. Names, times and permissions are kept. The path - sends standard input, as
a file called by --name.
` + exitHelp,
		Example: "  kith send report.pdf photos laptop\n  pg_dump shop | kith send - laptop --name shop.sql",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.send(cmd.Context(), args[:len(args)-1], args[len(args)-1], f)
		},
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print events as JSON, one a line")
	cmd.Flags().StringVar(&f.name, "name", "stdin", "what standard input is `called` there")
	cmd.Flags().DurationVar(&f.wait, "wait", 10*time.Minute, "how `long` to try while there is no connection")
	return cmd
}

func (e *env) send(ctx context.Context, paths []string, device string, f sendFlags) error {
	req := control.Request{Op: control.OpSend, Device: device, Wait: f.wait}
	if len(paths) == 1 && paths[0] == "-" {
		req.Stream, req.Name = true, f.name
	} else {
		for _, p := range paths {
			abs, err := filepath.Abs(p)
			if err != nil {
				return err
			}
			if _, err := os.Lstat(abs); err != nil {
				return usage(fmt.Sprintf("%s cannot be read: %v", p, errors.Unwrap(err)), "the last argument is the device; kith send PATH... DEVICE")
			}
			req.Paths = append(req.Paths, abs)
		}
	}
	return e.carry(ctx, req, f)
}

// carry runs a transfer and shows it.
func (e *env) carry(ctx context.Context, req control.Request, f sendFlags) error {
	call, end, err := e.call(ctx, req)
	if err != nil {
		return err
	}
	defer end()
	if req.Stream {
		go pump(call) // ends with standard input, at the latest with the process
	}
	bar := bar{e: e, json: f.json}
	defer bar.clear()
	for {
		r, err := call.Next()
		if err != nil {
			bar.clear()
			if ctx.Err() != nil {
				if !req.Stream && !f.json {
					fmt.Fprintln(e.err, "stopped; the same command goes on from here")
				}
				return ctx.Err()
			}
			return err
		}
		if r.Done {
			bar.clear()
			return e.delivered(req, r, f)
		}
		if r.Conv != nil {
			return e.sendRoom(ctx, call, r.Conv, f)
		}
		if r.Transfer != nil {
			if err := bar.show(*r.Transfer); err != nil {
				return err
			}
		}
	}
}

// pump gives standard input to a transfer.
func pump(call *control.Call) {
	buf := make([]byte, 256<<10)
	for {
		n, err := os.Stdin.Read(buf)
		if n > 0 && call.Send(control.Input{Data: buf[:n]}) != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			_ = call.Send(control.Input{End: true})
			return
		}
		if err != nil {
			call.Close()
			return
		}
	}
}

func (e *env) delivered(req control.Request, r control.Reply, f sendFlags) error {
	t := r.Transfer
	if f.json {
		return e.printJSON(struct {
			Event string `json:"event"`
			*control.Transfer
			*control.Delivery
		}{"done", t, r.Delivery})
	}
	for _, n := range r.Delivery.Notes {
		fmt.Fprintln(e.err, "note:", n)
	}
	if req.Op == control.OpGet {
		what, how := achieved(t)
		fmt.Fprintf(e.out, "%s of %s in %s: %s\n", what, t.Device, r.Delivery.Dir, how)
		return nil
	}
	fmt.Fprintln(e.out, sentLine(t))
	return nil
}

// achieved says what a transfer has brought, and how fast.
func achieved(t *control.Transfer) (what, how string) {
	what = control.Count(t.Files)
	if t.Files == 1 {
		what = files.ShowName(t.Name)
	}
	took := max(time.Since(t.Started), time.Millisecond)
	rate := control.Bytes(int64(float64(t.Bytes-t.Resumed) / took.Seconds()))
	return what, fmt.Sprintf("%s in %s, %s/s", control.Bytes(t.Bytes), round(took), rate)
}

func sentLine(t *control.Transfer) string {
	what, how := achieved(t)
	return fmt.Sprintf("%s sent to %s: %s", what, t.Device, how)
}

func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}

func (e *env) getCommand() *cobra.Command {
	var f sendFlags
	cmd := &cobra.Command{
		Use: "get DEVICE:[SHARE[/PATH]]", Short: "Get files from a folder that a device shares, or list it", Args: exactArgs(1),
		Long: `Get a file or a folder that another device shares with this one (kith share FOLDER
THIS-DEVICE there). With nothing behind the colon, or with a slash at the end, list what
there is. It goes on by itself after any break.
` + exitHelp,
		Example: "  kith get laptop:\n  kith get laptop:photos/\n  kith get laptop:photos/2026 --to ~/pictures",
		RunE: func(cmd *cobra.Command, args []string) error {
			device, path, ok := strings.Cut(args[0], ":")
			if !ok || device == "" {
				return usage(fmt.Sprintf("%q is not DEVICE:PATH", args[0]), "for example: kith get laptop:photos/2026; kith get laptop: lists")
			}
			if path == "" || strings.HasSuffix(path, "/") {
				return e.listShare(cmd.Context(), device, strings.TrimSuffix(path, "/"), f)
			}
			dir, err := filepath.Abs(f.dir)
			if err != nil {
				return err
			}
			return e.carry(cmd.Context(), control.Request{Op: control.OpGet, Device: device, Path: path, Dir: dir, Overwrite: f.overwrite, Wait: f.wait}, f)
		},
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON, one object a line")
	cmd.Flags().StringVar(&f.dir, "to", ".", "the `folder` that it goes to")
	cmd.Flags().BoolVar(&f.overwrite, "overwrite", false, "replace what has the same name")
	cmd.Flags().DurationVar(&f.wait, "wait", 10*time.Minute, "how `long` to try while there is no connection")
	return cmd
}

func (e *env) listShare(ctx context.Context, device, path string, f sendFlags) error {
	r, err := e.do(ctx, control.Request{Op: control.OpList, Device: device, Path: path})
	if err != nil {
		return err
	}
	if f.json {
		return e.printJSON(r.Listed)
	}
	if len(r.Listed) == 0 {
		fmt.Fprintln(e.err, "nothing is there")
	}
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	for _, l := range r.Listed {
		if l.Folder {
			fmt.Fprintf(w, "%s/\t\t\n", l.Name)
		} else {
			fmt.Fprintf(w, "%s\t%s\t%s\n", l.Name, control.Bytes(l.Size), l.ModTime.Local().Format("2006-01-02 15:04"))
		}
	}
	return w.Flush()
}

// inboxFolder is where files go that other devices send: the folder that was configured,
// the user's folder of downloads if there is one, or else one in the state directory.
func (e *env) inboxFolder(dir string) string {
	if s, err := loadSettings(dir); err == nil && s.Inbox != "" {
		return s.Inbox
	}
	if home, err := os.UserHomeDir(); err == nil {
		downloads := filepath.Join(home, "Downloads")
		if fi, err := os.Stat(downloads); err == nil && fi.IsDir() {
			return downloads
		}
	}
	return filepath.Join(dir, "inbox")
}
