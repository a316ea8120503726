package code_test

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kithproject/kith/code"
)

// One device shows words, the other reads them, shortened and with dashes, and
// both meet on the same topic.
func Example() {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	offer, err := code.New(code.MethodWords, code.Options{
		Now:  now,
		Rand: strings.NewReader("an example, 16 b"), // leave it out: nil is crypto/rand
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(offer.Words())

	var typed []string
	for _, word := range strings.Fields(offer.Words()) {
		typed = append(typed, strings.ToUpper(word[:min(4, len(word))]))
	}
	joiner, err := code.Parse(strings.Join(typed, "-"), now)
	if err != nil {
		fmt.Println(err)
		return
	}
	ours, _ := offer.OfferKeys(now)
	theirs, _ := joiner.Keys(now)
	fmt.Println(joiner.Method(), joiner.Equal(offer), ours[0].Topic == theirs.Topic)
	fmt.Println(joiner)
	// Output:
	// gesture illegal bone valid bitter return ranch pitch cage meadow marine shadow
	// words true true
	// redacted
}

// A ParseError tells which word to look at again.
func ExampleParse() {
	_, err := code.Parse("legal winner thank yaer wave sausage worth useful legal winner thank yellow", time.Now())
	var e *code.ParseError
	if errors.As(err, &e) {
		fmt.Println(e)
		fmt.Printf("did you mean %s?\n", e.Suggestions[0])
	}
	// Output:
	// code: word 4 is not in the word list
	// did you mean year?
}

func ExampleCode_Number() {
	offer, err := code.New(code.MethodNumber, code.Options{Now: time.Now()})
	if err != nil {
		fmt.Println(err)
		return
	}
	groups := strings.Fields(offer.Number())
	fmt.Println(len(groups), "groups of", len(groups[0]), "digits, printed as", offer)
	// Output:
	// 5 groups of 4 digits, printed as redacted
}
