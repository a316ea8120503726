package files

import (
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"

	"lukechampine.com/blake3"
)

// partialName is the hidden folder in the target that holds what is not whole.
const partialName = ".kith-partial"

// Names says which names a receiver keeps as they are.
type Names uint8

const (
	// NamesPortable is the default: names that any system can hold, so that what
	// is received can be passed on. See safeName.
	NamesPortable Names = iota
	// NamesLocal keeps what this system can hold; control characters, characters
	// that turn the direction of text, and invalid UTF-8 are replaced still. On
	// Windows it is the same as NamesPortable.
	NamesLocal
)

// reserved are names of devices on Windows, with any extension.
func reservedName(name string) bool {
	base, _, _ := strings.Cut(name, ".")
	base = strings.ToUpper(strings.TrimRight(base, " "))
	switch base {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$":
		return true
	}
	for _, p := range []string{"COM", "LPT"} {
		if d, ok := strings.CutPrefix(base, p); ok {
			switch d {
			case "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "\u00b9", "\u00b2", "\u00b3":
				return true
			}
		}
	}
	return false
}

// unsafeRune reports runes that no name may have: what changes how text is shown
// (control, format and direction), and what is not text.
func unsafeRune(r rune) bool {
	switch {
	case r == utf8.RuneError, unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cs, r):
		return true
	case r == '\u200d', r == '\u200c': // joiners, which emoji and Persian need
		return false
	case unicode.Is(unicode.Cf, r), r == '\u2028', r == '\u2029':
		return true
	}
	return false
}

// safeName returns the name that one name of a path gets on disk. A name that
// needs no change stays itself. Any other has what is not allowed replaced by "_"
// and "~" with eight digits of its hash added before its extension, so that two
// names never become one, and each becomes the same one again on a resume.
func safeName(name string, names Names) string {
	changed := false
	var b strings.Builder
	for _, r := range name {
		switch {
		case unsafeRune(r), r == '/', r == '\\' && names == NamesPortable,
			names == NamesPortable && strings.ContainsRune(`<>:"|?*`, r):
			b.WriteByte('_')
			changed = true
		default:
			b.WriteRune(r)
		}
	}
	out := b.String()
	if strings.EqualFold(out, partialName) {
		changed = true
	}
	if names == NamesPortable {
		if t := strings.TrimRight(out, " ."); t != out {
			out, changed = t+"_", true
		}
		if t := strings.TrimLeft(out, " "); t != out {
			out, changed = "_"+t, true
		}
		if reservedName(out) {
			out, changed = "_"+out, true
		}
	}
	if len(out) > maxName || out == "" {
		changed = true
	}
	if !changed {
		return out
	}
	return marked(out, name)
}

// marked adds a mark made from the original name.
func marked(out, original string) string {
	sum := blake3.Sum256([]byte(original))
	mark := "~" + hex.EncodeToString(sum[:4])
	stem, ext := splitExt(out)
	room := maxName - len(mark) - len(ext)
	if len(stem) > room {
		stem = stem[:room]
		for !utf8.ValidString(stem) {
			stem = stem[:len(stem)-1]
		}
	}
	return stem + mark + ext
}

// splitExt splits a name before its extension, which is at most 16 bytes.
func splitExt(name string) (stem, ext string) {
	i := strings.LastIndexByte(name, '.')
	if i <= 0 || len(name)-i > 16 {
		return name, ""
	}
	return name[:i], name[i:]
}

// safePath is safeName of every name of a path.
func safePath(p string, names Names) string {
	if !strings.Contains(p, "/") {
		return safeName(p, names)
	}
	parts := strings.Split(p, "/")
	for i, name := range parts {
		parts[i] = safeName(name, names)
	}
	return strings.Join(parts, "/")
}

// ShowName returns a name of the other side as it may be shown in a terminal:
// what safeName replaces is replaced, and it is at most 255 bytes.
func ShowName(name string) string {
	var b strings.Builder
	for _, r := range name {
		if unsafeRune(r) {
			r = '_'
		}
		if b.Len()+utf8.RuneLen(r) > maxName {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}
