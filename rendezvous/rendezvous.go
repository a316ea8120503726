// Package rendezvous carries sealed frames between devices that know the same
// Topic, over media that nobody needs to trust.
//
// An Exchange is one medium: a LAN, an MQTT broker, a distributed hash table.
// It may drop, delay, reorder, repeat and invent frames, and everybody may
// listen. What is said over it is sealed by the stages above (package pairing
// before two devices know each other, package signaling afterwards); a driver
// sees topics and opaque frames, never a key.
//
// Every driver passes the conformance suite in package rendezvoustest. Race
// joins several exchanges into one, so that the first one that works wins.
package rendezvous

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
)

const (
	// FrameSize is the length of the frames that an Exchange carries, in bytes.
	// A Session must refuse to publish frames of another size with ErrFrameSize
	// and must not deliver them.
	FrameSize = 1340
	// TopicSize is the length of a Topic, in bytes.
	TopicSize = 20
	// TagSize is the length of a Tag, in bytes.
	TagSize = 8
)

var (
	// ErrFrameSize reports a frame that is not FrameSize bytes long.
	ErrFrameSize = errors.New("rendezvous: frame is not 1340 bytes")
	// ErrUnreachable reports that a medium can carry nothing at the moment: the
	// broker is down, no interface is up. The session goes on trying; the frame
	// is lost and the caller's retransmission brings the next.
	ErrUnreachable = errors.New("rendezvous: medium not reachable")
)

// A Topic names a meeting point. It is derived one-way from a secret that both
// sides hold, so that it identifies nobody and cannot be linked to another.
type Topic [TopicSize]byte

// A Tag is the start of a topic, sent in clear where a medium needs a cheap
// lookup (LAN datagrams).
type Tag [TagSize]byte

// Tag returns the first TagSize bytes of the topic.
func (t Topic) Tag() Tag { return Tag(t[:TagSize]) }

// String returns a short prefix that is fit for logs.
func (t Topic) String() string { return hex.EncodeToString(t[:4]) }

// A Mode says which ways a session is used, so that a driver can leave out the
// other: a send-only session needs no subscription.
type Mode uint8

// The modes of a session. The zero value is Both.
const (
	Both Mode = iota
	ReceiveOnly
	SendOnly
)

// A Point is what a session is opened for.
type Point struct {
	Topic Topic
	Mode  Mode
	// Side tells the two apart that use a topic both ways: 0 is the offerer, 1 the
	// joiner. A medium that keeps messages lets each side write where the other
	// reads. With another Mode than Both it is 0.
	Side uint8
	// Endpoints are addresses at which the other side may listen for LAN
	// frames, from a QR code or from earlier contact. Drivers that cannot send
	// to an address ignore them. At most 16 are used.
	Endpoints []netip.AddrPort
	// Announce lets a LAN driver make the topic's tag findable, so that the
	// other side can send by unicast. It reveals that somebody waits for
	// somebody, which a LAN sees anyway. Public media announce nothing.
	Announce bool
}

// A Message is one frame that came in.
type Message struct {
	Frame    []byte         // FrameSize bytes, owned by the receiver
	Exchange string         // name of the exchange that brought it
	From     netip.AddrPort // sender's address where the medium knows one; not proof of anything
	Stored   bool           // sent before the session began, and kept by a medium that also brings what is sent now

	via *raceMember // of a Racer, that brought it
}

// An Exchange is one medium. It is safe for concurrent use.
type Exchange interface {
	// Name returns the driver's name, for example "lan" or "mqtt".
	Name() string
	// Join opens a session on a point. It does not wait for the medium: a
	// broker that is down is a session that is not reachable yet. ctx bounds
	// the call only. It errs with net.ErrClosed after Close, and otherwise only
	// for a reason that waiting cannot mend.
	Join(ctx context.Context, p Point) (Session, error)
	// Health says how the medium does at this moment. It must not block.
	Health() Health
	// Close ends all sessions and waits for the driver's goroutines.
	Close() error
}

// A Session is one use of a topic on one exchange. It is safe for concurrent
// use. Frames that this session published may come back to it.
type Session interface {
	// Publish hands one frame to the medium. It is best effort: nil means
	// "handed over", not "arrived". It returns ErrFrameSize for a frame of
	// another size, ErrUnreachable (wrapped, with the cause) when the medium
	// cannot take it at the moment, the context's error, and net.ErrClosed
	// after Close. It does not keep or change frame.
	Publish(ctx context.Context, frame []byte) error
	// Receive returns the next frame. It returns the context's error, or
	// net.ErrClosed after Close. A session queues at most QueueSize frames and
	// drops the newest beyond that.
	Receive(ctx context.Context) (Message, error)
	// Close leaves the topic. It is idempotent.
	Close() error
}

// QueueSize is how many received frames a session keeps for a receiver that is
// busy, in frames (340 KiB at most).
const QueueSize = 256

// A Health is the state of one exchange, for status and doctor.
type Health struct {
	Name  string // the exchange's name
	Ready bool   // it could carry a frame now, as far as it knows
	// Detail is one line for a person, for example "mqtts://broker:8883
	// connected" or "no interface with multicast is up". It never contains a
	// password.
	Detail string
	Err    error // why it is not ready; nil if it is
}

// A Checker is an Exchange that can find out by itself whether it still works.
type Checker interface {
	// Check asks it to do so now, since the network may have changed. It does not
	// block.
	Check()
}

// An Endpointer is an Exchange that listens at addresses which a QR code can
// carry.
type Endpointer interface {
	// Endpoints returns the addresses at which this exchange takes unicast
	// frames, best first.
	Endpoints() []netip.AddrPort
}

// An Opener is an Exchange that can open another one of its own settings, as another
// device would, to see whether frames pass between them.
type Opener interface {
	// Another opens one, which the caller closes. It errs as the driver's New does.
	Another() (Exchange, error)
	// Servers returns the host:port of servers that this one depends on; none where there
	// are none, or where they are not reached straight.
	Servers() []string
}
