package punch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ErrEncoding is wrapped by what [Behaviour.UnmarshalBinary] returns for bytes
// that are not a behaviour, or one of a version this program does not know.
var ErrEncoding = errors.New("punch: not a behaviour this version can read")

// A Rule says on what a NAT's mapping or its filter depends (RFC 4787, sections
// 4.1 and 5). A higher rule is a stricter one.
type Rule uint8

// The kinds of rule.
const (
	Unknown                 Rule = iota // kind: not measured
	None                                // kind: no translation (a public address), or no filter
	EndpointIndependent                 // kind: one for all destinations
	AddressDependent                    // kind: one for each destination address
	AddressAndPortDependent             // kind: one for each destination address and port
	rules
)

var ruleNames = [rules]string{"unknown", "none", "endpoint-independent", "address-dependent", "address-and-port-dependent"} //nolint:gochecknoglobals // never changed

// String returns the rule's name as RFC 4787 has it.
func (r Rule) String() string {
	if r >= rules {
		return fmt.Sprintf("rule %d", uint8(r))
	}
	return ruleNames[r]
}

const (
	// MaxDelta is the largest step between two ports, in port numbers, that a
	// [Behaviour] can hold.
	MaxDelta = 127
	// EncodedSize is the size of an encoded [Behaviour] in bytes.
	EncodedSize = 14

	behaviourVersion = 1
	preservesBit     = 1 << 6
	pooledBit        = 1 << 7
)

// A Behaviour is what is known of the NAT in front of one side, as far as IPv4
// is concerned: IPv6 has firewalls, which plain punching opens. The zero value
// knows nothing. Behaviours can be compared with ==.
type Behaviour struct {
	// Mapping says on what the public port of a socket depends. None: the socket
	// has a public address of its own.
	Mapping Rule
	// Filtering says from where packets come in through a mapping. Unknown is
	// taken for the strictest.
	Filtering Rule
	// Preserves is true if every public port seen was the local one.
	Preserves bool
	// Pooled is true if one socket was seen at several public addresses. Public
	// is the last of them, and no guess where the next mapping will be.
	Pooled bool
	// Delta is by how many port numbers each new mapping is above the last;
	// negative if it is below, 0 if not predictable.
	Delta int
	// BlockLow and BlockHigh are the first and the last port number of the block
	// in which all ports seen lie; both 0 if there is no such block.
	BlockLow, BlockHigh uint16
	// Public is the public IPv4 address; invalid if not known.
	Public netip.Addr
	// LastPort is the public port number of the main socket, or, where the
	// mapping depends on the destination, of the newest mapping. 0: not known.
	LastPort uint16
	// SampledPorts is the count of different public ports the rest is based on.
	SampledPorts uint8
}

// Hard reports whether the public port towards a peer cannot be learned by
// asking somebody else: the mapping depends on the destination.
func (b Behaviour) Hard() bool { return b.Mapping >= AddressDependent }

// block returns the number of ports in the block, 0 if there is none.
func (b Behaviour) block() int {
	if b.BlockHigh == 0 {
		return 0
	}
	return int(b.BlockHigh) - int(b.BlockLow) + 1
}

// predictable reports whether the ports of new mappings can be told in advance.
func (b Behaviour) predictable() bool { return b.Delta != 0 && b.LastPort != 0 }

// MarshalBinary encodes the behaviour in [EncodedSize] bytes. It returns an
// error for a field no encoding has room for: an IPv6 address, a delta above
// [MaxDelta], half a block, an unknown rule.
//
//	byte 0     version, 1
//	byte 1     mapping (bits 0-2), filtering (3-5), preserves (6), pooled (7)
//	byte 2     delta, signed
//	byte 3-4   first port of the block, big endian
//	byte 5-6   last port of the block
//	byte 7-8   last port
//	byte 9     sampled ports
//	byte 10-13 public IPv4 address; 0.0.0.0 if not known
func (b Behaviour) MarshalBinary() ([]byte, error) { return b.AppendBinary(nil) }

// AppendBinary appends what [Behaviour.MarshalBinary] returns, with the same
// errors.
func (b Behaviour) AppendBinary(out []byte) ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	head := byte(b.Mapping) | byte(b.Filtering)<<3
	if b.Preserves {
		head |= preservesBit
	}
	if b.Pooled {
		head |= pooledBit
	}
	out = append(out, behaviourVersion, head, byte(int8(b.Delta)))
	out = binary.BigEndian.AppendUint16(out, b.BlockLow)
	out = binary.BigEndian.AppendUint16(out, b.BlockHigh)
	out = binary.BigEndian.AppendUint16(out, b.LastPort)
	out = append(out, b.SampledPorts)
	var addr [4]byte
	if b.Public.IsValid() {
		addr = b.Public.As4()
	}
	return append(out, addr[:]...), nil
}

// UnmarshalBinary decodes what [Behaviour.MarshalBinary] returns. The bytes may
// come from anywhere. It returns an error that wraps [ErrEncoding] for anything
// else, and for an address that nobody can be probed at (multicast, loopback);
// then b is unchanged, and the sender is best taken for an Unknown.
func (b *Behaviour) UnmarshalBinary(raw []byte) error {
	if len(raw) == 0 || raw[0] != behaviourVersion || len(raw) != EncodedSize {
		return ErrEncoding
	}
	n := Behaviour{
		Mapping:      Rule(raw[1] & 7),
		Filtering:    Rule(raw[1] >> 3 & 7),
		Preserves:    raw[1]&preservesBit != 0,
		Pooled:       raw[1]&pooledBit != 0,
		Delta:        int(int8(raw[2])),
		BlockLow:     binary.BigEndian.Uint16(raw[3:]),
		BlockHigh:    binary.BigEndian.Uint16(raw[5:]),
		LastPort:     binary.BigEndian.Uint16(raw[7:]),
		SampledPorts: raw[9],
	}
	if addr := netip.AddrFrom4([4]byte(raw[10:14])); !addr.IsUnspecified() {
		n.Public = addr
	}
	if err := n.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	*b = n
	return nil
}

// check returns what is wrong with a behaviour.
func (b Behaviour) check() error {
	switch {
	case b.Mapping >= rules || b.Filtering >= rules:
		return errors.New("punch: unknown rule")
	case b.Delta < -MaxDelta || b.Delta > MaxDelta:
		return fmt.Errorf("punch: a step of %d ports", b.Delta)
	case (b.BlockLow == 0) != (b.BlockHigh == 0) || b.BlockLow > b.BlockHigh:
		return fmt.Errorf("punch: block from port %d to %d", b.BlockLow, b.BlockHigh)
	case b.Public.IsValid() && !probeable(b.Public):
		return fmt.Errorf("punch: %s is no address for a NAT", b.Public)
	}
	return nil
}

// probeable reports whether an address may be sent probes: an IPv4 address of
// one host. Private ones are fine, carriers use them.
func probeable(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a.As4()[0] < 240
}
