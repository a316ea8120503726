package link

import (
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
)

// The conn.Endpoint of WireGuard. A Link is one endpoint whatever its path, so
// nothing here changes when the path does, but for the text for people.

// ClearSrc does nothing: which of our addresses a path uses is the Link's business.
func (l *Link) ClearSrc() {}

// SrcToString returns our address on the selected path, or "".
func (l *Link) SrcToString() string {
	if p, ok := l.Path(); ok && p.Local.IsValid() {
		return p.Local.String()
	}
	return ""
}

// DstToString returns the peer's address on the selected path, or "no path".
func (l *Link) DstToString() string {
	if p, ok := l.Path(); ok {
		return p.Remote.String()
	}
	return "no path"
}

// DstToBytes returns the peer's ID: WireGuard binds its cookies to it.
func (l *Link) DstToBytes() []byte { return l.cfg.Peer[:] }

// DstIP returns the peer's address in the tunnel: WireGuard limits handshakes
// under load by it.
func (l *Link) DstIP() netip.Addr { return l.cfg.Peer.Addr() }

// SrcIP returns our address on the selected path, or the zero Addr.
func (l *Link) SrcIP() netip.Addr {
	p, _ := l.Path()
	return p.Local.Addr()
}

var _ conn.Endpoint = (*Link)(nil)
