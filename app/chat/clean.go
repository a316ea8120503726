package chat

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// CleanText makes text of another device fit for a terminal: one line without
// control characters, escape sequences' start, bidirectional overrides and
// other invisible format characters (a zero-width joiner inside emoji stays),
// at most MaxText bytes.
func CleanText(text string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r' || r == '\u2028' || r == '\u2029':
			return ' '
		case r == utf8.RuneError, unicode.IsControl(r):
			return -1
		case r == '\u200d':
			return r
		case unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return -1
		}
		return r
	}, text)
	clean = strings.TrimSpace(clean)
	for len(clean) > MaxText {
		_, size := utf8.DecodeLastRuneInString(clean)
		clean = clean[:len(clean)-size]
	}
	return strings.TrimSpace(clean)
}
