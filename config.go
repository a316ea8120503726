package kith

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/waku"
)

// Config is what Open needs. The zero value is a device with its state in
// DefaultDir, named after the host, that meets others on the LAN and by the DHT.
type Config struct {
	// Dir is the state directory: identity, pairs and settings. Default:
	// DefaultDir(). It is made with mode 0700 and held by one process at a time.
	Dir string
	// Name is what other devices call this one, at most 64 bytes of UTF-8.
	// Default: the host's name. A name that was sent in an earlier pairing
	// stays with the device that learned it.
	Name string
	// Port is the UDP port of the tunnel. Default 0: the port of the last run
	// if it is free, else one that the system picks.
	Port uint16
	// Exchanges are the media to meet on besides the LAN; all are used at once.
	// The Node closes them.
	Exchanges []rendezvous.Exchange
	// Hubs are servers that help devices to meet and reach each other: each is a
	// medium to meet on, a STUN server and a relay.
	Hubs []hubaddr.Address
	// STUN are further servers (host:port) that say how this device looks from
	// outside.
	STUN []string
	// TURN are further relays.
	TURN []TURNServer
	// Waku are nodes of a Waku network to meet at, as multiaddrs such as
	// /dns4/hub.example/tcp/60000/p2p/ID; all are used at once.
	Waku []string
	// WakuNetwork says which Waku network they are of. Default: that of kith's hubs.
	WakuNetwork waku.Network
	// Relay says when relays are used. Default RelayAuto.
	Relay RelayPolicy
	// Lazy lets connections sleep while they have nothing to carry: no keepalive is
	// sent, and the next data waits until a path is found again, if the last one is
	// gone. Media to meet on stay connected. For devices that pay for each packet.
	Lazy bool
	// NoLanes carries everything through the tunnel, also what is large and could go
	// over a TLS connection of its own: files, and connections that carry some MiB.
	NoLanes bool
	// NoPortMapping leaves the router alone: no PCP, NAT-PMP and UPnP.
	NoPortMapping bool
	// NoStrangers has the doctor (Node.Diagnose) ask no servers but those of these settings:
	// neither network time (time.cloudflare.com, ptbtime1.ptb.de) nor example.com. Without it
	// a run that was asked for may, if they can tell what is wrong; those that nobody has
	// asked for never do.
	NoStrangers bool
	// NoLAN leaves the LAN out of the media to meet on.
	NoLAN bool
	// NoDHT leaves the distributed hash table out of the media to meet on.
	NoDHT bool
	// DHT are nodes (host:port) of a distributed hash table of one's own, such as
	// those of hubs in a network without the internet. Default: that of BitTorrent
	// (Mainline), which anybody can use and watch.
	DHT []string
	// Logger gets what a developer would want to see. Default: discard.
	Logger *slog.Logger
	// Loopback also offers this machine's loopback addresses, so that two
	// nodes on one machine meet with no network up.
	Loopback bool
}

// Version is this build's version, sent to paired devices and shown to people.
const Version = "0.1.0-dev"

// ErrInUse reports a state directory that another process holds.
var ErrInUse = errors.New("kith: another kith uses this state directory")

// DefaultDir returns the state directory of this user: $KITH_HOME is not read
// here (programs decide), so it is $XDG_STATE_HOME/kith or ~/.local/state/kith,
// and the user configuration directory on macOS and Windows. It errs if the
// system names no home directory.
func DefaultDir() (string, error) {
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return "", fmt.Errorf("kith: find the state directory: %w", err)
		}
		return filepath.Join(dir, "kith"), nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "kith"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("kith: find the state directory: %w", err)
	}
	return filepath.Join(home, ".local", "state", "kith"), nil
}

// withDefaults fills what the caller left out, and names the field that cannot
// be used.
func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		dir, err := DefaultDir()
		if err != nil {
			return c, err
		}
		c.Dir = dir
	}
	if c.Relay == "" {
		c.Relay = RelayAuto
	}
	if _, err := ParseRelayPolicy(string(c.Relay)); err != nil {
		return c, err
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil || host == "" {
			host = "device"
		}
		c.Name, _, _ = strings.Cut(host, ".")
	}
	if c.Name = pairing.CleanName(c.Name); c.Name == "" {
		return c, errors.New("kith: Config.Name has no printable character")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
