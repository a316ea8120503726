package doctor

import (
	"strings"
	"unicode"
)

// Word is a text, such as a name that another device has given itself, as the last word of a
// shell's command line: commands are there to be copied. If it begins with a dash, "--" is
// before it, so that it is not taken for a flag.
func Word(text string) string {
	if strings.HasPrefix(text, "-") {
		return "-- " + quoted(text)
	}
	return quoted(text)
}

// quoted is a text as one word.
func quoted(text string) string {
	special := func(r rune) bool { return !unicode.In(r, unicode.L, unicode.N) && !strings.ContainsRune("._-+@:,/", r) }
	if text != "" && !strings.ContainsFunc(text, special) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
