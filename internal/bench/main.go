// Command bench measures the data path: how fast one stream runs through a
// tunnel, and what that costs, beside the other ways to carry it.
//
//	go run ./internal/bench                      # as root, on Linux
//	go run ./internal/bench -rounds 9 -streams 8
//	go run ./internal/bench -ways ours -profile /tmp/p   # CPU profiles of both ends
//
// Two network namespaces are joined by a veth pair of MTU 1500; each end is a
// process of its own in one of them. The client writes blocks of 128 KiB for as
// long as it can, the server counts bytes. The ways take turns within a round, so
// that what else runs on the machine hits all of them, and medians are compared.
// CPU time is getrusage of both processes, which includes the kernel's work for
// them.
//
// The ways: tcp is the bare veth; tls is TLS 1.3 over it; kernel-tun is
// wireguard-go with a TUN device and the kernel's TCP; stock-netstack is
// wireguard-go with the netstack that comes with it; ours is package tunnel over
// a link.Socket, as a node has it; ours-std-bind is package tunnel over
// wireguard-go's own UDP bind.
//
// Four more ways leave the LAN: each end has a home behind a router that keeps
// ports (a NAT of the easy sort), and both routers are on one public segment with a
// hub. tcp-nats is bare TCP to a port that the one router forwards, ours-nats is
// ours through holes in both. ours-relay goes through the hub's TURN server: from
// the client's relay to the hole of the other; ours-relay-down the other way round,
// with the relay at the receiving end. Routers and hub have the same CPUs as the
// ends; tcp-nats shows what the routers cost, and the hub's CPU time is given apart.
//
// What programs see of it is measured with the kith command itself, in two namespaces:
//
//	go run ./internal/bench uses
//	go run ./internal/bench uses -rows lan,forward -rounds 1
//
// lan is one file over a TLS lane beside a plain copy over TLS, tunnel the same where no
// TCP gets through, beside one stream of the tunnel; lossy a file over 20 ms, 1 % loss and
// 300 Mbit/s; small many files beside tar; forward downloads from a web server over 64
// connections beside one; requests are small ones, 64 at once, over 20 ms.
//
// The exit status is 1 if a limit of report.go or uses.go is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/kithproject/kith/internal/wan"
)

// options are what the command line says.
type options struct {
	rounds  int
	streams int
	time    time.Duration // of one measurement
	warm    time.Duration // before it
	ways    []string
	profile string     // directory for CPU profiles; "" for none
	mtu     int        // of the veth pair, in bytes
	wan     wan.Config // what lies between the ends instead of the veth pair, if not zero
}

// errUnsupported says that nothing can be measured here.
var errUnsupported = errors.New("bench: the data path is measured on Linux, as root, with the command ip")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case sideCommand:
			err = runSide(os.Args[2:], os.Stdin, os.Stdout)
		case toolCommand:
			err = runTool(os.Args[2:], os.Stdout)
		case usesCommand:
			err = uses(ctx, os.Args[2:])
		default:
			err = path(ctx)
		}
		exit(err)
	}
	exit(path(ctx))
}

// exit says what went wrong. A machine where nothing can be measured is no failure.
func exit(err error) {
	switch {
	case errors.Is(err, errUnsupported):
		fmt.Fprintln(os.Stdout, err)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// usesCommand is the first argument for the table of uses.
const usesCommand = "uses"

// uses measures what programs see.
func uses(ctx context.Context, args []string) error {
	var opt appOptions
	flags := flag.NewFlagSet(usesCommand, flag.ExitOnError)
	flags.IntVar(&opt.rounds, "rounds", 3, "how often each row is measured")
	flags.DurationVar(&opt.time, "t", 4*time.Second, "length of one measurement of a forward")
	flags.Int64Var(&opt.size, "size", 4<<30, "of the large file, in bytes")
	flags.IntVar(&opt.files, "files", 100_000, "how many small files")
	rows := flags.String("rows", "", "what is measured: "+strings.Join(allRows(), ",")+" (default all)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if opt.rows, err = parseRows(*rows); err != nil {
		return err
	}
	res, err := measureUses(ctx, opt, os.Stderr)
	if err != nil {
		return err
	}
	if !res.write(os.Stdout) {
		return errMissed
	}
	return nil
}

// errMissed says that a limit was missed.
var errMissed = errors.New("bench: a limit was missed")

// path measures the data path.
func path(ctx context.Context) error {
	var opt options
	flag.IntVar(&opt.rounds, "rounds", 5, "how often each way is measured")
	flag.IntVar(&opt.streams, "streams", 1, "parallel streams")
	flag.DurationVar(&opt.time, "t", 4*time.Second, "length of one measurement")
	flag.DurationVar(&opt.warm, "warm", 700*time.Millisecond, "load before each measurement")
	flag.IntVar(&opt.mtu, "mtu", 1500, "MTU of the network between the ends, in bytes")
	flag.StringVar(&opt.profile, "profile", "", "directory for CPU profiles of both ends")
	rtt := flag.Duration("rtt", 0, "round trip of a long way between the ends, instead of the veth pair")
	flag.Float64Var(&opt.wan.Loss, "loss", 0, "share of packets that are lost there, 0 to 1")
	rate := flag.Float64("rate", 0, "Mbit/s that it carries in each direction; 0 for as much as this machine can")
	flag.DurationVar(&opt.wan.Queue, "queue", 40*time.Millisecond, "how long a packet may wait there")
	ways := flag.String("ways", strings.Join(allWays(), ","), "what is measured")
	flag.Parse()
	opt.wan.Delay, opt.wan.Rate, opt.wan.MTU = *rtt/2, *rate*1e6, opt.mtu
	var err error
	if opt.ways, err = parseWays(*ways); err != nil {
		return err
	}
	res, err := measure(ctx, opt, os.Stderr)
	if err != nil {
		return err
	}
	if !res.write(os.Stdout) {
		return errMissed
	}
	return nil
}
