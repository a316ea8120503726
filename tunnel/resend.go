package tunnel

import (
	"bytes"
	"encoding/binary"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// WireGuard's messages (whitepaper section 5.4). Each begins with its type, and a
// sender's index, by which answers name it, follows.
const (
	typeInitiation = 1
	typeResponse   = 2
	typeTransport  = 4

	initiationSize = 148 // bytes
	responseSize   = 92  // bytes

	indexSender   = 4 // offset of the own index in an initiation and a response
	indexReceiver = 4 // offset of the other's index in a transport message
	indexAnswered = 8 // offset of the other's index in a response
	ephemeral     = 8 // offset of the random public key in an initiation
)

const (
	// resendFirst is how long an initiation waits for its response before the
	// same bytes go out again, doubled each time up to resendLongest. WireGuard
	// itself tries again only after 5 s. The first is short because the other side
	// may just not have been ready.
	resendFirst   = 50 * time.Millisecond
	resendLongest = 400 * time.Millisecond
	resendTimes   = 12
	// answerLifetime is for how long a response is repeated: longer than the
	// other side repeats its initiation.
	answerLifetime = 10 * time.Second
	// overtaken is for how long after an answer an initiation may come that crossed
	// ours and was overtaken by the answer to it. A peer that begins anew repeats
	// its initiation for longer.
	overtaken = time.Second
	// maxUnproven is how many received initiations are remembered before WireGuard
	// has answered them: anybody can send one.
	maxUnproven = 32
	// maxAnswers is how many responses are remembered. Only peers get one.
	maxAnswers = 256
)

// messageType returns the type of a message that has the size of its type, else 0.
func messageType(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	t := binary.LittleEndian.Uint32(b)
	if (t == typeInitiation && len(b) != initiationSize) || (t == typeResponse && len(b) != responseSize) || (t == typeTransport && len(b) < 32) {
		return 0
	}
	return t
}

func index(b []byte, offset int) uint32 { return binary.LittleEndian.Uint32(b[offset:]) }

// where tells endpoints apart: WireGuard's own makes a new one for each packet.
func where(ep conn.Endpoint) string {
	if ep == nil {
		return ""
	}
	return string(ep.DstToBytes())
}

// A resender repairs lost handshake messages. It does no I/O and reads no clock.
// It is not safe for concurrent use.
//
// An initiation is sent again until something answers its index. Its receiver,
// whose WireGuard takes the copy for a replay, sends the same response again.
//
// Two initiations that cross would both be answered, and both answers thrown
// away, since each side has turned from initiator to responder: WireGuard then
// waits for five seconds. Here the one with the lesser random key wins: who has
// sent it does not hear the other one, and sends its own again; nor does it hear
// one that comes late, after the answer.
type resender struct {
	waiting  map[string]*initiation // ours without an answer, by endpoint
	won      map[string]victory     // ours that were just answered, by endpoint
	unproven [maxUnproven]received  // a ring
	next     int                    // of unproven
	answers  []answer               // the oldest first
}

// An initiation is one of ours that waits.
type initiation struct {
	message []byte
	to      conn.Endpoint
	left    int // how often it may be sent again
	wait    time.Duration
	due     time.Time
}

// A victory is an initiation of ours that was answered.
type victory struct {
	message []byte
	until   time.Time // initiations that lose to it are not heard
}

// received is an initiation that came in.
type received struct {
	message [initiationSize]byte
	from    string
}

// An answer is our response to an initiation.
type answer struct {
	received
	response []byte
	until    time.Time
}

func newResender() *resender {
	return &resender{waiting: make(map[string]*initiation), won: make(map[string]victory)}
}

// sent is told of every handshake message that WireGuard sends.
func (r *resender) sent(now time.Time, b []byte, to conn.Endpoint) {
	at := where(to)
	switch messageType(b) {
	case typeInitiation:
		delete(r.won, at)
		r.waiting[at] = &initiation{
			message: bytes.Clone(b), to: to, left: resendTimes, wait: resendFirst, due: now.Add(resendFirst),
		}
	case typeResponse:
		// WireGuard has chosen to be the responder.
		delete(r.waiting, at)
		for i := range r.unproven {
			u := &r.unproven[i]
			if u.from == at && index(u.message[:], indexSender) == index(b, indexAnswered) {
				r.remember(now, answer{received: *u, response: bytes.Clone(b), until: now.Add(answerLifetime)})
				*u = received{}
				return
			}
		}
	}
}

func (r *resender) remember(now time.Time, a answer) {
	old := 0
	for old < len(r.answers) && (len(r.answers)-old >= maxAnswers || !now.Before(r.answers[old].until)) {
		old++
	}
	r.answers = append(r.answers[old:len(r.answers):len(r.answers)], a)
}

// received is told of every handshake message that comes in and, while an
// initiation waits, of every other packet. It returns what is to be sent back at
// once, if anything, and whether WireGuard must not see the packet.
func (r *resender) received(now time.Time, b []byte, from conn.Endpoint) (reply []byte, hide bool) {
	switch messageType(b) {
	case typeResponse:
		r.answered(now, where(from), index(b, indexAnswered))
	case typeTransport:
		r.answered(now, where(from), index(b, indexReceiver))
	case typeInitiation:
		at := where(from)
		for _, a := range r.answers {
			if a.from == at && bytes.Equal(a.message[:], b) && now.Before(a.until) {
				return a.response, true
			}
		}
		if w := r.waiting[at]; w != nil && bytes.Compare(w.message[ephemeral:], b[ephemeral:]) < 0 {
			return nil, true // they cross, and ours wins
		}
		if w, ok := r.won[at]; ok && now.Before(w.until) && bytes.Compare(w.message[ephemeral:], b[ephemeral:]) < 0 {
			return nil, true // the same, and the answer was faster
		}
		r.unproven[r.next] = received{message: [initiationSize]byte(b), from: at}
		r.next = (r.next + 1) % maxUnproven
	}
	return nil, false
}

// answered ends the repetition of the initiation that has an index: data of an
// earlier session says nothing about it.
func (r *resender) answered(now time.Time, at string, own uint32) {
	w := r.waiting[at]
	if w == nil || index(w.message, indexSender) != own {
		return
	}
	delete(r.waiting, at)
	for other, old := range r.won {
		if !now.Before(old.until) {
			delete(r.won, other)
		}
	}
	r.won[at] = victory{message: w.message, until: now.Add(overtaken)}
}

// due returns an initiation to be sent now, or nil.
func (r *resender) due(now time.Time) *initiation {
	for at, w := range r.waiting {
		if now.Before(w.due) {
			continue
		}
		if w.left--; w.left < 0 {
			delete(r.waiting, at)
			continue
		}
		w.wait = min(2*w.wait, resendLongest)
		w.due = now.Add(w.wait)
		return w
	}
	return nil
}

// nextDue returns when due wants to be called; the zero time is never.
func (r *resender) nextDue() time.Time {
	var first time.Time
	for _, w := range r.waiting {
		if first.IsZero() || w.due.Before(first) {
			first = w.due
		}
	}
	return first
}

// forget drops what is remembered of an endpoint.
func (r *resender) forget(ep conn.Endpoint) {
	at := where(ep)
	delete(r.waiting, at)
	delete(r.won, at)
	kept := r.answers[:0]
	for _, a := range r.answers {
		if a.from != at {
			kept = append(kept, a)
		}
	}
	clear(r.answers[len(kept):])
	r.answers = kept
	for i := range r.unproven {
		if r.unproven[i].from == at {
			r.unproven[i] = received{}
		}
	}
}

// reset drops everything.
func (r *resender) reset() { *r = *newResender() }
