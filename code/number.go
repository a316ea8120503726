package code

import (
	"errors"
	"fmt"
	"io"
)

const (
	numberDigits = 20 // 19 random and the Damm digit
	groupDigits  = 4
	checkDigits  = 6 // of the number that people compare while pairing
)

// damm is the totally anti-symmetric quasigroup of order 10 from H. Michael
// Damm's thesis (2004): its check digit catches every single wrong digit and
// every swap of neighbours.
var damm = [10][10]byte{ //nolint:gochecknoglobals // a table
	{0, 3, 1, 7, 5, 9, 8, 6, 4, 2},
	{7, 0, 9, 2, 1, 5, 4, 8, 6, 3},
	{4, 2, 0, 6, 8, 7, 1, 3, 5, 9},
	{1, 7, 5, 0, 9, 8, 3, 4, 2, 6},
	{6, 1, 2, 3, 0, 4, 5, 9, 7, 8},
	{3, 6, 7, 4, 2, 0, 9, 5, 8, 1},
	{5, 8, 6, 9, 7, 2, 0, 1, 3, 4},
	{8, 9, 4, 5, 3, 6, 2, 0, 1, 7},
	{9, 4, 3, 8, 6, 1, 7, 2, 0, 5},
	{2, 5, 8, 1, 4, 3, 6, 7, 9, 0},
}

// dammDigit returns the check digit of ASCII digits. Of digits that end in
// their check digit it is 0.
func dammDigit(digits []byte) byte {
	var state byte
	for _, d := range digits {
		state = damm[state][d-'0']
	}
	return state
}

// Number returns the 20 digits in 5 groups of 4, or "" if the code is not a
// number.
func (c Code) Number() string {
	if c.Method() != MethodNumber {
		return ""
	}
	out := make([]byte, 0, numberDigits+numberDigits/groupDigits)
	for i, d := range c.get().digits {
		if i > 0 && i%groupDigits == 0 {
			out = append(out, ' ')
		}
		out = append(out, d)
	}
	return string(out)
}

// randomNumber fills digits with uniform ones and their check digit.
func randomNumber(random io.Reader, digits *[numberDigits]byte) error {
	var buf [1]byte
	n := 0
	// A byte over 249 is thrown away, or low digits would be likelier. A source
	// that gives 1000 bytes without 19 usable ones is broken.
	for range 1000 {
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			return fmt.Errorf("code: new: read randomness: %w", err)
		}
		if buf[0] >= 250 {
			continue
		}
		digits[n] = '0' + buf[0]%10
		if n++; n == numberDigits-1 {
			digits[n] = '0' + dammDigit(digits[:n])
			return nil
		}
	}
	return errors.New("code: new: the source of randomness is broken")
}

// parseNumber reads ASCII digits already cleaned.
func parseNumber(digits string) (Code, error) {
	if len(digits) != numberDigits {
		e := failf(KindDigitCount, "type all 20 digits, 5 groups of 4", "%d digits, %d expected", len(digits), numberDigits)
		switch {
		case len(digits) == roomDigits && dammDigit([]byte(digits)) == 0:
			return Code{}, failf(KindRoom, "kith room join takes a room's code", "these 7 digits are the short code of a room")
		case len(digits) == checkDigits:
			e.Hint = "6 digits are the check number, which is compared later; the code is " + accepted[len("a code is "):]
		}
		return Code{}, e
	}
	p := &payload{method: MethodNumber, digits: [numberDigits]byte([]byte(digits))}
	if dammDigit(p.digits[:]) != 0 {
		return Code{}, failf(KindDigitSum, "compare the digits with the other device", "a digit is wrong or two are swapped")
	}
	return wrap(p), nil
}
