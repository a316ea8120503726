package waku

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/rendezvous"
)

const (
	// DefaultCluster is the number of the cluster that kith's own nodes form. It is
	// in the range for networks of applications (16 to 65535).
	DefaultCluster = 19305
	maxShards      = 1024 // of a cluster
	application    = "kith"
	appVersion     = "1"
)

// A Network says which Waku network is used. The zero value is kith's own: static
// shard 0 of DefaultCluster.
type Network struct {
	// Cluster is the number of the cluster; 0 is DefaultCluster.
	Cluster uint16
	// Shards is how many shards the network has, 1 to 1024; the shard is then
	// computed from the content topic (autosharding). 0: Shard is used as it stands
	// (static sharding).
	Shards uint16
	// Shard is the number of a static shard, 0 to 1023.
	Shard uint16
}

func (n Network) withDefaults() Network {
	if n.Cluster == 0 {
		n.Cluster = DefaultCluster
	}
	return n
}

func (n Network) check() error {
	if n.Shards > maxShards || n.Shard >= maxShards || n.Shards > 0 && n.Shard > 0 {
		return fmt.Errorf("%w: a cluster has the shards 0 to 1023, and a shard is either computed or given", ErrConfig)
	}
	return nil
}

// shard returns the shard of a content topic.
func (n Network) shard(contentTopic string) (uint16, error) {
	if n.Shards == 0 {
		return n.Shard, nil
	}
	return autoshard(contentTopic, n.Shards)
}

// pubsub returns the pubsub topic on which a content topic is.
func (n Network) pubsub(contentTopic string) (string, error) {
	s, err := n.shard(contentTopic)
	if err != nil {
		return "", err
	}
	return shardTopic(n.Cluster, s), nil
}

// shards lists the shards of the network.
func (n Network) shards() []uint16 {
	if n.Shards == 0 {
		return []uint16{n.Shard}
	}
	out := make([]uint16, n.Shards)
	for i := range out {
		out[i] = uint16(i)
	}
	return out
}

// has reports whether a pubsub topic is one of the network's.
func (n Network) has(pubsub string) bool {
	rest, ok := strings.CutPrefix(pubsub, "/waku/2/rs/"+strconv.Itoa(int(n.Cluster))+"/")
	if !ok || len(rest) > 4 || len(rest) > 1 && rest[0] == '0' {
		return false
	}
	s, err := strconv.ParseUint(rest, 10, 16)
	if err != nil {
		return false
	}
	if n.Shards == 0 {
		return uint16(s) == n.Shard
	}
	return s < uint64(n.Shards)
}

// shardTopic names a static shard (RELAY-SHARDING).
func shardTopic(cluster, shard uint16) string {
	return fmt.Sprintf("/waku/2/rs/%d/%d", cluster, shard)
}

var errContentTopic = errors.New("not a content topic of the form /application/version/name/encoding")

// autoshard computes the shard of a content topic (RELAY-SHARDING, automatic
// sharding): SHA-256 of the application and its version modulo the number of
// shards.
func autoshard(contentTopic string, shards uint16) (uint16, error) {
	parts := strings.Split(contentTopic, "/")
	switch {
	case len(contentTopic) > maxTopic || parts[0] != "":
		return 0, errContentTopic
	case len(parts) == 5:
		parts = parts[1:]
	case len(parts) == 6:
		if parts[1] != "0" { // the only generation that is defined
			return 0, errContentTopic
		}
		parts = parts[2:]
	default:
		return 0, errContentTopic
	}
	for _, p := range parts {
		if p == "" {
			return 0, errContentTopic
		}
	}
	sum := sha256.Sum256([]byte(parts[0] + parts[1]))
	rest := uint64(0)
	for i := 0; i < len(sum); i += 4 {
		rest = (rest<<32 | uint64(binary.BigEndian.Uint32(sum[i:]))) % uint64(shards)
	}
	return uint16(rest), nil
}

// contentTopic names a rendezvous topic on Waku (23/WAKU2-TOPICS). Who knows the
// name cannot find the topic, nor what it is called elsewhere.
func contentTopic(t rendezvous.Topic) string {
	name := wire.Expand(t[:], "waku content topic")
	return "/" + application + "/" + appVersion + "/" + hex.EncodeToString(name[:rendezvous.TopicSize]) + "/proto"
}
