package doctor

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// Names lists what these settings and devices tell of who somebody is, for Pseudonyms:
// names and IDs of devices, hosts of servers and the users there, the state directory,
// and interfaces that somebody has named.
func (e *Env) Names() (out []Name) {
	out = append(out, Name{e.Dir, "folder"})
	for _, p := range e.Peers {
		out = append(out, Name{p.Name, "device"}, Name{p.ID.String(), "id"}, Name{p.ID.Short(), "id"})
	}
	for _, h := range e.Hubs {
		out = append(out, ServerNames(h.Host)...)
	}
	for _, s := range e.STUN {
		out = append(out, ServerNames(s)...)
	}
	for _, t := range e.TURN {
		out = append(out, ServerNames(t.URL)...)
		out = append(out, Name{t.User, "user"})
	}
	for _, m := range e.Media {
		for _, s := range m.Servers {
			out = append(out, ServerNames(s)...)
		}
	}
	list, err := e.allInterfaces()
	if err != nil { // then no evidence names one, either
		return out
	}
	for _, i := range list {
		if kind, ok := interfaceKind(i.Name); ok {
			out = append(out, Name{i.Name, kind})
		}
	}
	return out
}

// ServerNames are the host of a server and the user there, if these are names: of a text
// such as host:port, a URL, turn:host:port or the multiaddr /dns4/host/tcp/1.
func ServerNames(text string) (out []Name) {
	host := text
	switch scheme, rest, ok := strings.Cut(text, ":"); {
	case strings.HasPrefix(text, "/"):
		if parts := strings.Split(text, "/"); len(parts) > 2 {
			host = parts[2]
		}
	case ok && strings.HasPrefix(rest, "//"):
		if u, err := url.Parse(text); err == nil {
			host = u.Host
			if user := u.User.Username(); user != "" {
				out = append(out, Name{user, "user"})
			}
		}
	case ok && (scheme == "turn" || scheme == "turns" || scheme == "stun" || scheme == "stuns"):
		host, _, _ = strings.Cut(rest, "?")
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.Trim(host, "[]"), ".")
	if _, err := netip.ParseAddr(host); err != nil && host != "" {
		out = append(out, Name{host, "host"})
	}
	return out
}

var (
	// Names of interfaces that systems and programs give by themselves.
	plainInterface = regexp.MustCompile(`^(?:lo|eth|en|wl|wlan|ww|wwan|usb|docker|podman|cni|flannel|cali|cilium_|veth|vnet|virbr|lxcbr|lxdbr|incusbr|br-?|tun|tap|utun|awdl|llw|bridge|gif|stf|anpi|ap|wg|ppp|tailscale|bond|team|dummy|clat|sit|ip6tnl|rmnet_?(?:data)?|v4-rmnet_?(?:data)?)` +
		`(?:[opsx]?[0-9][0-9a-z]*|[0-9a-f]{6,})?(?:\.\d+)?$`)
	windowsInterface = regexp.MustCompile(`^(?:Ethernet|Wi-?Fi|WLAN|LAN|Local Area Connection\*?|LAN-Verbindung\*?|Bluetooth.*|Loopback.*|vEthernet \((?:Default Switch|WSL.*)\))(?: \d+)?$`)
	interfaceLetters = regexp.MustCompile(`^(?:wg|tun|tap|br|vlan|ppp|bond|team|tailscale|zt|docker)`)
)

// interfaceKind returns the kind of word for an interface that somebody, or a program for
// him, has named, such as wg-company; false for eth0 and its like.
func interfaceKind(name string) (string, bool) {
	if plainInterface.MatchString(name) || windowsInterface.MatchString(name) || macName.MatchString(name) {
		return "", false
	}
	if known := interfaceLetters.FindString(name); known != "" {
		return known + "-interface", true
	}
	return "interface", true
}
