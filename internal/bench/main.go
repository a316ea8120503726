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
// The exit status is 1 if a limit of report.go is missed.
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
)

// options are what the command line says.
type options struct {
	rounds  int
	streams int
	time    time.Duration // of one measurement
	warm    time.Duration // before it
	ways    []string
	profile string // directory for CPU profiles; "" for none
	mtu     int    // of the veth pair, in bytes
}

// errUnsupported says that nothing can be measured here.
var errUnsupported = errors.New("bench: the data path is measured on Linux, as root, with the command ip")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == sideCommand {
		if err := runSide(os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var opt options
	flag.IntVar(&opt.rounds, "rounds", 5, "how often each way is measured")
	flag.IntVar(&opt.streams, "streams", 1, "parallel streams")
	flag.DurationVar(&opt.time, "t", 4*time.Second, "length of one measurement")
	flag.DurationVar(&opt.warm, "warm", 700*time.Millisecond, "load before each measurement")
	flag.IntVar(&opt.mtu, "mtu", 1500, "MTU of the network between the ends, in bytes")
	flag.StringVar(&opt.profile, "profile", "", "directory for CPU profiles of both ends")
	ways := flag.String("ways", strings.Join(allWays(), ","), "what is measured")
	flag.Parse()
	var err error
	if opt.ways, err = parseWays(*ways); err == nil {
		err = measureAndReport(ctx, opt)
	}
	switch {
	case errors.Is(err, errUnsupported):
		fmt.Fprintln(os.Stdout, err)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func measureAndReport(ctx context.Context, opt options) error {
	res, err := measure(ctx, opt, os.Stderr)
	if err != nil {
		return err
	}
	if !res.write(os.Stdout) {
		return errors.New("bench: a limit was missed")
	}
	return nil
}
