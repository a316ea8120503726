package code

import (
	"fmt"
	"io"
	"log/slog"
)

// A Kind says why a text is not a code.
type Kind uint8

// The kinds of ParseError.
const (
	KindForm       Kind = iota + 1 // not like any form of code
	KindEmpty                      // nothing but spaces
	KindTooLong                    // longer than any code
	KindWord                       // a word is not in the list, see Position and Suggestions
	KindWordCount                  // not 12 words
	KindWordSum                    // all words are in the list but do not fit together
	KindDigitCount                 // not 20 digits
	KindDigitSum                   // 20 digits, one mistyped or two swapped
	KindURI                        // a kith URI that is cut off or damaged
	KindVersion                    // made by a version of kith that this one cannot read
	KindLink                       // a web link, which is never a code
	KindEndpoint                   // a URI with an address outside local networks
	KindExpired                    // a URI that says it is too old; the Code is returned all the same
	KindRoom                       // a room's code where a pairing's is wanted
	KindPairing                    // a pairing's code where a room's is wanted
)

// A ParseError says why a text is not a code and what to do about it. Error and
// LogValue do not repeat the text, which may be most of a secret; Word and
// Suggestions are for the person who typed it, not for a log.
type ParseError struct {
	Kind        Kind
	Position    int      // unit: words or digit groups, the one at fault counted from 1; 0 = none
	Word        string   // the word at fault as typed, cut to 32 bytes; secret
	Suggestions []string // words of the list that Word may stand for, likeliest first, at most 4; secret
	Hint        string   // what to do, one sentence without secrets

	text string
}

// Error returns "code: " and what is wrong, without anything that was typed.
func (e *ParseError) Error() string { return "code: " + e.text }

// GoString returns Error.
func (e *ParseError) GoString() string { return e.Error() }

// Format prints Error for every verb, so that none prints the fields.
func (e *ParseError) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, e.Error()) }

// LogValue returns Error, so that a logger does not print the fields.
func (e *ParseError) LogValue() slog.Value { return slog.StringValue(e.Error()) }

// accepted lists the forms, for hints.
const accepted = "a code is 12 words, 20 digits, or a text that begins with kith:1"

func failf(kind Kind, hint, format string, args ...any) *ParseError {
	return &ParseError{Kind: kind, Hint: hint, text: fmt.Sprintf(format, args...)}
}
