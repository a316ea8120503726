// Package cli is the kith command: one file per verb, each of which turns
// arguments into requests to a node (package control) and replies into lines
// for a person or, with --json, for a program.
//
// Rules: standard output carries the result, standard error the rest; a secret
// is never taken from the arguments; every error is one line, followed by a line
// that starts with "hint:" where there is something to do; colour is not used.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/control"
)

// The exit statuses of every command.
const (
	exitOK           = 0
	exitError        = 1
	exitUsage        = 2  // wrong arguments, unreadable code
	exitNotFound     = 3  // no such device; code expired, used, or nobody there
	exitRefused      = 4  // wrong code or check number, or the other side said no
	exitNotConnected = 5  // the device cannot be reached
	exitDenied       = 6  // the device has not allowed it
	exitInUse        = 7  // the state directory is in use or not usable
	exitSystem       = 8  // this system cannot do it, or not for this user
	exitLimit        = 9  // the doctor found that something does not work
	exitFault        = 10 // the doctor found that devices cannot connect
	exitInterrupted  = 130
)

const exitHelp = `
Exit status: 0 done, 1 error, 2 wrong usage or unreadable code, 3 not found (no
such device; code expired, used, or nobody there), 4 refused (wrong code or check
number, or the other side said no), 5 device not connected, 6 not allowed by the
other device, 7 state directory in use or not usable, 8 this system cannot do
it, or not for this user (kith up --tun), 9 the doctor found a limit, 10 the doctor
found a fault, 130 interrupted.`

// env is what a command may touch of the world.
type env struct {
	in       *os.File
	out, err io.Writer
	home     string // --home
	verbose  bool   // --verbose
	loopback bool   // --loopback
}

// Main runs the command of this process and returns its exit status.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e := &env{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	return e.run(ctx, os.Args[1:])
}

func (e *env) run(ctx context.Context, args []string) int {
	root := e.rootCommand()
	root.SetArgs(args)
	root.SetIn(e.in)
	root.SetOut(e.out)
	root.SetErr(e.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var other *exec.ExitError
	if errors.As(err, &other) { // of a program that was run, which has said why
		return other.ExitCode()
	}
	var found *doctorError
	if errors.As(err, &found) { // the report has said what
		return found.status()
	}
	return e.report(ctx, err)
}

func (e *env) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "kith",
		Short: "Pair two devices with a code; they know each other for good",
		Long: `kith pairs two devices with a code, and they know each other for good. From then
on they find each other, reconnect after every restart and every move, and carry
chat, files and ports through user-mode WireGuard. No account, no server, no root.

On one device:      kith pair
On the other one:   kith join
On both, to stay:   kith up
Then:               kith ping laptop
                    kith chat laptop
                    kith send report.pdf laptop
                    kith allow phone 80        (on laptop)
                    kith forward 8080 laptop:80
` + exitHelp,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&e.home, "home", "", "state `directory` (default $KITH_HOME, or the user's state directory)")
	root.PersistentFlags().BoolVarP(&e.verbose, "verbose", "v", false, "say on standard error what happens inside")
	root.PersistentFlags().BoolVar(&e.loopback, "loopback", false, "also meet and connect over this machine's loopback interface")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(err.Error(), cmd.CommandPath()+" --help shows the flags")
	})
	cobra.EnableCommandSorting = false
	for _, g := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Pair:", []*cobra.Command{e.pairCommand(), e.joinCommand(), e.nearbyCommand(), e.devicesCommand(), e.renameCommand(), e.unpairCommand()}},
		{"Introduce:", []*cobra.Command{e.introduceCommand(), e.introductionsCommand(), e.ownCommand(), e.verifyCommand()}},
		{"Connect:", []*cobra.Command{e.upCommand(), e.downCommand(), e.statusCommand(), e.pingCommand(), e.doctorCommand(), e.chatCommand()}},
		{"Rooms:", []*cobra.Command{e.roomCommand()}},
		{"Files:", []*cobra.Command{e.sendCommand(), e.inboxCommand(), e.getCommand(), e.shareCommand(), e.unshareCommand()}},
		{"Ports:", []*cobra.Command{e.forwardCommand(), e.exposeCommand(), e.proxyCommand(), e.sshCommand(), e.httpCommand(), e.dialCommand()}},
		{"Rights:", []*cobra.Command{e.rightsCommand(), e.allowCommand(), e.denyCommand(), e.blockCommand(), e.unblockCommand()}},
		{"This device:", []*cobra.Command{e.configCommand(), e.hubCommand(), e.demoCommand(), e.versionCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.title
			root.AddCommand(c)
		}
	}
	root.AddCommand(e.guardCommand())
	root.SetHelpCommandGroupID("This device:")
	return root
}

func (e *env) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(e.out, "kith", kith.Version)
			return err
		},
	}
}

// usage is an error in how a command was called.
func usage(text, hint string) error {
	return &control.Error{Kind: control.KindUsage, Text: text, Hint: hint}
}

func noArgs(cmd *cobra.Command, args []string) error { return exactArgs(0)(cmd, args) }

// exactArgs is cobra.ExactArgs with a message that shows the usage line.
func exactArgs(n int) cobra.PositionalArgs { return argsBetween(n, n) }

// atLeastArgs is cobra.MinimumNArgs with a message that shows the usage line.
func atLeastArgs(n int) cobra.PositionalArgs { return argsBetween(n, math.MaxInt) }

// atMostArgs is cobra.MaximumNArgs with a message that shows the usage line.
func atMostArgs(n int) cobra.PositionalArgs { return argsBetween(0, n) }

func argsBetween(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && len(args) <= most {
			return nil
		}
		bound, want := most, ""
		switch {
		case len(args) < least && least != most:
			bound, want = least, "at least "
		case least != most:
			want = "at most "
		}
		s := "s"
		if bound == 1 {
			s = ""
		}
		return usage(fmt.Sprintf("%s takes %s%d argument%s, not %d", cmd.Name(), want, bound, s, len(args)), "usage: "+cmd.UseLine())
	}
}

// report prints an error as one line and a hint, and returns the exit status.
func (e *env) report(ctx context.Context, err error) int {
	status, text, hint := classify(err)
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || status == exitError) {
		fmt.Fprintln(e.err, "interrupted")
		return exitInterrupted
	}
	fmt.Fprintln(e.err, "error:", oneLine(text))
	if hint != "" {
		fmt.Fprintln(e.err, "hint:", oneLine(hint))
	}
	return status
}

// oneLine is a text, of which others may have written a part, as one line that a terminal
// may have.
func oneLine(s string) string { return strings.Join(strings.Fields(chat.CleanText(s)), " ") }

func classify(err error) (status int, text, hint string) {
	var told *control.Error
	var mode *identity.PermissionError
	switch {
	case errors.As(err, &told):
		return statusOf(told.Kind), told.Text, told.Hint
	case errors.Is(err, control.ErrEnded):
		return exitError, err.Error(), "start it again: kith up"
	case errors.Is(err, kith.ErrInUse):
		return exitInUse, err.Error(), "stop it, or choose another directory with --home"
	case errors.As(err, &mode):
		return exitInUse, err.Error(), mode.Hint()
	case errors.Is(err, syscall.ENOSPC):
		return exitInUse, err.Error(), "the disk is full: free some space; nothing was lost"
	case errors.Is(err, syscall.EADDRINUSE):
		return exitError, err.Error(), "another process has the port: kith doctor names it, and kith config port 0 takes any free one"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return exitInUse, err.Error(), "the state directory must be writable for this user: choose one with --home"
	case strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage, err.Error(), "kith help shows the commands"
	}
	return exitError, err.Error(), ""
}

func statusOf(k control.Kind) int {
	switch k {
	case control.KindUsage:
		return exitUsage
	case control.KindNotFound:
		return exitNotFound
	case control.KindRefused:
		return exitRefused
	case control.KindNotConnected:
		return exitNotConnected
	case control.KindDenied:
		return exitDenied
	case control.KindSystem:
		return exitSystem
	}
	return exitError
}

// dir returns the state directory.
func (e *env) dir() (string, error) {
	dir := e.home
	if dir == "" {
		dir = os.Getenv("KITH_HOME")
	}
	if dir == "" {
		return kith.DefaultDir()
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	return abs, nil
}

func (e *env) logger() *slog.Logger {
	if !e.verbose {
		return nil
	}
	return slog.New(slog.NewTextHandler(e.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// config is what a node on the state directory is opened with, by the settings found
// there. What it opens, cfg.Exchanges, the node closes.
func (e *env) config() (kith.Config, error) {
	set, cfg, err := e.settled()
	if err != nil {
		return kith.Config{}, err
	}
	cfg.Exchanges, err = set.exchanges(e.logger())
	return cfg, err
}

// settled are the settings of the state directory, and what they come to; nothing is
// opened.
func (e *env) settled() (settings, kith.Config, error) {
	dir, err := e.dir()
	if err != nil {
		return settings{}, kith.Config{}, err
	}
	set, err := loadSettings(dir)
	if err != nil {
		return settings{}, kith.Config{}, err
	}
	cfg := kith.Config{
		Dir: dir, Name: set.Name, Port: set.Port, NoLAN: set.NoLAN, NoDHT: set.NoDHT, DHT: set.DHT,
		Logger: e.logger(), Loopback: e.loopback || set.Loopback,
	}
	err = set.reach(&cfg)
	return set, cfg, err
}

// open starts a node on the state directory.
func (e *env) open(ctx context.Context) (*kith.Node, error) {
	cfg, err := e.config()
	if err != nil {
		return nil, err
	}
	node, err := kith.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	for _, p := range node.Problems() {
		fmt.Fprintln(e.err, "warning:", p)
	}
	return node, nil
}

// call sends a request whose replies come one by one; the caller calls end.
func (e *env) call(ctx context.Context, req control.Request) (call *control.Call, end func(), err error) {
	c, gone, err := e.client(ctx)
	if err != nil {
		return nil, nil, err
	}
	if call, err = c.Call(ctx, req); err != nil {
		gone()
		return nil, nil, err
	}
	return call, func() { call.Close(); gone() }, nil
}

// client returns a client of the daemon, or of a node that lives as long as
// this command; the caller calls the function to end it.
func (e *env) client(ctx context.Context) (*control.Client, func(), error) {
	dir, err := e.dir()
	if err != nil {
		return nil, nil, err
	}
	c, err := control.Connect(ctx, dir)
	if err == nil {
		return c, func() {}, nil
	}
	if !errors.Is(err, control.ErrNoDaemon) {
		return nil, nil, err
	}
	node, err := e.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	srv, err := control.NewServer(node, e.inboxFolder(node.Dir()), orDiscard(e.logger()))
	if err != nil {
		return nil, nil, errors.Join(err, node.Close())
	}
	return control.Local(srv), func() {
		if err := errors.Join(srv.Close(), node.Close()); err != nil {
			fmt.Fprintln(e.err, "warning:", err)
		}
	}, nil
}

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// do makes one request on the daemon or a node of this command.
func (e *env) do(ctx context.Context, req control.Request) (control.Reply, error) {
	c, end, err := e.client(ctx)
	if err != nil {
		return control.Reply{}, err
	}
	defer end()
	return c.Do(ctx, req)
}

func (e *env) printJSON(v any) error {
	enc := json.NewEncoder(e.out)
	return enc.Encode(v)
}

// onTerminal reports whether a person reads standard output and types.
func (e *env) onTerminal() bool {
	out, ok := e.out.(*os.File)
	return ok && term.IsTerminal(int(out.Fd())) && term.IsTerminal(int(e.in.Fd()))
}
