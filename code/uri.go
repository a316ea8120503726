package code

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"strings"
	"time"
)

// Tags of the payload; see the package comment.
const (
	tagSecret    = 0x01
	tagExpiry    = 0x02
	tagCommit    = 0x03
	tagEndpoints = 0x04
	tagHint      = 0x05
	tagCritical  = 0x80 // from here on a tag that is not known is fatal
)

const (
	uriScheme      = "kith:"
	uriVersion     = "1"
	uriRoomVersion = "R1"

	// maxShown is the longest payload that New makes, in bytes: with level L it
	// is a QR code of version 8, the largest that 30 lines of a terminal show.
	maxShown = 170
	// maxRead is the longest payload that Parse reads, in bytes: room for what
	// later versions add.
	maxRead = 512
)

var (
	base32Text = base32.StdEncoding.WithPadding(base32.NoPadding) //nolint:gochecknoglobals // a constant
	base64Text = base64.RawURLEncoding                            //nolint:gochecknoglobals // a constant
	cgnat      = netip.MustParsePrefix("100.64.0.0/10")           //nolint:gochecknoglobals // a constant, RFC 6598
)

// LocalEndpoint reports whether a code may carry e: a port that is not 0 at an
// address that means something only near the device, namely private IPv4
// (RFC 1918), unique local IPv6 (RFC 4193), link-local, shared address space
// (RFC 6598) or loopback, without a zone and not IPv4 in IPv6.
func LocalEndpoint(e netip.AddrPort) bool {
	a := e.Addr()
	if e.Port() == 0 || a.Zone() != "" || a.Is4In6() {
		return false
	}
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() || cgnat.Contains(a)
}

// validHint reports whether a code may carry hint.
func validHint(hint string) bool {
	if len(hint) == 0 || len(hint) > MaxHint {
		return false
	}
	for _, b := range []byte(hint) {
		if b <= ' ' || b > '~' {
			return false
		}
	}
	lower := strings.ToLower(hint)
	return !strings.HasPrefix(lower, "http:") && !strings.HasPrefix(lower, "https:")
}

// URI returns the code as "KITH:1/" and base32, which a QR code holds in its
// alphanumeric mode, or "" for a number and the zero Code. Of a code that was
// parsed from words it holds the secret only.
func (c Code) URI() string {
	if !c.strong() {
		return ""
	}
	return strings.ToUpper(uriScheme) + uriVersion + "/" + base32Text.EncodeToString(c.get().encode())
}

// encode lays the payload out in items.
func (p *payload) encode() []byte {
	item := func(dst []byte, tag byte, value []byte) []byte {
		return append(append(dst, tag, byte(len(value))), value...)
	}
	out := item(nil, tagSecret, p.secret[:])
	if !p.expiry.IsZero() {
		out = item(out, tagExpiry, binary.BigEndian.AppendUint32(nil, uint32(p.expiry.Unix())))
	}
	if p.hasCommit {
		out = item(out, tagCommit, p.commit[:])
	}
	if len(p.endpoints) > 0 {
		var value []byte
		for _, e := range p.endpoints {
			family := byte(6)
			if e.Addr().Is4() {
				family = 4
			}
			value = append(append(value, family), e.Addr().AsSlice()...)
			value = binary.BigEndian.AppendUint16(value, e.Port())
		}
		out = item(out, tagEndpoints, value)
	}
	for _, hint := range p.hints {
		out = item(out, tagHint, []byte(hint))
	}
	return out
}

const scanAgain = "scan or copy the whole code again"

func errURI(what string) error { return failf(KindURI, scanAgain, "%s", what) }

// readURI reads text that begins with uriScheme in any case and has no spaces:
// its version and the bytes of its payload.
func readURI(text string) (version string, raw []byte, err error) {
	rest := text[len(uriScheme):]
	end := strings.IndexAny(rest, "/#")
	if end < 0 {
		return "", nil, errURI("the URI ends before its data")
	}
	version, mark, data := strings.ToUpper(rest[:end]), rest[end], rest[end+1:]
	if version != uriVersion && version != uriRoomVersion {
		if digits := strings.TrimPrefix(version, "R"); isDigits(digits) {
			return "", nil, failf(KindVersion, "update kith on this device", "the code is of another version of kith")
		}
		return "", nil, errURI("the URI has no version")
	}
	raw, ok := decodeText(mark, data)
	if !ok {
		return version, nil, errURI("the data of the URI is damaged or cut off")
	}
	return version, raw, nil
}

// parseURI reads the URI of a pairing.
func parseURI(text string, now time.Time) (Code, error) {
	version, raw, err := readURI(text)
	if version == uriRoomVersion {
		return Code{}, failf(KindRoom, "kith room join takes a room's code", "this is the code of a room")
	}
	if err != nil {
		return Code{}, err
	}
	p, err := decode(raw)
	if err != nil {
		return Code{}, err
	}
	c := wrap(p)
	if !now.IsZero() && c.Expired(now) {
		return c, failf(KindExpired, "ask for a new code, or check the clocks of both devices",
			"the code was good until %s", p.expiry.UTC().Format("2006-01-02 15:04 UTC"))
	}
	return c, nil
}

// decodeText undoes base32 (after "/") or base64url (after "#"). Only the one
// text that encodes the bytes is taken, in any case for base32.
func decodeText(mark byte, data string) ([]byte, bool) {
	if mark == '#' {
		if len(data) > base64Text.EncodedLen(maxRead) {
			return nil, false
		}
		raw, err := base64Text.DecodeString(data)
		return raw, err == nil && base64Text.EncodeToString(raw) == data
	}
	if len(data) > base32Text.EncodedLen(maxRead) {
		return nil, false
	}
	data = strings.ToUpper(data)
	raw, err := base32Text.DecodeString(data)
	return raw, err == nil && base32Text.EncodeToString(raw) == data
}

// decode reads the items of a payload.
func decode(raw []byte) (*payload, error) {
	p := &payload{method: MethodQR}
	last, hasSecret := -1, false
	for len(raw) > 0 {
		if len(raw) < 2 || len(raw) < 2+int(raw[1]) {
			return nil, errURI("the code is cut off")
		}
		tag, value := raw[0], raw[2:2+int(raw[1])]
		raw = raw[2+len(value):]
		single := tag >= tagSecret && tag <= tagEndpoints
		if int(tag) < last || int(tag) == last && single {
			return nil, errURI("the code is damaged: its items are out of order")
		}
		last = int(tag)
		ok := true
		switch tag {
		case tagSecret:
			hasSecret = true
			ok = len(value) == secretSize
			copy(p.secret[:], value)
		case tagExpiry:
			if ok = len(value) == 4; ok {
				p.expiry = time.Unix(int64(binary.BigEndian.Uint32(value)), 0)
			}
		case tagCommit:
			p.hasCommit = true
			ok = len(value) == len(p.commit)
			copy(p.commit[:], value)
		case tagEndpoints:
			if err := p.decodeEndpoints(value); err != nil {
				return nil, err
			}
		case tagHint:
			ok = validHint(string(value)) && len(p.hints) < MaxHints
			p.hints = append(p.hints, string(value))
		default:
			if tag >= tagCritical {
				return nil, failf(KindVersion, "update kith on this device", "the code needs a newer version of kith")
			}
		}
		if !ok {
			return nil, errURI("the code is damaged: an item is not as it must be")
		}
	}
	if !hasSecret {
		return nil, errURI("the code has no secret")
	}
	return p, nil
}

// decodeEndpoints reads the value of tagEndpoints.
func (p *payload) decodeEndpoints(value []byte) error {
	for len(value) > 0 {
		size := 4
		if value[0] == 6 {
			size = 16
		}
		if value[0] != 4 && value[0] != 6 || len(value) < 1+size+2 || len(p.endpoints) == MaxEndpoints {
			return errURI("the code is damaged: an address is not as it must be")
		}
		addr, _ := netip.AddrFromSlice(value[1 : 1+size])
		e := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(value[1+size:]))
		if !LocalEndpoint(e) {
			return failf(KindEndpoint, "do not use this code: kith never makes such a one", "the code names an address outside the local network")
		}
		p.endpoints = append(p.endpoints, e)
		value = value[1+size+2:]
	}
	return nil
}
