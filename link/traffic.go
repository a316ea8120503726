package link

import (
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Traffic says how much a Link carries, and how well. Loss is found out by
// looking: WireGuard numbers its data packets, and the peer's pongs tell what
// arrived there.
type Traffic struct {
	Sent     uint64 `json:"sent_bytes"`     // WireGuard datagrams since the Link was made
	Received uint64 `json:"received_bytes"` // WireGuard datagrams since the Link was made

	SendRate    float64 `json:"send_rate"`    // bytes per second over about the last 3 s; 0 when idle
	ReceiveRate float64 `json:"receive_rate"` // bytes per second over about the last 3 s; 0 when idle
	PeakSend    float64 `json:"peak_send"`    // bytes per second in the best second or so
	PeakReceive float64 `json:"peak_receive"` // bytes per second in the best second or so

	// Loss is counted in data packets over about the last 10 s of traffic. Negative:
	// not known, because there were few packets, no answer of the peer yet, or a peer
	// that does not tell.

	LossIn  float64 // share (0 to 1) of data packets that were lost towards us
	LossOut float64 // share (0 to 1) of data packets that were lost towards the peer
}

// Traffic returns the figures of this moment.
func (l *Link) Traffic() Traffic { return l.meter.read(time.Now()) }

const (
	rateWindow = 3 * time.Second
	peakWindow = time.Second
	// sampleCount is how many samples are kept: one per trafficPeriod of traffic.
	sampleCount = 22
	// leastPackets is how many data packets say something of loss.
	leastPackets = 10
	// maxGap is how many packets may be missing between two of one key: more than
	// a fast link carries in a minute that nothing of it passes. A greater step is
	// no loss but a forged number.
	maxGap = 1 << 22
)

// A meter counts what a Link carries. Its methods are safe for concurrent use,
// and none of its memory grows.
type meter struct {
	sent atomic.Uint64 // bytes

	mu       sync.Mutex // guards the fields below
	received uint64     // bytes
	spans    [2]span    // of the receiver indices in use, the newer one first
	expected uint64     // data packets that were sent to us, as far as their numbers show
	arrived  uint64     // of these
	samples  [sampleCount]sample
	count    int // samples taken
	best     [2]float64
	out      uint16 // the peer's lossCode
}

// A span is what is known of the data packets under one key of WireGuard's.
type span struct {
	index uint32
	top   uint64 // highest number
	used  bool
}

// A sample is what a meter showed at some moment.
type sample struct {
	at                time.Time
	sent, received    uint64
	expected, arrived uint64
}

// A tally is what one batch, or a part of it, brought of one link: at most the
// data packets of one key.
type tally struct {
	bytes    uint64
	packets  uint64 // data packets
	index    uint32 // their receiver index
	low, top uint64 // their lowest and highest number
}

// add counts a WireGuard packet. It reports false, and does not, if the packet is
// one of another key.
func (t *tally) add(b []byte) bool {
	const transport = 4
	if b[0] == transport { // at least 32 bytes, as isWireGuard says
		index, number := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:])
		switch {
		case t.packets == 0:
			t.index, t.low, t.top = index, number, number
		case index != t.index:
			return false
		default:
			t.low, t.top = min(t.low, number), max(t.top, number)
		}
		t.packets++
	}
	t.bytes += uint64(len(b))
	return true
}

// arrive takes a tally.
func (m *meter) arrive(t *tally) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.received += t.bytes
	if t.packets == 0 {
		return
	}
	m.arrived += t.packets
	s := &m.spans[0]
	if !s.used || s.index != t.index {
		s = &m.spans[1] // packets of the last key that come late
	}
	switch {
	case !s.used || s.index != t.index:
		m.spans[1] = m.spans[0]
		m.spans[0] = span{index: t.index, top: t.top, used: true}
		m.expected += t.apart()
	case t.top > s.top && t.top-s.top <= maxGap:
		m.expected += t.top - s.top
		s.top = t.top
	case t.top > s.top || s.top-t.low > maxGap:
		m.expected += t.packets
		s.top = t.top
	default: // late ones: they were expected
	}
}

// apart is how many packets lie between the lowest and the highest of a tally.
func (t *tally) apart() uint64 {
	if gap := t.top - t.low; gap < maxGap {
		return gap + 1
	}
	return t.packets
}

// look takes a sample.
func (m *meter) look(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lookLocked(now)
}

func (m *meter) lookLocked(now time.Time) sample {
	s := sample{at: now, sent: m.sent.Load(), received: m.received, expected: m.expected, arrived: m.arrived}
	send, receive := m.rateLocked(s, peakWindow)
	m.best[0], m.best[1] = max(m.best[0], send), max(m.best[1], receive)
	m.samples[m.count%sampleCount] = s
	m.count++
	return s
}

// rateLocked is what was carried up to now, in bytes per second.
func (m *meter) rateLocked(now sample, window time.Duration) (send, receive float64) {
	// Samples stop when the traffic does, so that what came after one of them came
	// shortly before the next.
	base, over := m.oldestLocked(), window
	for i := 1; i <= min(m.count, sampleCount); i++ {
		s := m.samples[(m.count-i)%sampleCount]
		if age := now.at.Sub(s.at); age >= window {
			base = s
			if age < window+2*trafficPeriod {
				over = age
			}
			break
		}
	}
	return float64(now.sent-base.sent) / over.Seconds(), float64(now.received-base.received) / over.Seconds()
}

// oldestLocked is the oldest sample; the zero sample if all are there since the beginning.
func (m *meter) oldestLocked() sample {
	if m.count < sampleCount {
		return sample{}
	}
	return m.samples[m.count%sampleCount]
}

// lossLocked is the share of data packets that did not arrive; negative: not known.
func (m *meter) lossLocked() float64 {
	base := m.oldestLocked()
	expected, arrived := m.expected-base.expected, m.arrived-base.arrived
	if expected < leastPackets {
		return -1
	}
	return max(0, 1-float64(arrived)/float64(expected)) // below: copies
}

func (m *meter) read(now time.Time) Traffic {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := sample{at: now, sent: m.sent.Load(), received: m.received}
	t := Traffic{
		Sent: s.sent, Received: s.received, PeakSend: m.best[0], PeakReceive: m.best[1],
		LossIn: m.lossLocked(), LossOut: decodeLoss(m.out),
	}
	t.SendRate, t.ReceiveRate = m.rateLocked(s, rateWindow)
	return t
}

// lossCode is what a pong tells of the packets that were lost towards us.
func (m *meter) lossCode() uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return encodeLoss(m.lossLocked())
}

// told takes what a pong of the peer says.
func (m *meter) told(code uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out = code
}

// lossSteps is how finely a pong tells a share: its whole, in steps.
const lossSteps = math.MaxUint16 - 1

// encodeLoss makes 16 bits of a share; 0: it is not known.
func encodeLoss(share float64) uint16 {
	if share < 0 {
		return 0
	}
	return 1 + uint16(math.Round(min(share, 1)*lossSteps))
}

func decodeLoss(code uint16) float64 {
	if code == 0 {
		return -1
	}
	return float64(code-1) / lossSteps
}
