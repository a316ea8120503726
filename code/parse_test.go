package code

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const (
	someWords  = "legal winner thank year wave sausage worth useful legal winner thank yellow" // BIP39 vector of 7f..7f
	someNumber = "1234 5678 9012 3456 7891"                                                    // with its Damm digit
)

func TestParseForgives(t *testing.T) {
	upper, short := strings.ToUpper(someWords), make([]string, 0, 12)
	var numbered, columns, bracketed strings.Builder
	words := strings.Fields(someWords)
	for i, word := range words {
		short = append(short, word[:4])
		fmt.Fprintf(&numbered, "%d. %s\n", i+1, word)
		fmt.Fprintf(&bracketed, "(%02d) %s ", i+1, word)
	}
	for i := range 6 {
		fmt.Fprintf(&columns, "%2d: %-10s %2d: %s\r\n", i+1, words[i], i+7, words[i+6])
	}
	offer := mustNew(t, MethodQR, Options{Commit: [16]byte{1, 2, 3}})
	link := "kith:1#" + base64Text.EncodeToString(offer.get().encode())

	tests := map[string]struct{ text, want string }{
		"words":                       {someWords, someWords},
		"capitals":                    {upper, someWords},
		"first letter capital":        {"Legal" + someWords[5:], someWords},
		"spaces all over":             {"\n\t " + strings.Join(words, " \u00a0\u2003\n ") + " \r\n", someWords},
		"dashes":                      {strings.Join(words, "-"), someWords},
		"long dashes":                 {strings.Join(words, " — "), someWords},
		"commas":                      {strings.Join(words, ", ") + ".", someWords},
		"quoted list":                 {`["` + strings.Join(words, `","`) + `"]`, someWords},
		"bullets":                     {"• " + strings.Join(words, "\n• "), someWords},
		"slashes":                     {strings.Join(words, "/"), someWords},
		"four letters":                {strings.Join(short, " "), someWords},
		"some letters more":           {"legal winne thank year wave sausag worth usefu lega winner thank yello", someWords},
		"full width":                  {"ｌｅｇａｌ　ＷＩＮＮＥＲ" + someWords[12:], someWords},
		"ligature and accents":        {"le\u0301gal winner thank year wave sausage worth use\u200bful legal win\u00adner thank yellow", someWords},
		"byte order mark":             {"\ufeff" + someWords, someWords},
		"numbered":                    {numbered.String(), someWords},
		"numbered in brackets":        {bracketed.String(), someWords},
		"numbered in two columns":     {columns.String(), someWords},
		"number":                      {someNumber, someNumber},
		"number in one":               {strings.ReplaceAll(someNumber, " ", ""), someNumber},
		"number with dashes":          {strings.ReplaceAll(someNumber, " ", "-"), someNumber},
		"number over lines":           {strings.ReplaceAll(someNumber, " ", "\r\n"), someNumber},
		"number with dots and spaces": {"  " + strings.ReplaceAll(someNumber, " ", " . ") + "\n", someNumber},
		"number, full width":          {"１２３４" + someNumber[4:], someNumber},
		"number, Arabic digits":       {"١٢٣٤ ٥٦٧٨ ٩٠١٢ ٣٤٥٦ ٧٨٩١", someNumber},
		"number, Devanagari digits":   {"१२३४" + someNumber[4:], someNumber},
		"number, bold digits":         {"𝟏𝟐𝟑𝟒" + someNumber[4:], someNumber},
		"URI":                         {offer.URI(), offer.URI()},
		"URI, small letters":          {strings.ToLower(offer.URI()), offer.URI()},
		"URI, mixed":                  {"Kith:1/" + strings.ToLower(offer.URI()[7:]), offer.URI()},
		"URI over lines":              {offer.URI()[:20] + "\n  " + offer.URI()[20:50] + "\r\n" + offer.URI()[50:] + "\n", offer.URI()},
		"URI in angle brackets":       {"<" + offer.URI() + ">", offer.URI()},
		"URI in quotes":               {"“" + offer.URI() + "”", offer.URI()},
		"URI, base64":                 {link, offer.URI()},
		"URI, base64, over lines":     {link[:30] + "\n" + link[30:], offer.URI()},
		"URI, base64, capital scheme": {"KITH:1#" + link[7:], offer.URI()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if c := mustParse(t, tt.text); c.form() != tt.want {
				t.Errorf("got %q, want %q", c.form(), tt.want)
			}
		})
	}
}

// form is the text of the form that the code was given in.
func (c Code) form() string {
	switch c.Method() {
	case MethodWords:
		return c.Words()
	case MethodNumber:
		return c.Number()
	}
	return c.URI()
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	swap := func(i int, word string) string {
		words := strings.Fields(someWords)
		words[i] = word
		return strings.Join(words, " ")
	}
	tests := map[string]struct {
		text     string
		kind     Kind
		position int
		suggest  string // the first suggestion
		say      string // part of the error or the hint
	}{
		"nothing":                     {"", KindEmpty, 0, "", "12 words, 20 digits"},
		"spaces and signs":            {" \n\u00a0-- . \u200b", KindEmpty, 0, "", "no code"},
		"too long":                    {strings.Repeat("a", maxText+1), KindTooLong, 0, "", "longer"},
		"garbage":                     {"xyzzy plugh", KindForm, 0, "", "12 words, 20 digits"},
		"12 words of garbage":         {strings.Repeat("qqqqqq ", 12), KindWord, 1, "", "word 1 "},
		"letters and digits":          {"a1b2c3", KindForm, 0, "", "12 words"},
		"bytes":                       {"\xff\xfe\x00\x01", KindEmpty, 0, "", "12 words"},
		"emoji":                       {"🙂🙃", KindEmpty, 0, "", "12 words"},
		"letter left out":             {swap(6, "wrth"), KindWord, 7, "worth", "word 7 is not"},
		"letter too much":             {swap(0, "leggal"), KindWord, 1, "legal", "word 1 "},
		"letter wrong":                {swap(11, "yellaw"), KindWord, 12, "yellow", "word 12 "},
		"letters swapped":             {swap(3, "yaer"), KindWord, 4, "year", "word 4 "},
		"three letters":               {swap(5, "sau"), KindWord, 6, "sauce", "word 6 "},
		"word too long":               {swap(5, strings.Repeat("sausage", 9)), KindWord, 6, "", "word 6 "},
		"word that goes on":           {swap(4, "waves"), KindWord, 5, "wave", "word 5 "},
		"word of another script":      {swap(4, "волна"), KindWord, 5, "", "word 5 "},
		"first of two bad words":      {strings.Replace(swap(8, "legul"), "thank", "thunk", 1), KindWord, 3, "thank", "word 3 "},
		"11 words":                    {strings.TrimSuffix(someWords, " yellow"), KindWordCount, 0, "", "11 words, 12 expected"},
		"13 words":                    {someWords + " zoo", KindWordCount, 0, "", "13 words"},
		"a word cut in two":           {strings.Replace(someWords, "sausage", "sau sage", 1), KindWordCount, 6, "sauce", "13 words"},
		"24 words":                    {someWords + " " + someWords, KindWordCount, 0, "", "24 words"},
		"one word":                    {"legal", KindWordCount, 0, "", "1 words"},
		"wrong word of the list":      {swap(2, "zoo"), KindWordSum, 0, "", "together"},
		"numbers of words wrong":      {"1. legal 1. winner", KindForm, 0, "", "digits do not number"},
		"number after the word":       {"legal 1 winner 2", KindForm, 0, "", "digits do not number"},
		"number of a word too large":  {"1 legal 13 winner", KindForm, 0, "", "digits do not number"},
		"number of a word missing":    {"1 legal 2 winner 3 thank 5 wave", KindWordCount, 4, "", "word 4 is missing"},
		"numbered and mistyped":       {"2. winnr 1. legal 3. thank 4. year 5. wave 6. sausage 7. worth 8. useful 9. legal 10. winner 11. thank 12. yellow", KindWord, 2, "winner", "word 2 "},
		"short code":                  {"1234-legal-winner-thank", KindVersion, 0, "", "4 digits and 3 words"},
		"19 digits":                   {someNumber[:len(someNumber)-1], KindDigitCount, 0, "", "19 digits, 20 expected"},
		"21 digits":                   {someNumber + "0", KindDigitCount, 0, "", "21 digits"},
		"a check number":              {"123 456", KindDigitCount, 0, "", "6 digits are the check number"},
		"wrong digit":                 {"1" + someNumber[:len(someNumber)-2] + "6", KindDigitSum, 0, "", "digit is wrong"},
		"digits swapped":              {"2134" + someNumber[4:], KindDigitSum, 0, "", "swapped"},
		"web link":                    {"https://example.org/kith:1#AA", KindLink, 0, "", "link"},
		"web link with capitals":      {"HTTP://EXAMPLE.ORG", KindLink, 0, "", "link"},
		"other link":                  {"mqtt://legal.example", KindLink, 0, "", "link"},
		"link without scheme":         {"www.example.org", KindLink, 0, "", "link"},
		"kith as a web scheme":        {"kith://1/AAAA", KindURI, 0, "", "no version"},
		"scheme alone":                {"kith:", KindURI, 0, "", "ends before its data"},
		"scheme and version":          {"KITH:1", KindURI, 0, "", "ends before its data"},
		"later version":               {"KITH:2/AAAA", KindVersion, 0, "", "another version"},
		"version that is no number":   {"KITH:x/AAAA", KindURI, 0, "", "no version"},
		"version with a zero":         {"KITH:01/AAAA", KindVersion, 0, "", "another version"},
		"no data":                     {"KITH:1/", KindURI, 0, "", "no secret"},
		"not base32":                  {"KITH:1/A1A0", KindURI, 0, "", "damaged"},
		"padded base32":               {"KITH:1/AEAA====", KindURI, 0, "", "damaged"},
		"base32 with loose bits":      {"KITH:1/AB", KindURI, 0, "", "damaged"},
		"not base64url":               {"kith:1#A+/A", KindURI, 0, "", "damaged"},
		"base64 with loose bits":      {"kith:1#AR", KindURI, 0, "", "damaged"},
		"base32 where base64 belongs": {"kith:1#" + strings.Repeat("A", 700), KindURI, 0, "", "damaged"},
		"too much base32":             {"KITH:1/" + strings.Repeat("A", 900), KindURI, 0, "", "damaged"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := Parse(tt.text, testNow)
			var e *ParseError
			if !errors.As(err, &e) || !c.IsZero() {
				t.Fatalf("got %v and a code of method %v", err, c.Method())
			}
			first := ""
			if len(e.Suggestions) > 0 {
				first = e.Suggestions[0]
			}
			if e.Kind != tt.kind || e.Position != tt.position || first != tt.suggest {
				t.Errorf("got kind %d, position %d, suggestions %q; want %d, %d, %q",
					e.Kind, e.Position, e.Suggestions, tt.kind, tt.position, tt.suggest)
			}
			if !strings.Contains(e.Error()+" "+e.Hint, tt.say) || e.Hint == "" {
				t.Errorf("got %q and %q, want %q in them", e.Error(), e.Hint, tt.say)
			}
			if strings.ContainsAny(e.Error()+e.Hint, "\n\x1b") || len(e.Word) > 32 || len(e.Suggestions) > 4 {
				t.Errorf("not fit to print: %q %q %q %q", e.Error(), e.Hint, e.Word, e.Suggestions)
			}
		})
	}
}

func TestExpiredURIIsReadAndReported(t *testing.T) {
	offer := mustNew(t, MethodQR, Options{})
	late := testNow.Add(DefaultLifetime)
	c, err := Parse(offer.URI(), late)
	var e *ParseError
	if !errors.As(err, &e) || e.Kind != KindExpired || !strings.Contains(e.Error(), "2026-11-21 12:10 UTC") {
		t.Fatalf("got %v", err)
	}
	if !c.Equal(offer) || !c.Expired(late) {
		t.Error("the code is not there for whoever wants it all the same")
	}
	for name, now := range map[string]time.Time{"in time": late.Add(-time.Second), "no clock": {}} {
		if _, err := Parse(offer.URI(), now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryWordIsFoundByItsFirstLetters(t *testing.T) {
	for i, word := range english {
		for n := min(prefixChars, len(word)); n <= len(word); n++ {
			if got, ok := lookup(word[:n]); !ok || got != i {
				t.Errorf("%q: got %d %v, want %d (%s)", word[:n], got, ok, i, word)
			}
		}
		if _, ok := lookup(word + "q"); ok {
			t.Errorf("%q is taken", word+"q")
		}
		if got := suggest(word); len(got) == 0 || !slices.Contains(got, word) {
			t.Errorf("%q is not among its own suggestions %q", word, got)
		}
	}
}

// Damm's promise, for all single wrong digits and all swaps of neighbours.
func TestNumberCatchesSlips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		digits := []byte(rapid.StringMatching(`[0-9]{19}`).Draw(t, "digits"))
		digits = append(digits, '0'+dammDigit(digits))
		if _, err := parseNumber(string(digits)); err != nil {
			t.Fatalf("right number: %v", err)
		}
		for i := range digits {
			for d := byte('0'); d <= '9'; d++ {
				wrong := slices.Clone(digits)
				wrong[i] = d
				if _, err := parseNumber(string(wrong)); (err == nil) != (d == digits[i]) {
					t.Fatalf("digit %d of %s as %c: %v", i, digits, d, err)
				}
			}
			if i > 0 && digits[i] != digits[i-1] {
				wrong := slices.Clone(digits)
				wrong[i], wrong[i-1] = wrong[i-1], wrong[i]
				if _, err := parseNumber(string(wrong)); err == nil {
					t.Fatalf("swap at %d of %s is not seen", i, digits)
				}
			}
		}
	})
}
