package room

import "time"

const (
	// Guesses is how many wrong passwords the long code takes before the host
	// judges no more for a while, a count.
	Guesses = 10
	// GuessEvery is how long it takes to regain one of them.
	GuessEvery = 10 * time.Minute
	// ShortGuesses is how many wrong passwords void a short code, a count.
	ShortGuesses = 3
)

// A Guard is a host's memory of wrong passwords, which outlives a restart. The
// zero Guard has seen none.
type Guard struct {
	Spent int       // how many wrong passwords for the long code count still
	Since time.Time // from when the next is regained
	Short int       // wrong passwords for the short code, a count
	Void  bool      // the short code is void
}

// regain forgets what is old enough. A clock that was set back regains nothing.
func (g *Guard) regain(now time.Time) {
	for g.Spent > 0 && !now.Before(g.Since.Add(GuessEvery)) {
		g.Spent--
		g.Since = g.Since.Add(GuessEvery)
	}
	if g.Spent > 0 && now.Before(g.Since) {
		g.Since = now
	}
}

// throttled reports whether no password is judged now.
func (g *Guard) throttled(now time.Time) bool {
	g.regain(now)
	return g.Spent >= Guesses
}

// wrong notes a wrong password, and reports whether it voids the short code.
func (g *Guard) wrong(now time.Time, short bool) (voided bool) {
	if short {
		g.Short++
		if g.Short >= ShortGuesses && !g.Void {
			g.Void = true
			return true
		}
		return false
	}
	g.regain(now)
	if g.Spent == 0 {
		g.Since = now
	}
	g.Spent++
	return false
}
