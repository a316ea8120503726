package link

import (
	"fmt"

	"github.com/kithproject/kith/internal/wire"
)

// A keyring holds the sealers of a link for a day and its neighbours.
type keyring struct {
	day, skew int64
	send      *sealer
	receive   []*sealer
	today     *sealer // of receive: of our day
}

// renewKeys derives the sealers again if the day has changed, or what is known
// of the peer's day.
func (l *Link) renewKeys() error {
	day := wire.Day(l.cfg.Now())
	if l.keys.send != nil && l.keys.day == day && l.keys.skew == l.skew {
		return nil
	}
	send, _, err := l.cfg.Keys(day)
	if err != nil {
		return fmt.Errorf("link: keys of day %d: %w", day, err)
	}
	fresh := keyring{day: day, skew: l.skew, send: newSealer(send)}
	days := []int64{day - 1, day, day + 1}
	for d := day + l.skew - 1; d <= day+l.skew+1; d++ {
		if d < day-1 || d > day+1 {
			days = append(days, d)
		}
	}
	for _, d := range days {
		// A day before the pairing has no keys, and nobody uses them.
		if _, receive, err := l.cfg.Keys(d); err == nil {
			sealer := newSealer(receive)
			fresh.receive = append(fresh.receive, sealer)
			if d == day {
				fresh.today = sealer
			}
		}
	}
	l.keys = fresh
	l.socket.setKeys(l, fresh.receive)
	return nil
}
