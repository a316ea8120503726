package portmap

import "time"

// An epoch is a gateway's clock as last seen: seconds since it lost its state.
// The zero value has not seen one.
type epoch struct {
	at     time.Time // ours
	server uint32    // theirs, in seconds
}

// pcp takes in an epoch and reports whether it is a sane continuation, by the
// rules of RFC 6887 section 8.5. A jump either way counts as a lost state.
func (e *epoch) pcp(now time.Time, server uint32) bool {
	prev := *e
	*e = epoch{at: now, server: server}
	if prev.at.IsZero() {
		return true
	}
	if int64(server)+1 < int64(prev.server) {
		return false
	}
	client := int64(now.Sub(prev.at) / time.Second)
	delta := int64(server) - int64(prev.server)
	return client+2 >= delta-delta/16 && delta+2 >= client-client/16
}

// pmp does the same by RFC 6886 section 3.6, which only knows going back.
func (e *epoch) pmp(now time.Time, server uint32) bool {
	prev := *e
	*e = epoch{at: now, server: server}
	if prev.at.IsZero() {
		return true
	}
	expected := int64(prev.server) + int64(now.Sub(prev.at)/time.Second)*7/8
	return int64(server) >= expected-2
}
