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
	text, isURI, err := tidy(text, accepted)
	switch {
	case err != nil:
		return Code{}, err
	case isURI:
		return parseURI(text, now)
	}
	words, err := arrange(split(text), accepted)
	switch {
	case err != nil:
		return Code{}, err
	case len(words) == 1 && isDigits(words[0]):
		return parseNumber(words[0])
	}
	return parseWords(words)
}

// tidy cuts off what programs put around a code, and tells a URI, which it
// returns without spaces, from words and digits. The hint says what would be
// accepted.
func tidy(text, hint string) (out string, isURI bool, err error) {
	if len(text) > maxText {
		return "", false, failf(KindTooLong, hint, "the text is longer than any code")
	}
	text = strings.TrimFunc(clean(text), func(r rune) bool {
		return unicode.IsSpace(r) || strings.ContainsRune("\"'`<>“”‘’«»", r)
	})
	if len(text) >= len(uriScheme) && strings.EqualFold(text[:len(uriScheme)], uriScheme) {
		return strings.Join(strings.Fields(text), ""), true, nil
	}
	if lower := strings.ToLower(text); strings.Contains(lower, "://") || strings.HasPrefix(lower, "www.") {
		return "", false, failf(KindLink, hint, "this is a link, and a code is never one")
	}
	return text, false, nil
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// arrange returns the words of a code in order, or its digits in one string.
func arrange(tokens []token, hint string) ([]string, error) {
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
		return nil, failf(KindEmpty, hint, "no code given")
	case len(words) == 0:
		return []string{digits.String()}, nil
	case digits.Len() == 0 && (known || len(words) == wordCount):
		return words, nil
	case digits.Len() > 0 && known:
		return numbered(tokens, hint)
	}
	return nil, failf(KindForm, hint, "this is not like any code")
}

// numbered reads words that have their numbers before them, in any order.
func numbered(tokens []token, hint string) ([]string, error) {
	notNumbered := failf(KindForm, hint, "words and digits are mixed, and the digits do not number the words")
	if len(tokens) == 4 && tokens[0].digit && len(tokens[0].text) == 4 {
		return nil, failf(KindVersion, "ask the other device for words, a QR code or 20 digits",
			"codes of 4 digits and 3 words are not read by this version of kith")
	}
	if len(tokens)%2 != 0 || len(tokens) > 2*wordCount {
		return nil, notNumbered
	}
	words := make([]string, wordCount)
	for i := 0; i < len(tokens); i += 2 {
		number, word := tokens[i], tokens[i+1]
		n, err := strconv.Atoi(number.text)
		if !number.digit || word.digit || len(number.text) > 2 || err != nil ||
			n < 1 || n > wordCount || words[n-1] != "" {
			return nil, notNumbered
		}
		words[n-1] = word.text
	}
	for i, word := range words {
		if word == "" {
			e := failf(KindWordCount, "type all 12 words", "word %d is missing", i+1)
			e.Position = i + 1
			return nil, e
		}
	}
	return words, nil
}
