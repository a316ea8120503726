package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/rendezvous/waku"
)

// wakuNetwork is the Waku network of the settings.
func (s settings) wakuNetwork() waku.Network {
	return waku.Network{Cluster: s.WakuCluster, Shards: s.WakuShards, Shard: s.WakuShard}
}

func (e *env) wakuCommand() *cobra.Command {
	var (
		network waku.Network
		remove  bool
	)
	cmd := &cobra.Command{
		Use:   "waku NODE...",
		Short: "Also meet at nodes of a Waku network",
		Long: `Also meet at nodes of a Waku network, such as hubs that run with --waku. A NODE is a
multiaddr: /dns4/HOST/tcp/PORT/p2p/ID, with /ws or /wss behind the port for a
WebSocket, and /ip4, /ip6 or /dns in the place of /dns4. Without /p2p/ID any node is
taken that answers there. Up to eight are all used at once; they see that somebody
meets, never who or what.

Nodes of other networks than that of hubs need its cluster, and its number of shards
or one shard; these count for all nodes. Networks that ask for RLN proofs, such as
cluster 1, cannot be used.
` + exitHelp,
		Example: "  kith config waku /dns4/hub.example/tcp/60000/p2p/12D3Koo…\n" +
			"  kith config waku /ip4/192.0.2.7/tcp/60000 --cluster 16 --shards 8\n" +
			"  kith config waku --remove /ip4/192.0.2.7/tcp/60000",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !wakuNetworkGiven(cmd) {
				return usage("a node's multiaddr is needed", "for example /dns4/hub.example/tcp/60000; kith hub --waku prints its own")
			}
			if remove && wakuNetworkGiven(cmd) {
				return usage("--remove only takes nodes away", "set the network in a command of its own")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.configure(cmd.Context(), func(s *settings) error {
				if remove {
					return s.removeWaku(args)
				}
				return s.addWaku(args, network, wakuNetworkGiven(cmd))
			})
		},
	}
	fl := cmd.Flags()
	fl.Uint16Var(&network.Cluster, "cluster", 0, "`number` of the network (0: that of hubs)")
	fl.Uint16Var(&network.Shards, "shards", 0, "`number` of its shards, of which one is computed (0: see --shard)")
	fl.Uint16Var(&network.Shard, "shard", 0, "`number` of the shard that is used")
	fl.BoolVar(&remove, "remove", false, "no longer meet there")
	return cmd
}

func wakuNetworkGiven(cmd *cobra.Command) bool {
	return slices.ContainsFunc([]string{"cluster", "shards", "shard"}, cmd.Flags().Changed)
}

// addWaku adds nodes, and takes another network if one is given.
func (s *settings) addWaku(nodes []string, network waku.Network, given bool) error {
	for _, a := range nodes {
		if err := waku.CheckAddress(a); err != nil {
			return usage(fmt.Sprintf("%q is not a Waku node's address: %v", a, err), "for example /dns4/hub.example/tcp/60000; kith hub --waku prints its own")
		}
		if !slices.Contains(s.Waku, a) {
			s.Waku = append(s.Waku, a)
		}
	}
	if given {
		s.WakuCluster, s.WakuShards, s.WakuShard = network.Cluster, network.Shards, network.Shard
	}
	err := waku.CheckNodes(s.Waku, s.wakuNetwork())
	if errors.Is(err, waku.ErrConfig) {
		return usage(err.Error(), "kith config shows what is set; --remove takes nodes away")
	}
	return err
}

func (s *settings) removeWaku(nodes []string) error {
	for _, a := range nodes {
		i := slices.Index(s.Waku, a)
		if i < 0 {
			return usage(a+" is not among the Waku nodes", "kith config shows them")
		}
		s.Waku = slices.Delete(s.Waku, i, i+1)
	}
	return nil
}
