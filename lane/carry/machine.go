package carry

import "time"

const (
	window   = 4 << 20 // bytes on the lane that the other side has not read
	ackEvery = 1 << 20 // bytes
	// maxWaiting is how many messages wait for the other side to read earlier ones.
	maxWaiting = 64
	// maxLane is what one lane carries in one direction: TLS does not renew its keys
	// (RFC 8446 section 5.5).
	maxLane = 256 << 30 // bytes
	// stallAfter is how long the lane may bring no acknowledgement of what is on it,
	// and idleAfter how long nothing at all is on it, before it is left.
	stallAfter = 2 * time.Second
	idleAfter  = 10 * time.Second
)

// A where is which carrier a direction is on.
type where uint8

const (
	tunnel  where = iota
	lane          // the lane of this epoch
	nowhere       // it waits: for the lane, the other side's back, or to have left the lane
	over          // the stream has ended
)

// A machine is one end of a connection: it knows which byte goes where, and holds none
// of them. It has no clock and no I/O; its caller guards it.
type machine struct {
	out []message // to be sent

	// The lane.
	epoch uint32
	bound bool
	gone  bool // it is dead to this side
	busy  bool // somebody reads from it
	left  bool // our back is sent
	back  bool // theirs has come

	// Sending.
	sent     uint64
	going    uint64 // what is being written to the tunnel: it may be read before it is counted
	send     where
	from     uint64 // where the lane begins; of this epoch, if switched
	switched bool
	acked    uint64 // on the lane
	fin      bool   // sent is the end
	resend   uint64 // from here, once back has come

	// Receiving.
	got    uint64
	come   bool   // their switch of this epoch
	begins uint64 // its offset
	ended  bool
	ends   uint64 // offset of the end, if ended
	told   uint64 // our last ack

	progress time.Time // when acked moved, or the lane was empty
	moved    time.Time // when anything was on the lane
}

// free reports whether there is no lane, and a new one may come.
func (m *machine) free() bool { return m.epoch == 0 || m.left && m.back }

// start begins an epoch. It errs if it is not the next, or the last is not over.
func (m *machine) start(epoch uint32) error {
	if !m.free() || m.send == nowhere || epoch != m.epoch+1 {
		return ErrProtocol
	}
	m.begin(epoch)
	return nil
}

func (m *machine) begin(epoch uint32) {
	m.epoch, m.bound, m.gone, m.left, m.back = epoch, false, false, false, false
	m.switched, m.come = false, false
}

// bind says that the lane of this epoch stands. It reports whether it is still wanted.
func (m *machine) bind(now time.Time) bool {
	if m.epoch == 0 || m.bound || m.gone {
		return false
	}
	m.bound, m.progress, m.moved = true, now, now
	return true
}

// writing returns where the next bytes go, and how many at most if that is the lane. It
// is for a caller that has no other write under way: it moves to the lane.
func (m *machine) writing(now time.Time) (where, int) {
	if m.send == tunnel && m.bound && !m.gone && !m.fin {
		m.send, m.switched = lane, true
		m.from, m.acked = m.sent, m.sent
		m.say(kindSwitch, m.sent)
	}
	if m.send != lane {
		return m.send, 0
	}
	if m.acked == m.sent {
		m.progress = now
	}
	return lane, int(window - (m.sent - m.acked))
}

// write says that n bytes are being written to the tunnel.
func (m *machine) write(n int) { m.going = uint64(n) }

// wrote counts what was written to the tunnel, or is on its way into the lane.
func (m *machine) wrote(n int, now time.Time) {
	m.sent += uint64(n)
	m.going = 0
	m.moved = now
}

// end says that nothing more is written, and reports whether the tunnel's stream is to
// be ended for that now.
func (m *machine) end() bool {
	if m.fin {
		return false
	}
	m.fin = true
	if m.send == lane {
		m.say(kindEnd, m.sent)
	}
	return m.send == tunnel
}

// reading returns from where the next bytes come, and how many at most. While it is the
// lane, busy is to be set until read is called.
func (m *machine) reading() (where, int) {
	const all = 1 << 30
	most := all
	if m.ended {
		if m.got == m.ends {
			return over, 0
		}
		most = int(min(m.ends-m.got, all))
	}
	switch {
	case !m.come: // in this epoch the tunnel is all there is
		return tunnel, most
	case m.left:
		return tunnel, most
	case m.got < m.begins:
		return tunnel, int(min(m.begins-m.got, uint64(most)))
	case m.gone, !m.bound: // their switch may be here before their answer on the lane
		return nowhere, 0
	}
	return lane, most
}

// read counts what was read from a carrier.
func (m *machine) read(from where, n int, now time.Time) {
	m.got += uint64(n)
	if from != lane {
		return
	}
	m.busy = false
	if n > 0 {
		m.moved = now
	}
	switch {
	case m.gone && !m.left:
		m.depart()
	case m.got-m.told >= ackEvery, m.ended && m.got == m.ends:
		m.ack()
	}
}

// tunnelEnd says that the tunnel's stream has ended, and reports whether it may.
func (m *machine) tunnelEnd() bool {
	if m.ended && m.got != m.ends || m.come && !m.left && m.got < m.begins {
		return false
	}
	m.ended, m.ends = true, m.got
	return true
}

func (m *machine) ack() {
	m.told = m.got
	m.say(kindAck, m.got)
}

// leave gives the lane up. What is read from it until read is called still counts.
func (m *machine) leave() {
	if m.epoch == 0 || m.gone {
		return
	}
	m.gone = true
	if m.send == lane {
		m.send = nowhere
	}
	if !m.busy {
		m.depart()
	}
}

func (m *machine) depart() {
	m.left = true
	at := m.got
	if m.come { // what the tunnel still brings need not come again
		at = max(at, m.begins)
	}
	m.told = m.got
	m.say(kindBack, at)
}

// resent says that all from resend on has been written to the tunnel. It reports
// whether the tunnel's stream is to be ended now.
func (m *machine) resent() bool {
	m.send = tunnel
	return m.fin
}

// delivered reports whether nothing that was sent depends on the lane any more.
func (m *machine) delivered() bool {
	return m.send == tunnel || m.send == lane && m.acked == m.sent
}

// receive takes a message. It errs with ErrProtocol if it cannot be; again reports that
// resend bytes are to be written to the tunnel, and resent called.
func (m *machine) receive(g message, now time.Time, dialer bool) (again bool, err error) {
	// A lane that never came here, and was left there.
	if g.kind == kindBack && !dialer && m.free() && g.epoch == m.epoch+1 {
		m.begin(g.epoch)
	}
	if m.epoch == 0 || g.epoch != m.epoch || m.back || len(m.out) > maxWaiting {
		return false, ErrProtocol
	}
	switch g.kind {
	case kindSwitch:
		switch {
		case m.come:
			return false, ErrProtocol
		case m.gone: // the tunnel has it all, and may have been faster
		case m.ended || g.offset < m.got:
			return false, ErrProtocol
		default:
			m.come, m.begins, m.told = true, g.offset, g.offset
		}
	case kindAck:
		if g.offset > m.sent {
			return false, ErrProtocol
		}
		if m.switched && g.offset > m.acked {
			m.acked, m.progress = g.offset, now
		}
	case kindEnd:
		if m.left && m.ended && g.offset == m.ends { // the tunnel may have been faster
			break
		}
		if m.ended || g.offset < m.got || m.come && g.offset < m.begins {
			return false, ErrProtocol
		}
		m.ended, m.ends = true, g.offset
		if m.got == m.ends && m.come && !m.left {
			m.ack()
		}
	case kindBack:
		if g.offset > m.sent+m.going || m.switched && m.acked > m.from && g.offset < m.acked {
			return false, ErrProtocol
		}
		m.back = true
		m.leave()
		if m.switched {
			m.resend = max(g.offset, m.from)
			return true, nil
		}
	default:
		return false, ErrProtocol
	}
	return false, nil
}

// tick says what time it is; it reports whether the lane is to be left.
func (m *machine) tick(now time.Time) bool {
	if m.come && !m.left && m.got > m.told {
		m.ack()
	}
	if !m.bound || m.gone {
		return false
	}
	if m.switched && m.sent-m.from >= maxLane || m.come && m.got > m.begins && m.got-m.begins >= maxLane {
		return true
	}
	return m.send == lane && m.acked < m.sent && now.Sub(m.progress) >= stallAfter || now.Sub(m.moved) >= idleAfter
}

func (m *machine) say(kind byte, offset uint64) {
	if n := len(m.out); kind == kindAck && n > 0 && m.out[n-1].kind == kindAck {
		m.out[n-1].offset = offset
		return
	}
	m.out = append(m.out, message{kind, m.epoch, offset})
}
