package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/internal/control"
)

// proxyAddress is where the proxy listens if nothing else is said.
const proxyAddress = "1080"

func (e *env) proxyCommand() *cobra.Command {
	var public bool
	cmd := &cobra.Command{
		Use: "proxy [[ADDRESS:]PORT]", Short: "Let any program reach NAME.kith, by SOCKS5 or HTTP", Args: atMostArgs(1),
		Long: `Serve SOCKS5 and HTTP at a port of this machine's localhost, 1080 if none is given,
until interrupted: a program that uses it as its proxy reaches the ports of all devices,
as laptop.kith:80. The other device must allow each port. Nothing but the paired devices
can be reached through it.
` + exitHelp,
		Example: "  kith proxy\n  curl --proxy socks5h://127.0.0.1:1080 http://laptop.kith/\n  curl --proxy http://127.0.0.1:1080 http://laptop.kith/",
		RunE: func(cmd *cobra.Command, args []string) error {
			local := proxyAddress
			if len(args) == 1 {
				local = args[0]
			}
			return e.proxy(cmd.Context(), local, public)
		},
	}
	cmd.Flags().BoolVar(&public, "public", false, "allow an address that others than this machine can reach")
	return cmd
}

func (e *env) proxy(ctx context.Context, local string, public bool) error {
	address, network, err := localAddress(local)
	if err != nil {
		return err
	}
	if network != "tcp" {
		return usage("a proxy listens on TCP", "name a port without /udp")
	}
	call, end, err := e.call(ctx, control.Request{Op: control.OpProxy, Address: address, Public: public})
	if err != nil {
		return err
	}
	defer end()
	return follow(ctx, call, func(r control.Reply) {
		if !r.Done {
			fmt.Fprintf(e.out, "%s is a proxy, SOCKS5 and HTTP, for NAME.kith; Ctrl-C ends it\n", r.Text)
		}
	})
}

func (e *env) dialCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "dial DEVICE:PORT", Short: "Connect standard input and output to a port of another device", Args: exactArgs(1),
		Long:    "Connect standard input and output to a TCP port of another device's localhost, which\nmust allow it. It is what ssh wants of a ProxyCommand.\n" + exitHelp,
		Example: "  ssh -o ProxyCommand='kith dial laptop:22' laptop",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.dial(cmd.Context(), args[0], wait)
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 15*time.Second, "how `long` to wait for the device")
	return cmd
}

func (e *env) dial(ctx context.Context, remote string, wait time.Duration) error {
	device, portText, err := net.SplitHostPort(remote)
	if err != nil {
		return usage(fmt.Sprintf("%q is not DEVICE:PORT", remote), "for example: kith dial laptop:22")
	}
	port, err := parsePort(portText)
	if err != nil {
		return err
	}
	c, end, err := e.askPort(ctx, device, control.Port{Network: "tcp", Number: port}, wait)
	if err != nil {
		return err
	}
	defer end()
	conn, err := c.Dial(ctx, control.Request{Device: device, Port: port, Wait: wait})
	if err != nil {
		return err
	}
	forward.Splice(ctx, conn, stdio{in: e.in, out: e.out})
	return nil
}

// stdio is standard input and output as a connection.
type stdio struct {
	net.Conn // nil: what is not here is not used
	in       *os.File
	out      io.Writer
}

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s stdio) Close() error                { return s.in.Close() }

// CloseWrite closes standard output.
func (s stdio) CloseWrite() error {
	if c, ok := s.out.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (e *env) sshCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ssh [USER@]DEVICE [SSH-ARGUMENT...]", Short: "Run ssh to another device", Args: atLeastArgs(1),
		Long: `Run the system's ssh to another device's port 22, through the tunnel. The other device
must allow it: kith allow THIS-DEVICE 22 there. What follows the device is given to ssh.
ssh knows the device's key under the name DEVICE.kith.
` + exitHelp,
		Example:            "  kith ssh laptop\n  kith ssh anna@laptop uptime",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "--help" || args[0] == "-h" {
				return cmd.Help()
			}
			return e.ssh(cmd.Context(), args[0], args[1:])
		},
	}
}

func (e *env) ssh(ctx context.Context, target string, args []string) error {
	user, device, named := strings.Cut(target, "@")
	if !named {
		user, device = "", target
	}
	if device == "" || strings.HasPrefix(target, "-") {
		return usage(fmt.Sprintf("%q is not [USER@]DEVICE", target), "for example: kith ssh anna@laptop")
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		return &control.Error{Kind: control.KindNotFound, Text: "ssh is not installed here", Hint: "install OpenSSH's client"}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := e.dir()
	if err != nil {
		return err
	}
	_, end, err := e.askPort(ctx, device, control.Port{Network: "tcp", Number: 22}, 15*time.Second)
	if err != nil {
		return err
	}
	end()
	command := []string{self, "--home", dir}
	if e.loopback {
		command = append(command, "--loopback")
	}
	command = append(command, "dial", net.JoinHostPort(device, strconv.Itoa(22)))
	for i, c := range command {
		command[i] = "'" + strings.ReplaceAll(strings.ReplaceAll(c, "'", `'\''`), "%", "%%") + "'"
	}
	list := []string{"-o", "ProxyCommand=" + strings.Join(command, " "), "-o", "HostKeyAlias=" + device + ".kith"}
	if user != "" {
		list = append(list, "-l", user)
	}
	run := exec.CommandContext(ctx, program, append(append(list, device+".kith"), args...)...)
	run.Stdin, run.Stdout, run.Stderr = e.in, e.out, e.err
	return run.Run()
}
