package hub

import (
	"encoding/binary"
	"net/netip"

	"github.com/pion/stun/v4"
)

const (
	stunHeader     = 20
	changeIP       = 0x04 // flags of CHANGE-REQUEST (RFC 5780 section 7.2)
	changePort     = 0x02
	lowestResponse = 1024 // port number that a response may be asked to go to
	maxUnknown     = 8    // attributes named in an error
	maxBinding     = 1500 // bytes of a binding request: a client may want to know whether large ones pass
	comprehend     = 0x8000
	magicCookie    = 0x2112A442
	bindingType    = 0x0001
	channelFirst   = 0x40 // first byte of the lowest channel (RFC 8656 section 12)
	channelLast    = 0x4f

	channelHeader = 4 // bytes before the data of a ChannelData message
)

// A datagram's kind, by its first bytes.
type datagram byte

const (
	datagramOther datagram = iota
	datagramBinding
	datagramTURN
)

// classify tells what a UDP packet is.
func classify(b []byte) datagram {
	switch {
	case len(b) >= 4 && b[0] >= channelFirst && b[0] <= channelLast:
		return datagramTURN
	case len(b) < stunHeader || b[0] > 0x3f || binary.BigEndian.Uint32(b[4:]) != magicCookie:
		return datagramOther
	case binary.BigEndian.Uint16(b) == bindingType:
		return datagramBinding
	case binary.BigEndian.Uint16(b)&0x0100 != 0: // a response: never for a server
		return datagramOther
	case binary.BigEndian.Uint16(b) == bindingType|0x0010: // an indication that keeps a mapping
		return datagramOther
	}
	return datagramTURN
}

// place is one of up to four sockets for one address family: which of the
// addresses, and which of the ports.
type place struct{ ip, port int }

// binding answers a binding request (RFC 8489 and RFC 5780) that came from src
// to place at. origin returns the address and port of a place, or false if there
// is none. It returns the answer, the place to send it from and where to, or nil for
// what is no binding request.
func binding(req []byte, src netip.AddrPort, at place, origin func(place) (netip.AddrPort, bool)) ([]byte, place, netip.AddrPort) {
	if len(req) > maxBinding {
		return nil, at, src
	}
	m := &stun.Message{Raw: append([]byte(nil), req...)}
	if err := m.Decode(); err != nil || m.Type != stun.BindingRequest {
		return nil, at, src
	}
	if m.Contains(stun.AttrFingerprint) && stun.Fingerprint.Check(m) != nil {
		return nil, at, src
	}
	from, to := at, src
	var unknown stun.UnknownAttributes
	for _, a := range m.Attributes {
		switch {
		case a.Type == stun.AttrChangeRequest:
			if len(a.Value) != 4 {
				return nil, at, src
			}
			if a.Value[3]&changeIP != 0 {
				from.ip = 1 - from.ip
			}
			if a.Value[3]&changePort != 0 {
				from.port = 1 - from.port
			}
		case a.Type == stun.AttrResponsePort:
			// To another port of the same address, by which a client sees how long its
			// NAT remembers (RFC 5780 section 4.6). A client may forge its port anyway.
			if len(a.Value) != 2 && len(a.Value) != 4 {
				return nil, at, src
			}
			if to = netip.AddrPortFrom(src.Addr(), binary.BigEndian.Uint16(a.Value)); to.Port() < lowestResponse {
				unknown = append(unknown, a.Type)
			}
		case a.Type >= comprehend, a.Type == stun.AttrUsername, a.Type == stun.AttrMessageIntegrity, a.Type == stun.AttrPadding,
			a.Type == stun.AttrPriority, a.Type == stun.AttrUseCandidate:
			// Nothing of a binding request depends on these here.
		case len(unknown) < maxUnknown:
			unknown = append(unknown, a.Type)
		}
	}
	self, ok := origin(from)
	if !ok {
		unknown = append(unknown, stun.AttrChangeRequest)
	}
	set := []stun.Setter{stun.NewTransactionIDSetter(m.TransactionID)}
	if len(unknown) > 0 {
		from, to = at, src
		set = append(set, stun.BindingError, stun.CodeUnknownAttribute, unknown, stun.Fingerprint)
	} else {
		set = append(set, stun.BindingSuccess, &stun.XORMappedAddress{IP: src.Addr().AsSlice(), Port: int(src.Port())},
			&stun.ResponseOrigin{IP: self.Addr().AsSlice(), Port: int(self.Port())})
		if other, ok := origin(place{1 - at.ip, 1 - at.port}); ok {
			set = append(set, &stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})
		}
		if m.Contains(stun.AttrPadding) {
			set = append(set, paddingTo{len(req)})
		}
		set = append(set, stun.Fingerprint)
	}
	out, err := stun.Build(set...)
	if err != nil {
		return nil, at, src
	}
	return out.Raw, from, to
}

// paddingTo makes the answer to a request with PADDING (RFC 5780 section 7.6) as long as
// that, and never longer: nobody gets more sent to a victim than he sends himself.
type paddingTo struct{ size int }

// AddTo adds the attribute. It never errs.
func (p paddingTo) AddTo(m *stun.Message) error {
	const headers = 4 + 8 // of this attribute, and the fingerprint that follows
	if n := (p.size - len(m.Raw) - headers) &^ 3; n > 0 {
		m.Add(stun.AttrPadding, make([]byte, n))
	}
	return nil
}
