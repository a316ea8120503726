package room

import (
	"fmt"
	"slices"

	"github.com/kithproject/kith/identity"
)

// A host that the founder named may turn out to be hostile. It can do in the room what
// hosts do, but not what the founder could never undo: its rosters are taken only until the
// day for which it was named, and only so far ahead of the founder's last word that the
// founder always gets past them.
const (
	// HostEpochs is how many epochs a named host may begin while the founder signs
	// nothing, a count.
	HostEpochs = 256

	hostChanges = 1 << 16 // versions that it may make, and numbers that it may give, meanwhile
	maxEpoch    = 1<<24 - 1
	maxChanges  = 1<<40 - 1
	untilSlack  = 1 // days that a clock may be ahead
)

// MaySign reports whether a device may sign the roster on a day since 1970-01-01 UTC: the
// founder on every one, a named host until its last one.
func (r *Roster) MaySign(id identity.DeviceID, day int64) bool {
	i := slices.IndexFunc(r.Hosts, func(h HostEntry) bool { return h.ID == id })
	return i == 0 || i > 0 && day <= r.Hosts[i].Until
}

// Within says whether a roster keeps to what its signer may do, for self on a day since
// 1970-01-01 UTC, given the newest roster known that the founder signed, or nil. The founder
// takes the word of a host whose time is over, too, to go on from there. It errs with
// ErrNotHost.
func (r *Roster) Within(base *Roster, self identity.DeviceID, day int64) error {
	switch founder := r.Founder(); {
	case r.Signer == founder:
		return nil
	case base == nil:
		return fmt.Errorf("%w: the founder's roster that names it comes first", ErrNotHost)
	case self != founder && !r.MaySign(r.Signer, day-untilSlack):
		return fmt.Errorf("%w: its time as one is over", ErrNotHost)
	case int64(r.Epoch)-int64(base.Epoch) > HostEpochs, r.Version > base.Version+hostChanges, uint64(r.Next) > uint64(base.Next)+hostChanges:
		return fmt.Errorf("%w: it is too far ahead of the founder", ErrNotHost)
	case !r.Created.Equal(base.Created):
		return fmt.Errorf("%w: the room is not of that day", ErrNotHost)
	}
	return nil
}

// Outrun raises a roster that is not signed yet past everything that a host which is none
// in it any more may have signed.
func (r *Roster) Outrun() { r.Epoch += HostEpochs }

// Founders returns the newest roster known that the founder signed, or nil.
func (r *Record) Founders() *Roster {
	if r.Roster != nil && r.Roster.Signer == r.Roster.Founder() {
		return r.Roster
	}
	return r.Base
}
