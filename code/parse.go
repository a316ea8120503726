package code

import (
	"strconv"
	"strings"
	"time"
	"unicode"
)

// maxText is the longest text that Parse looks at, in bytes.
const maxText = 4096

// Parse reads a code in any form; Method of the result tells which. It forgives
// what people and programs do to a code on its way:
//
//   - upper and lower case, full-width and other Unicode forms, invisible characters
//   - words and digits apart by any spaces, line breaks, dashes, commas or other signs
//   - words shortened to their first 4 letters or more
//   - words that are numbered ("1. word"), also in columns, out of order
//   - a URI broken over lines, or between quotes or angle brackets
//
// The error is a *ParseError, whose Kind tells a mistyped word from a wrong
// count and from a wrong checksum. A URI that says it is too old at now gives
// KindExpired and the Code all the same, for a caller who knows that this
// device's clock is wrong; a zero now checks nothing.
func Parse(text string, now time.Time) (Code, error) {
	if len(text) > maxText {
		return Code{}, failf(KindTooLong, accepted, "the text is longer than any code")
	}
	text = strings.TrimFunc(clean(text), func(r rune) bool {
		return unicode.IsSpace(r) || strings.ContainsRune("\"'`<>“”‘’«»", r)
	})
	if len(text) >= len(uriScheme) && strings.EqualFold(text[:len(uriScheme)], uriScheme) {
		return parseURI(strings.Join(strings.Fields(text), ""), now)
	}
	if lower := strings.ToLower(text); strings.Contains(lower, "://") || strings.HasPrefix(lower, "www.") {
		return Code{}, failf(KindLink, accepted, "this is a link, and a code is never one")
	}
	return parseTokens(split(text))
}

// parseTokens reads words or a number.
func parseTokens(tokens []token) (Code, error) {
	var words []string
	var digits strings.Builder
	known := false
	for _, t := range tokens {
		if t.digit {
			digits.WriteString(t.text)
			continue
		}
		words = append(words, t.text)
		_, ok := lookup(t.text)
		known = known || ok
	}
	switch {
	case len(tokens) == 0:
		return Code{}, failf(KindEmpty, accepted, "no code given")
	case len(words) == 0:
		return parseNumber(digits.String())
	case digits.Len() == 0 && (known || len(words) == wordCount):
		return parseWords(words)
	case digits.Len() > 0 && known:
		return parseNumbered(tokens)
	}
	return Code{}, failf(KindForm, accepted, "this is not like any code")
}

// parseNumbered reads words that have their numbers before them, in any order.
func parseNumbered(tokens []token) (Code, error) {
	notNumbered := failf(KindForm, accepted, "words and digits are mixed, and the digits do not number the words")
	if len(tokens) == 4 && tokens[0].digit && len(tokens[0].text) == 4 {
		return Code{}, failf(KindVersion, "ask the other device for words, a QR code or 20 digits",
			"codes of 4 digits and 3 words are not read by this version of kith")
	}
	if len(tokens)%2 != 0 || len(tokens) > 2*wordCount {
		return Code{}, notNumbered
	}
	words := make([]string, wordCount)
	for i := 0; i < len(tokens); i += 2 {
		number, word := tokens[i], tokens[i+1]
		n, err := strconv.Atoi(number.text)
		if !number.digit || word.digit || len(number.text) > 2 || err != nil ||
			n < 1 || n > wordCount || words[n-1] != "" {
			return Code{}, notNumbered
		}
		words[n-1] = word.text
	}
	for i, word := range words {
		if word == "" {
			e := failf(KindWordCount, "type all 12 words", "word %d is missing", i+1)
			e.Position = i + 1
			return Code{}, e
		}
	}
	return parseWords(words)
}
