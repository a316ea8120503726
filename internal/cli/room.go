package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/control"
)

func (e *env) roomCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "room", Short: "Rooms: devices of several people that find each other by one code", Args: noArgs,
		Long: `A room is for devices that need not be paired: who has its code asks to be let in.
Its members see each other, exchange lines of chat, offer each other files, and
reach the ports that a member shares with the room. Whatever passes between two of
them goes straight from one to the other where that is possible, and always inside
a WireGuard tunnel of their own.

Alone the command lists the rooms that this device is in. The device that founded a
room hosts it: it lets others in while kith up runs there.
` + exitHelp,
		Example: "  kith room create friends --password\n  kith room join\n  kith room show friends\n  kith room share friends 8080",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := e.do(cmd.Context(), control.Request{Op: control.OpRooms})
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(r.Rooms)
			}
			return e.listRooms(r.Rooms)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.AddCommand(e.roomCreateCommand(), e.roomJoinCommand(), e.roomCodeCommand(), e.roomShowCommand())
	cmd.AddCommand(e.roomVerbs()...)
	return cmd
}

func (e *env) listRooms(rooms []kith.Room) error {
	if len(rooms) == 0 {
		fmt.Fprintln(e.err, "This device is in no room. To found one: kith room create; to enter one: kith room join")
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tID\tMEMBERS\tONLINE\tTHIS DEVICE")
	for _, r := range rooms {
		online := 0
		for _, m := range r.Members {
			if m.Online {
				online++
			}
		}
		role := "member"
		switch {
		case r.Closed:
			role = "closed"
		case r.Founder:
			role = "founder"
		case r.Host:
			role = "host"
		}
		if n := len(r.Waiting); n > 0 {
			role += fmt.Sprintf(", %d waiting", n)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", r.Name, r.ID.String()[:8], len(r.Members), online, role)
	}
	return w.Flush()
}

// roomFlags are those of create and join.
type roomFlags struct {
	password     bool
	passwordFile string
	admit        string
	allow        []string
	short, json  bool
	codeFile     string
	wait         time.Duration
}

func (e *env) roomCreateCommand() *cobra.Command {
	var f roomFlags
	cmd := &cobra.Command{
		Use: "create [NAME]", Short: "Found a room and show its code", Args: atMostArgs(1),
		Long: `Found a room with this device as its host, and show the code by which others ask to
be let in: twelve words, also as a QR code and a text. The code names this device's
key, so that nobody else can play the host.

Whom the host lets in:
  --admit approve   you are asked about each: kith room approve (default)
  --password        who knows the password; it is never sent, in no form
  --admit list      the devices named with --allow
  --admit open      whoever has the code

With --short there is also a code of seven digits, for those who know the password.
Three wrong passwords void it; the twelve words go on.

Without kith up the room is open as long as this command runs.
` + exitHelp,
		Example: "  kith room create friends\n  kith room create friends --password --short\n  kith room create lab --admit list --allow laptop --allow phone",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.createRoom(cmd.Context(), strings.Join(args, ""), f)
		},
	}
	cmd.Flags().BoolVar(&f.password, "password", false, "ask for a password, which all who join must know")
	cmd.Flags().StringVar(&f.passwordFile, "password-file", "", "read the password from a `file` (- for standard input)")
	cmd.Flags().StringVar(&f.admit, "admit", "", "`whom` to let in: approve, password, list or open")
	cmd.Flags().StringArrayVar(&f.allow, "allow", nil, "a `device` to let in, by its name here or its whole ID; with --admit list")
	cmd.Flags().BoolVar(&f.short, "short", false, "also a code of seven digits, with a password")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the room and its code as a JSON object")
	return cmd
}

func (e *env) createRoom(ctx context.Context, name string, f roomFlags) error {
	q := control.RoomRequest{Name: name, Mode: f.admit, Devices: f.allow, Short: f.short}
	if f.password || f.passwordFile != "" {
		var err error
		if q.Password, err = e.readPassword(ctx, f.passwordFile); err != nil {
			return err
		}
	}
	switch {
	case f.short && q.Password == "":
		return usage("a short code needs a password", "add --password")
	case f.admit == "password" && q.Password == "":
		return usage("there is no password", "add --password")
	case len(f.allow) > 0 && f.admit != "list":
		return usage("--allow belongs to --admit list", "")
	}
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	daemon := e.daemonRuns(ctx)
	r, err := c.Do(ctx, control.Request{Op: control.OpRoomMake, Room: &q})
	if err != nil {
		return err
	}
	if err := e.showInvite(*r.Room, *r.Invite, f.json); err != nil {
		return err
	}
	if daemon {
		return nil
	}
	if !f.json {
		fmt.Fprintln(e.err, "kith up does not run here: the room is open while this command runs. Ctrl-C ends it.")
	}
	return e.keepRoom(ctx, c, *r.Room, f.json)
}

// daemonRuns reports whether kith up serves the state directory.
func (e *env) daemonRuns(ctx context.Context) bool {
	dir, err := e.dir()
	if err != nil {
		return false
	}
	_, err = control.Connect(ctx, dir)
	return err == nil
}

// keepRoom shows what happens in a room, and asks about who wants to join, until ctx ends.
func (e *env) keepRoom(ctx context.Context, c *control.Client, r kith.Room, asJSON bool) error {
	call, err := c.Call(ctx, control.Request{Op: control.OpEvents})
	if err != nil {
		return err
	}
	defer call.Close()
	in := newLines(e.in)
	asked := make(map[string]bool)
	return follow(ctx, call, func(reply control.Reply) {
		ev := reply.Event
		if ev == nil || ev.Room == nil || ev.Room.ID != r.ID {
			return
		}
		_ = e.showEvent(*ev, asJSON)
		if asJSON || !e.onTerminal() {
			return
		}
		for _, g := range ev.Room.Waiting {
			if asked[g.ID.String()] {
				continue
			}
			asked[g.ID.String()] = true
			fmt.Fprintf(e.err, "Let %q (%s) in? [y/n] ", g.Name, g.ID.Short())
			line, err := in.next(ctx)
			if err != nil {
				return
			}
			verb := control.RoomDecline
			if answer := strings.ToLower(strings.TrimSpace(line)); answer == "y" || answer == "yes" {
				verb = control.RoomApprove
			}
			q := control.RoomRequest{Verb: verb, Room: r.ID.String(), Member: g.ID.String()}
			if _, err := c.Do(ctx, control.Request{Op: control.OpRoom, Room: &q}); err != nil {
				e.report(ctx, err)
			}
		}
	})
}

func (e *env) showInvite(r kith.Room, i control.RoomInvite, asJSON bool) error {
	if asJSON {
		return e.printJSON(struct {
			Event string    `json:"event"`
			Room  kith.Room `json:"room"`
			control.RoomInvite
		}{"code", r, i})
	}
	var b strings.Builder
	if e.onTerminal() { // above the words, which would scroll out of 24 rows
		picture, err := code.RenderTerminal(i.URI)
		if err != nil {
			return err
		}
		b.WriteString(picture + "\n")
	}
	fmt.Fprintf(&b, "Room %s. On another device run kith room join and enter this code:\n\n", r.Name)
	w := strings.Fields(i.Words)
	fmt.Fprintf(&b, "    %s\n    %s\n\n", strings.Join(w[:len(w)/2], " "), strings.Join(w[len(w)/2:], " "))
	if i.Short != "" {
		fmt.Fprintf(&b, "Or, with the password:   %s\n\n", i.Short)
	}
	b.WriteString(map[string]string{
		"approve":  "You are asked about each who enters it: kith room show " + r.Name + " lists them.\n",
		"password": "It lets in who also knows the password.\n",
		"list":     "It lets in the devices on your list.\n",
		"open":     "It lets in whoever has it: give it to nobody else.\n",
	}[r.Mode])
	_, err := io.WriteString(e.out, b.String())
	return err
}

func (e *env) roomCodeCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "code ROOM", Short: "Show the code of a room again", Args: exactArgs(1),
		Long: "Show the code of a room that this device is in. It is the same on every member.\n" + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := e.room(cmd.Context(), control.RoomRequest{Verb: control.RoomCode, Room: args[0]})
			if err != nil {
				return err
			}
			return e.showInvite(*r.Room, *r.Invite, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the room and its code as a JSON object")
	return cmd
}

// room makes one request about a room.
func (e *env) room(ctx context.Context, q control.RoomRequest) (control.Reply, error) {
	return e.do(ctx, control.Request{Op: control.OpRoom, Room: &q})
}

func (e *env) roomJoinCommand() *cobra.Command {
	var f roomFlags
	cmd := &cobra.Command{
		Use: "join", Short: "Enter a room by its code",
		Long: `Ask for the code of a room, in any of its forms: twelve words (their first four
letters are enough), seven digits, or the text of the QR code. If the room has a
password you are asked for it; a wrong one is told at once. The code comes from the
prompt, from standard input or from --code-file, never from the arguments, which
every user of this machine can read.

When standard input is not a terminal, its first line is the code and the second
one the password.
` + exitHelp,
		Example: "  kith room join\n  kith room join --code-file code.txt --password-file secret.txt",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usage("a code does not belong in the arguments: other users of this machine can see them, and the shell keeps them",
				"run kith room join alone and type the code when asked, or use --code-file FILE")
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return e.joinRoom(cmd.Context(), f) },
	}
	cmd.Flags().StringVar(&f.codeFile, "code-file", "", "read the code from a `file` (- for standard input)")
	cmd.Flags().StringVar(&f.passwordFile, "password-file", "", "read the password from a `file`")
	cmd.Flags().DurationVar(&f.wait, "wait", time.Minute, "how `long` to look for a host")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the room as a JSON object")
	return cmd
}

func (e *env) joinRoom(ctx context.Context, f roomFlags) error {
	in := newLines(e.in)
	text, err := e.readCode(ctx, pairFlags{codeFile: f.codeFile, json: f.json}, in)
	if err != nil {
		return err
	}
	if _, err := code.ParseRoom(text); err != nil { // said before a node is opened
		return codeError(err)
	}
	q := control.RoomRequest{}
	if f.passwordFile != "" {
		if q.Password, err = e.readPassword(ctx, f.passwordFile); err != nil {
			return err
		}
	}
	call, end, err := e.call(ctx, control.Request{Op: control.OpRoomJoin, Code: text, Room: &q, Wait: f.wait})
	if err != nil {
		return err
	}
	defer end()
	e.roomStep(f, "looking for a host of the room")
	for {
		r, err := call.Next()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		if r.Room != nil {
			return e.joined(ctx, *r.Room, f)
		}
		switch r.Step {
		case "contact":
			e.roomStep(f, "found one; proving the code")
		case "waiting":
			e.roomStep(f, "the host is asked to let this device in")
		case "need-password", "wrong-password":
			if err := e.givePassword(ctx, call, in, f, r.Step == "wrong-password"); err != nil {
				return err
			}
		}
	}
}

func (e *env) roomStep(f roomFlags, text string) {
	if !f.json {
		fmt.Fprintf(e.err, "… %s\n", text)
	}
}

func (e *env) givePassword(ctx context.Context, call *control.Call, in *lines, f roomFlags, wrong bool) error {
	refused := &control.Error{Kind: control.KindRefused, Text: "the password is wrong", Hint: "ask for it again; a few wrong ones void a short code"}
	if wrong && (f.passwordFile != "" || !e.onTerminal()) {
		return refused
	}
	var text string
	var err error
	if e.onTerminal() {
		if wrong {
			fmt.Fprintln(e.err, "This password is wrong.")
		}
		text, err = e.readPassword(ctx, "")
	} else if text, err = in.next(ctx); errors.Is(err, io.EOF) {
		return usage("the room has a password, and none was given", "use --password-file, or give it as the second line of standard input")
	}
	if err != nil {
		return err
	}
	_ = call.Send(control.Input{Text: strings.TrimRight(text, "\r\n")}) // where it ended meanwhile, the next reply says why
	return nil
}

func (e *env) joined(ctx context.Context, r kith.Room, f roomFlags) error {
	if f.json {
		return e.printJSON(r)
	}
	fmt.Fprintf(e.out, "This device is in the room %s.\n", r.Name)
	if !e.daemonRuns(ctx) {
		fmt.Fprintln(e.out, "To stay in touch with its members run kith up.")
	}
	return nil
}
