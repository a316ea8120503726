package pairing

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kithproject/kith/internal/strictcbor"
)

const (
	// MaxName is the longest device name, in bytes of UTF-8.
	MaxName = 64
	// MaxInfo is the longest encoded Info, in bytes.
	MaxInfo = 900

	maxOS            = 16 // bytes
	maxVersion       = 32 // bytes
	maxInfoEndpoints = 16
	maxDay           = 1 << 20 // days since 1970: the year 4840
)

// ErrInfo reports an Info that cannot be encoded or decoded.
var ErrInfo = errors.New("pairing: device info is not valid")

// Info is what a device says about itself inside the handshake, signed by it.
type Info struct {
	Name         string           // what it calls itself, at most MaxName bytes, clean
	OS           string           // its GOOS, at most 16 bytes
	WireGuard    [32]byte         // its X25519 public key
	Version      string           // of its program, at most 32 bytes
	Capabilities uint64           // bits; none is defined yet
	Day          int64            // its UTC day in days since 1970: the chain begins at the earlier of both
	Endpoints    []netip.AddrPort // where it may be reached now, at most 16
}

// infoWire is the CBOR form: a map with small integer keys, unknown ones ignored.
type infoWire struct {
	Name         string   `cbor:"1,keyasint"`
	OS           string   `cbor:"2,keyasint"`
	WireGuard    []byte   `cbor:"3,keyasint"`
	Version      string   `cbor:"4,keyasint"`
	Capabilities uint64   `cbor:"5,keyasint,omitempty"`
	Endpoints    [][]byte `cbor:"6,keyasint,omitempty"` // address then port, 6 or 18 bytes
	Day          int64    `cbor:"7,keyasint"`
}

// encode returns the canonical CBOR form. It errs with ErrInfo if a field is out
// of bounds.
func (i Info) encode() ([]byte, error) {
	w := infoWire{
		Name: CleanName(i.Name), OS: i.OS, WireGuard: i.WireGuard[:], Version: i.Version,
		Capabilities: i.Capabilities, Day: i.Day,
	}
	for _, ep := range i.Endpoints[:min(len(i.Endpoints), maxInfoEndpoints)] {
		raw, err := netip.AddrPortFrom(ep.Addr().Unmap().WithZone(""), ep.Port()).MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInfo, err)
		}
		w.Endpoints = append(w.Endpoints, raw)
	}
	raw, err := strictcbor.Marshal(w)
	if err != nil || len(raw) > MaxInfo || len(i.OS) > maxOS || len(i.Version) > maxVersion || i.Day < 0 || i.Day > maxDay {
		return nil, fmt.Errorf("%w: a field is out of bounds", ErrInfo)
	}
	return raw, nil
}

// decodeInfo reads what the other device said. The result is clean: names of
// hostile devices cannot paint on a terminal. It errs with ErrInfo.
func decodeInfo(raw []byte) (Info, error) {
	limits := strictcbor.Limits{Levels: 4, Array: maxInfoEndpoints, Map: 32}
	var w infoWire
	if len(raw) > MaxInfo || limits.Unmarshal(raw, &w) != nil {
		return Info{}, ErrInfo
	}
	if len(w.WireGuard) != 32 || len(w.OS) > maxOS || len(w.Version) > maxVersion || w.Day < 0 || w.Day > maxDay {
		return Info{}, ErrInfo
	}
	i := Info{
		Name: CleanName(w.Name), OS: CleanName(w.OS), WireGuard: [32]byte(w.WireGuard), Version: CleanName(w.Version),
		Capabilities: w.Capabilities, Day: w.Day,
	}
	if i.Name == "" {
		i.Name = "unnamed"
	}
	for _, e := range w.Endpoints {
		var ep netip.AddrPort
		if (len(e) != 6 && len(e) != 18) || ep.UnmarshalBinary(e) != nil || !ep.IsValid() {
			continue
		}
		i.Endpoints = append(i.Endpoints, netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port()))
	}
	return i, nil
}

// CleanName makes a name fit for a terminal and a table: without control,
// escape, bidirectional and other invisible characters, with single spaces, at
// most MaxName bytes of UTF-8. It may return "".
func CleanName(name string) string {
	if len(name) > 4*MaxName {
		name = name[:4*MaxName]
	}
	name = strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return -1
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsGraphic(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return -1
		}
		return r
	}, name)
	name = strings.Join(strings.Fields(name), " ")
	for len(name) > MaxName {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return strings.TrimSpace(name)
}
