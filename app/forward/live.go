package forward

import (
	"io"
	"sync"
)

// A Key says what a live connection is: who reaches which port of this device.
type Key[D comparable] struct {
	Device   D
	Protocol Protocol
	Port     uint16 // port number of this device
}

// Live knows the open connections of other devices to ports of this one, so that
// those can be ended whose right is withdrawn. D tells devices apart and stays the
// same when a device gets another name. All methods are safe for concurrent use.
//
// To withdraw a right: first make what allowed reads say no, then call CloseWhere.
// In this order no connection slips through, however the two are interleaved.
type Live[D comparable] struct {
	max int

	mu      sync.Mutex
	open    map[Key[D]]map[*liveConn]struct{}
	devices map[D]int // how many connections each has
}

// liveConn is one connection; its address tells equal ones apart.
type liveConn struct{ io.Closer }

// NewLive returns a Live in which each device has at most maxPerDevice connections
// at once; 0 is any number.
func NewLive[D comparable](maxPerDevice int) *Live[D] {
	return &Live[D]{max: maxPerDevice, open: make(map[Key[D]]map[*liveConn]struct{}), devices: make(map[D]int)}
}

// Add registers c, then asks whether it is allowed. The caller calls done when c has
// ended. It errs with ErrDenied or ErrTooMany, and c is then the caller's to close.
func (l *Live[D]) Add(key Key[D], c io.Closer, allowed func() bool) (done func(), err error) {
	conn := &liveConn{c}
	l.mu.Lock()
	if l.max > 0 && l.devices[key.Device] >= l.max {
		l.mu.Unlock()
		return nil, ErrTooMany
	}
	if l.open[key] == nil {
		l.open[key] = make(map[*liveConn]struct{})
	}
	l.open[key][conn] = struct{}{}
	l.devices[key.Device]++
	l.mu.Unlock()
	done = func() { l.remove(key, conn) }
	if !allowed() {
		done()
		return nil, ErrDenied
	}
	return done, nil
}

func (l *Live[D]) remove(key Key[D], conn *liveConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	conns := l.open[key]
	if _, there := conns[conn]; !there {
		return
	}
	delete(conns, conn)
	if len(conns) == 0 {
		delete(l.open, key)
	}
	if l.devices[key.Device]--; l.devices[key.Device] == 0 {
		delete(l.devices, key.Device)
	}
}

// CloseWhere ends the connections whose key matches, at once as Abort does, and
// returns how many they were. It does not wait for those who carry them.
func (l *Live[D]) CloseWhere(match func(Key[D]) bool) int {
	var conns []*liveConn
	l.mu.Lock()
	for key, of := range l.open {
		if !match(key) {
			continue
		}
		for conn := range of {
			conns = append(conns, conn)
		}
	}
	l.mu.Unlock()
	for _, conn := range conns {
		Abort(conn.Closer)
	}
	return len(conns)
}

// Count returns how many connections there are whose key matches.
func (l *Live[D]) Count(match func(Key[D]) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for key, of := range l.open {
		if match(key) {
			n += len(of)
		}
	}
	return n
}
