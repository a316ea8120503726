package code

import (
	"crypto/sha256"
	_ "embed"
	"math/big"
	"slices"
	"strings"
)

const (
	wordCount   = 12
	wordBits    = 11
	prefixChars = 4 // the list is made so that 4 letters tell its words apart
)

// wordlist is the English list of BIP39, byte for byte
// (github.com/bitcoin/bips, bip-0039/english.txt): 2048 sorted lines.
//
//go:embed wordlist.txt
var wordlist string

// english is wordlist in lines, never written.
var english = strings.Fields(wordlist) //nolint:gochecknoglobals // a table

// Words returns the 12 words, separated by spaces, or "" for a number and the
// zero Code. They are the BIP39 encoding of the 16 bytes.
func (c Code) Words() string {
	if !c.strong() {
		return ""
	}
	return wordsOf(c.get().secret, pairingSum)
}

// pairingSum is the checksum of BIP39, in the upper 4 bits.
func pairingSum(secret [secretSize]byte) byte {
	sum := sha256.Sum256(secret[:])
	return sum[0]
}

// wordsOf writes 16 bytes as 12 words: 128 bits and the upper 4 of their
// checksum are 12 groups of 11 bits.
func wordsOf(secret [secretSize]byte, checksum func([secretSize]byte) byte) string {
	n := new(big.Int).SetBytes(append(secret[:secretSize:secretSize], checksum(secret)))
	n.Rsh(n, 4)
	out := make([]string, wordCount)
	for i := range out {
		shift := uint((wordCount - 1 - i) * wordBits)
		out[i] = english[new(big.Int).Rsh(n, shift).Uint64()&(1<<wordBits-1)]
	}
	return strings.Join(out, " ")
}

// secretOf is the reverse of wordsOf: 12 indices of the list to 16 bytes. It
// reports whether each of the two checksums fits.
func secretOf(indices []int) (secret [secretSize]byte, pairing, room bool) {
	n := new(big.Int)
	for _, i := range indices {
		n.Lsh(n, wordBits)
		n.Or(n, big.NewInt(int64(i)))
	}
	var bits [secretSize + 1]byte
	n.Lsh(n, 4).FillBytes(bits[:])
	secret = [secretSize]byte(bits[:secretSize])
	sum := bits[secretSize] >> 4
	return secret, pairingSum(secret)>>4 == sum, roomSum(secret)>>4 == sum
}

// lookup returns the index of a word of the list, given in full or by its
// first letters, of which there must be 4 at least and no more than the word
// has.
func lookup(word string) (int, bool) {
	i, exact := slices.BinarySearch(english, word)
	if exact {
		return i, true
	}
	if len(word) >= prefixChars && i < len(english) && strings.HasPrefix(english[i], word) {
		return i, true // no second word shares 4 letters; a test checks the list
	}
	return 0, false
}

// readWords reads words already cleaned and split, without numbering, of
// either kind of code.
func readWords(words []string) (secret [secretSize]byte, pairing, room bool, err error) {
	indices := make([]int, 0, wordCount)
	bad := -1
	for i, word := range words {
		index, ok := lookup(word)
		if !ok && bad < 0 {
			bad = i
		}
		indices = append(indices, index)
	}
	if len(words) != wordCount {
		e := failf(KindWordCount, "", "%d words, %d expected", len(words), wordCount)
		e.Hint = "type all 12 words, in the order they are shown"
		if bad >= 0 {
			e.at(bad, words[bad])
		}
		return secret, false, false, e
	}
	if bad >= 0 {
		e := failf(KindWord, "compare that word with the other device", "word %d is not in the word list", bad+1)
		e.at(bad, words[bad])
		return secret, false, false, e
	}
	secret, pairing, room = secretOf(indices)
	if !pairing && !room {
		return secret, false, false, failf(KindWordSum, "compare each word and the order with the other device",
			"every word is in the list, but together they are not a code")
	}
	return secret, pairing, room, nil
}

// parseWords reads the words of a pairing.
func parseWords(words []string) (Code, error) {
	secret, pairing, _, err := readWords(words)
	if err != nil {
		return Code{}, err
	}
	if !pairing {
		return Code{}, failf(KindRoom, "kith room join takes a room's code; if the other device shows a pairing, compare each word",
			"these words are a room's")
	}
	return wrap(&payload{method: MethodWords, secret: secret}), nil
}

// at notes the word at fault.
func (e *ParseError) at(index int, word string) {
	e.Position = index + 1
	e.Suggestions = suggest(word)
	e.Word = word[:min(len(word), 32)]
}

// suggest returns up to 4 words of the list that somebody who typed word may
// have meant, likeliest first: those that begin with it, then those at most 2
// slips of the finger away, of equally far ones first those with the same first
// letter, which people seldom get wrong.
func suggest(word string) []string {
	const most, maxLetters, maxSlips = 4, 16, 2
	if word == "" || len(word) > maxLetters {
		return nil
	}
	var ranks [2 * (maxSlips + 1)][]string
	for _, w := range english {
		rank := 0
		if len(word) < 2 || !strings.HasPrefix(w, word) {
			n := slips(word, w)
			if n > maxSlips || n >= len(word) {
				continue
			}
			rank = 2 * n
			if w[0] != word[0] {
				rank++
			}
		}
		ranks[rank] = append(ranks[rank], w)
	}
	out := slices.Concat(ranks[:]...)
	return out[:min(len(out), most)]
}

// slips is the number of letters to insert, delete, replace or swap with their
// neighbour to turn a into b (optimal string alignment).
func slips(a, b string) int {
	if d := len(a) - len(b); d > 2 || d < -2 {
		return 3 // more than anyone asks for
	}
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}
