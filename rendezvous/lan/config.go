package lan

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/kithproject/kith/internal/netmon"
)

// Config is what New may be given. The zero value uses every interface but
// loopback.
type Config struct {
	Logger *slog.Logger // default: discard
	// Monitor says when interfaces change; the caller runs it. Default: one of
	// the Exchange's own.
	Monitor *netmon.Monitor
	// Port is the port number of the multicast groups. Default: Port. All
	// devices of a network must use the same.
	Port uint16
	// MDNSPort is the port number of mDNS. Default: 5353.
	MDNSPort uint16
	// DisableMulticast leaves kith's own groups out.
	DisableMulticast bool
	// DisableMDNS leaves mDNS out.
	DisableMDNS bool
	// IncludeLoopback also uses the loopback interface, so that two processes
	// of one machine meet with no network up.
	IncludeLoopback bool
	// Interfaces are the names of the interfaces to use, loopback among them.
	// Default: all that are up.
	Interfaces []string
	// HopLimit is how many hops kith's own multicast may travel: 1 is this network
	// segment, and each multicast router takes one. Default: 1; at most 255. It
	// is no promise: most networks and the internet route no multicast.
	HopLimit int
	// Groups says to which groups frames go, Scope how wide those of topics are.
	Groups Groups
	Scope  Scope
	// MulticastOnly sends every frame by multicast alone, and takes no other.
	// Addresses from a QR code, from mDNS or from earlier contact are not used.
	MulticastOnly bool
}

// withDefaults fills in what is not set. It errs for what cannot be.
func (c Config) withDefaults() (Config, error) {
	if c.MulticastOnly && c.DisableMulticast {
		return c, errors.New("lan: multicast alone, and no multicast: nothing is left")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Port == 0 {
		c.Port = Port
	}
	if c.MDNSPort == 0 {
		c.MDNSPort = mdnsPort
	}
	const mostHops = 255
	c.HopLimit = min(max(c.HopLimit, 1), mostHops)
	if c.Groups == GroupsAuto {
		c.Groups = GroupsFixed
		if c.MulticastOnly || c.HopLimit > 1 || c.Scope > ScopeLink {
			c.Groups = GroupsBoth
		}
	}
	switch c.Scope {
	case ScopeAuto:
		c.Scope = ScopeLink
		if c.HopLimit > 1 {
			c.Scope = ScopeSite
		}
	case ScopeLink, ScopeSite, ScopeOrganisation:
	default:
		return c, fmt.Errorf("lan: %d is not the number of a scope", c.Scope)
	}
	return c, nil
}
