package doctor

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Pseudonyms replaces what tells who somebody is, or where: addresses, names and
// keys, each by the same word wherever it stands. Words keep what a diagnosis
// needs: of what kind an address is, and which are of one network. It is not safe
// for concurrent use. The zero value knows no names.
type Pseudonyms struct {
	names  []named
	known  map[string]bool // which texts are in names, in lower case
	words  map[string]int  // kind and what was found → its number
	counts map[string]int  // words of each kind
	keep   map[string]bool // what looks like a name and is none
}

type named struct {
	text, kind string
	find       *regexp.Regexp
	early      bool // before addresses: one is part of it
}

// A Name is a text that tells who somebody is, and of what kind it is, such as
// "device".
type Name struct {
	Text string `json:"text"`
	Kind string `json:"kind"`
}

// ownWords are texts that tell of nobody: what kith is called, and what every system has.
var ownWords = map[string]bool{"kith": true, "root": true, "localhost": true} //nolint:gochecknoglobals // a table

// Name has a text replaced wherever it stands as a word, in large or small letters, as
// something of a kind, such as "device". Texts of less than two bytes are left alone, and
// so are those that every system has, such as "localhost".
func (p *Pseudonyms) Name(text, kind string) {
	text = strings.TrimSpace(text)
	id := strings.ToLower(text)
	if len(text) < 2 || ownWords[id] || p.known[id] {
		return
	}
	if p.known == nil {
		p.known = make(map[string]bool)
	}
	p.known[id] = true
	early := slices.ContainsFunc(address.FindAllString(text, -1), func(s string) bool {
		_, ok := findAddress(s)
		return ok
	}) || mac.MatchString(text)
	p.names = append(p.names, named{text, kind, regexp.MustCompile(`(?i)` + regexp.QuoteMeta(text)), early})
	// Longer names first: one may be part of another.
	slices.SortStableFunc(p.names, func(a, b named) int { return len(b.text) - len(a.text) })
}

// Keep leaves texts alone that look like the name of a host.
func (p *Pseudonyms) Keep(texts ...string) {
	if p.keep == nil {
		p.keep = make(map[string]bool)
	}
	for _, t := range texts {
		p.keep[strings.ToLower(t)] = true
	}
}

var (
	// Candidates for addresses; netip says which are some.
	address = regexp.MustCompile(`[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f.:]*|\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}`)
	reverse = regexp.MustCompile(`(?i)\b[0-9a-f][0-9a-f.-]*\.(?:in-addr|ip6)\.arpa\b`)
	mac     = regexp.MustCompile(`\b[0-9A-Fa-f]{2}(?:(?::[0-9A-Fa-f]{2}){5,7}|(?:-[0-9A-Fa-f]{2}){5,7})\b`)
	// Names of interfaces that systemd makes of a MAC address.
	macName = regexp.MustCompile(`\b(en|wl|ww|eth|ib|sl)x([0-9A-Fa-f]{12})`)
	key     = regexp.MustCompile(`\b[0-9A-Za-z+/_-]{24,}={0,2}`)
	host    = regexp.MustCompile(`\b[0-9A-Za-z_](?:[0-9A-Za-z_-]*[0-9A-Za-z])?(?:\.[0-9A-Za-z](?:[0-9A-Za-z-]*[0-9A-Za-z])?)*\.[A-Za-z][0-9A-Za-z-]*[A-Za-z]\b`)
	// What certificates call their owners and makers (RFC 4514), and how Go says so.
	holder = regexp.MustCompile(`\b(?:CN|OU?|L|ST|C|STREET|POSTALCODE|SERIALNUMBER|DC|UID)=((?:\\+.|[^,+"\\])+)|authority certificate "((?:\\.|[^"\\])+)"|certificate is valid for (.+?), not `)
	// A folder of a user; on Windows his name may have spaces in it.
	home = regexp.MustCompile(`((?i)/home/|/Users/)([^/\s"]+)|((?i)\\Users\\)([^\\/"]+)`)
)

// A piece is a part of a text; one that is done stands for something, and nothing more is
// looked for in it.
type piece struct {
	text string
	done bool
}

// each has every part of what is not done replaced that find finds. with returns the new
// text, or false to leave the part as it is.
func each(pieces []piece, find *regexp.Regexp, with func(s string, at []int) (string, bool)) (out []piece) {
	for _, pc := range pieces {
		if pc.done {
			out = append(out, pc)
			continue
		}
		from := 0
		for _, at := range find.FindAllStringSubmatchIndex(pc.text, -1) {
			if text, ok := with(pc.text, at); ok {
				out = append(out, piece{text: pc.text[from:at[0]]}, piece{text, true})
				from = at[1]
			}
		}
		out = append(out, piece{text: pc.text[from:]})
	}
	return out
}

// Text returns a text with pseudonyms.
func (p *Pseudonyms) Text(s string) string {
	pieces := each([]piece{{text: s}}, holder, func(s string, at []int) (string, bool) {
		for i := 2; i < len(at); i += 2 {
			if from, to := at[i], at[i+1]; from >= 0 {
				return s[at[0]:from] + p.word("name", strings.ToLower(s[from:to])) + s[to:at[1]], true
			}
		}
		return "", false
	})
	pieces = p.named(pieces, true)
	pieces = each(pieces, reverse, func(s string, at []int) (string, bool) {
		return p.word("host", strings.ToLower(s[at[0]:at[1]])), true
	})
	pieces = each(pieces, mac, func(s string, at []int) (string, bool) { return p.mac(s[at[0]:at[1]]), true })
	pieces = each(pieces, macName, func(s string, at []int) (string, bool) {
		return s[at[2]:at[3]] + "x-" + p.mac(s[at[4]:at[5]]), true
	})
	pieces = each(pieces, address, func(s string, at []int) (string, bool) { return p.address(s[at[0]:at[1]]) })
	pieces = p.named(pieces, false)
	pieces = each(pieces, home, func(s string, at []int) (string, bool) {
		i := 2
		if at[i] < 0 {
			i = 6
		}
		whole := s[at[i+2]:at[i+3]]
		name := strings.TrimRight(whole, ".,;:)'") // the sentence's own
		return s[at[i]:at[i+1]] + p.word("user", strings.ToLower(name)) + whole[len(name):], true
	})
	pieces = each(pieces, host, func(s string, at []int) (string, bool) {
		name := strings.ToLower(s[at[0]:at[1]])
		if p.keep[name] {
			return "", false
		}
		return p.word("host", name), true
	})
	pieces = each(pieces, key, func(s string, at []int) (string, bool) { return p.word("key", s[at[0]:at[1]]), true })
	var b strings.Builder
	for _, pc := range pieces {
		b.WriteString(pc.text)
	}
	return b.String()
}

// named replaces the names that have an address in them, or the others.
func (p *Pseudonyms) named(pieces []piece, early bool) []piece {
	for _, n := range p.names {
		if n.early != early {
			continue
		}
		pieces = each(pieces, n.find, func(s string, at []int) (string, bool) {
			if partOfWord(s, at[0], at[1]) {
				return "", false
			}
			return p.word(n.kind, strings.ToLower(n.text)), true
		})
	}
	return pieces
}

// partOfWord reports whether what stands there goes on before or behind it.
func partOfWord(s string, from, to int) bool {
	return from > 0 && inWord(s[from-1]) && inWord(s[from]) || to < len(s) && inWord(s[to]) && inWord(s[to-1])
}

func inWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// mac is the word for a MAC address, however it is written.
func (p *Pseudonyms) mac(text string) string {
	return p.word("mac", strings.NewReplacer(":", "", "-", "").Replace(strings.ToLower(text)))
}

// maxAddress is more than any address has, in bytes: what looks like a longer one is
// replaced whole.
const maxAddress = 64

// An addressIn is an address that stands in a text, from and to there.
type addressIn struct {
	addr     netip.Addr
	from, to int
}

// findAddress finds the longest address in a candidate: something else may stand before
// it ("DNS:"), and the sentence's own signs behind it.
func findAddress(text string) (found addressIn, ok bool) {
	for from := range text {
		if from > 0 && text[from-1] != ':' {
			continue
		}
		for to := len(text); to > from; to-- {
			if to < len(text) && text[to] != '.' && text[to] != ':' {
				continue
			}
			if a, err := netip.ParseAddr(text[from:to]); err == nil {
				return addressIn{a, from, to}, true
			}
		}
	}
	return addressIn{}, false
}

// address is the word for an address, or false if it is none that tells anything.
func (p *Pseudonyms) address(text string) (string, bool) {
	if len(text) > maxAddress {
		return p.word("address", text), true
	}
	in, ok := findAddress(text)
	a := in.addr.Unmap()
	if !ok || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return "", false
	}
	bits := 24
	if a.Is6() {
		bits = 64
	}
	network, _ := a.Prefix(bits)
	return text[:in.from] + p.word(kindOf(a)+"-"+p.letter(network.String()), a.String()) + text[in.to:], true
}

// letter names a network: a, b, … z, a1 and so on.
func (p *Pseudonyms) letter(network string) string {
	n := p.number("network", network) - 1
	letter := string(rune('a' + n%26))
	if n >= 26 {
		letter += fmt.Sprint(n / 26)
	}
	return letter
}

// kindOf says of what kind an address is (RFC 1918, RFC 6598, RFC 4193).
func kindOf(a netip.Addr) string {
	kind := "public"
	switch {
	case a.IsLinkLocalUnicast():
		kind = "linklocal"
	case a.IsPrivate():
		kind = "private"
	case netip.MustParsePrefix("100.64.0.0/10").Contains(a):
		kind = "shared"
	}
	if a.Is6() {
		return kind + "6"
	}
	return kind + "4"
}

func (p *Pseudonyms) word(kind, text string) string {
	return fmt.Sprintf("%s-%d", kind, p.number(kind, text))
}

// number counts the texts of a kind in the order in which they appear.
func (p *Pseudonyms) number(kind, text string) int {
	if p.words == nil {
		p.words, p.counts = make(map[string]int), make(map[string]int)
	}
	id := kind + "\x00" + text
	if n, ok := p.words[id]; ok {
		return n
	}
	p.counts[kind]++
	p.words[id] = p.counts[kind]
	return p.counts[kind]
}

// Report returns a report with pseudonyms in all that does not come from the table of
// checks, and its time in UTC.
func (p *Pseudonyms) Report(r Report) Report {
	r.Started = r.Started.UTC()
	r.Verdict.State, r.Verdict.Cause, r.Verdict.Fix = p.Text(r.Verdict.State), p.Text(r.Verdict.Cause), p.Text(r.Verdict.Fix)
	r.Results, r.Causes = p.results(r.Results), p.results(r.Causes)
	return r
}

func (p *Pseudonyms) results(all []Result) []Result {
	out := slices.Clone(all)
	for i := range out {
		r := &out[i]
		r.Subject, r.Cause, r.Fix = p.Text(r.Subject), p.Text(r.Cause), p.Text(r.Fix)
		r.Evidence = slices.Clone(r.Evidence)
		for j := range r.Evidence {
			r.Evidence[j] = p.Text(r.Evidence[j])
		}
	}
	return out
}

// Bundle returns a report with pseudonyms as JSON for a report of a bug; version is that
// of the program. It errs if the report cannot be marshalled.
func Bundle(p *Pseudonyms, version string, r Report) ([]byte, error) {
	for _, c := range Table() {
		p.Keep(string(c.Code))
	}
	out, err := json.MarshalIndent(struct {
		Kith   string `json:"kith"`
		Report Report `json:"report"`
	}{version, p.Report(r)}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("doctor: bundle: %w", err)
	}
	return append(out, '\n'), nil
}
