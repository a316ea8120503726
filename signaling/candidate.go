package signaling

import "net/netip"

// A Kind says how a candidate address came to be (RFC 8445 section 5.1.1).
type Kind uint8

// The kinds of candidates. Mapped is a port mapping on a router (PCP, NAT-PMP,
// UPnP).
const (
	Host      Kind = 1
	Mapped    Kind = 2
	Reflexive Kind = 3
	Relayed   Kind = 4
)

// String returns the field's term for the kind.
func (k Kind) String() string {
	switch k {
	case Host:
		return "host"
	case Mapped:
		return "mapped"
	case Reflexive:
		return "reflexive"
	case Relayed:
		return "relayed"
	}
	return "unknown"
}

// A Candidate is an address at which a device may be reached.
type Candidate struct {
	Kind     Kind
	Addr     netip.AddrPort // unmapped, without zone
	Priority uint32         // a number that is higher for addresses to be tried earlier
}
