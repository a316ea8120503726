package code

import (
	"strings"
	"unicode"
)

// ligatures are what PDF files and typesetters make of letters of the list.
var ligatures = map[rune]string{'ﬀ': "ff", 'ﬁ': "fi", 'ﬂ': "fl", 'ﬃ': "ffi", 'ﬄ': "ffl", 'ﬅ': "st", 'ﬆ': "st"} //nolint:gochecknoglobals // a table

// clean does what Unicode's compatibility decomposition (NFKD) would do to the
// letters and digits of a code: full-width forms become ASCII, digits of any
// script become ASCII, ligatures become letters. Accents typed as separate
// marks and invisible characters go.
func clean(text string) string {
	var out strings.Builder
	for _, r := range text {
		switch {
		case r < 0x80:
			out.WriteByte(byte(r))
		case r >= '！' && r <= '～': // full-width ASCII, U+FF01 to U+FF5E
			out.WriteRune(r - '！' + '!')
		case unicode.Is(unicode.Nd, r):
			out.WriteByte('0' + digitValue(r))
		case unicode.In(r, unicode.Mn, unicode.Cf):
		case ligatures[r] != "":
			out.WriteString(ligatures[r])
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

// digitValue returns the value of a decimal digit. Unicode promises that the
// digits 0 to 9 of a script are ten code points in a row (Unicode 16, section
// 4.6), so each range of the table holds whole rows.
func digitValue(r rune) byte {
	for _, t := range unicode.Nd.R16 {
		if lo := rune(t.Lo); r >= lo && r <= rune(t.Hi) {
			return byte((r - lo) % 10)
		}
	}
	for _, t := range unicode.Nd.R32 {
		if lo := rune(t.Lo); r >= lo && r <= rune(t.Hi) {
			return byte((r - lo) % 10)
		}
	}
	return 0
}

// A token is a run of letters, in lower case, or a run of digits.
type token struct {
	text  string
	digit bool
}

// split cuts cleaned text into tokens; whatever is neither letter nor digit
// separates.
func split(text string) []token {
	var out []token
	kind := ' ' // of the rune before: 'a' letter, '0' digit, ' ' neither
	start := 0
	add := func(end int) {
		if kind != ' ' {
			out = append(out, token{text: strings.ToLower(text[start:end]), digit: kind == '0'})
		}
	}
	for i, r := range text {
		k := ' '
		switch {
		case r >= '0' && r <= '9':
			k = '0'
		case unicode.IsLetter(r):
			k = 'a'
		}
		if k != kind {
			add(i)
			kind, start = k, i
		}
	}
	add(len(text))
	return out
}
