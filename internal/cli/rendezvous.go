package cli

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// drivers are the media that can be turned off, with their settings.
func (s *settings) drivers() map[string]*bool {
	return map[string]*bool{"lan": &s.NoLAN, "dht": &s.NoDHT, "mqtt": &s.NoMQTT, "waku": &s.NoWaku}
}

func (e *env) rendezvousCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rendezvous [DRIVER on|off]",
		Short: "Show or choose the media that devices meet on",
		Long: `Show which media devices meet on, or turn one on or off. All that are on are used at
once, and the first that works wins.

  lan    multicast and mDNS on the local networks (on)
  dht    the distributed hash table of BitTorrent, or one of your own (on)
  mqtt   the brokers of kith config mqtt (on if there are any)
  waku   the nodes of kith config waku (on if there are any)

Hubs are added and removed with kith config hub.
` + exitHelp,
		Example: "  kith config rendezvous\n  kith config rendezvous dht off",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) == 2 {
				return nil
			}
			return usage("a driver and on or off are needed, or nothing", "for example: kith config rendezvous dht off")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return e.showDrivers()
			}
			return e.configure(cmd.Context(), func(s *settings) error {
				left := s.drivers()[args[0]]
				if left == nil {
					return usage(fmt.Sprintf("%q is no medium that can be turned on and off", args[0]), "lan, dht, mqtt and waku are; a hub: kith config hub")
				}
				return onOff(args[1], func(on bool) { *left = !on })
			})
		},
	}
}

func (e *env) showDrivers() error {
	dir, err := e.dir()
	if err != nil {
		return err
	}
	s, err := loadSettings(dir)
	if err != nil {
		return err
	}
	state := func(off bool) string {
		if off {
			return "off"
		}
		return "on"
	}
	table := "Mainline, BitTorrent's"
	if len(s.DHT) > 0 {
		table = "of " + strings.Join(s.DHT, ", ")
	}
	fmt.Fprintf(e.out, "lan   %-3s\n", state(s.NoLAN))
	fmt.Fprintf(e.out, "dht   %-3s  %s\n", state(s.NoDHT), table)
	fmt.Fprintf(e.out, "mqtt  %-3s  %d brokers\n", state(s.NoMQTT || len(s.MQTT) == 0), len(s.MQTT))
	fmt.Fprintf(e.out, "waku  %-3s  %d nodes\n", state(s.NoWaku || len(s.Waku) == 0), len(s.Waku))
	_, err = fmt.Fprintf(e.out, "hub   %-3s  %d hubs\n", state(len(s.Hubs) == 0), len(s.Hubs))
	return err
}

func (e *env) dhtCommand() *cobra.Command {
	var mainline bool
	boot := &cobra.Command{
		Use:   "bootstrap [HOST:PORT...]",
		Short: "Use a distributed hash table of one's own, which begins at these nodes",
		Long: `Use a distributed hash table of one's own instead of BitTorrent's, for example in a
network without the internet. All devices that are to meet need the same; each of
them then serves the others. A hub is such a node at UDP port 6881.
` + exitHelp,
		Example: "  kith config dht bootstrap hub.example:6881\n  kith config dht bootstrap --mainline",
		RunE: func(cmd *cobra.Command, args []string) error {
			if mainline == (len(args) > 0) {
				return usage("name nodes, or --mainline for BitTorrent's table", "for example: kith config dht bootstrap hub.example:6881")
			}
			for _, a := range args {
				if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
					return usage(fmt.Sprintf("%q is not HOST:PORT", a), "for example hub.example:6881")
				}
			}
			return e.configure(cmd.Context(), func(s *settings) error {
				s.DHT = slices.Clone(args)
				return nil
			})
		},
	}
	boot.Flags().BoolVar(&mainline, "mainline", false, "use BitTorrent's again")
	cmd := &cobra.Command{Use: "dht", Short: "Settings of the distributed hash table", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(boot)
	return cmd
}
