// Package mesh keeps the members of rooms in touch. Between two members that are
// connected stands one session, on a tunnel port, by which they
//
//   - bring each other's rosters up to date, whoever has the newer one;
//   - tell each other which members they are connected to;
//   - pass on sealed frames between members that are not connected yet, so that those
//     find each other with no other medium (Exchange);
//   - splice streams between members that cannot connect at all (Dial), of which the
//     one in the middle carries TLS records and learns nothing but their size.
//
// A Service is given a dialer, a listener and what rooms there are; it knows nothing of
// how rosters are made or judged.
//
// # Hostile members
//
// Any member may say anything. What a member costs is counted by member, not by session
// or stream: sessions, messages, frames, rosters, and streams by whom they are of. What
// others are told of its coming and going is the state at the time, so that a member who
// flaps fills nobody's queue. That a member is connected to another one is only its word:
// frames go by a host and by another member at random, a stream tries one way after the
// other, and only what the other end says in TLS, which proves itself, is final.
//
// # Wire
//
// A connection begins with one byte. 1: a session. After it each message is
//
//	kind u8 || length u24 || body
//
//	1 rooms    {room 16 || version u64 || mark 8}…  what the sender has, of rooms that both may
//	                                       be in; the mark tells rosters of one version apart
//	2 want     room 16                     the sender's roster is older
//	3 roster   room 16 || roster
//	4 removed  notice                      the receiver is no member any more
//	5 near     member 32…                  whom the sender is connected to, since now
//	6 far      member 32…                  … no longer
//	7 frame    to 32 || from 32 || topic 20 || frame 1340
//
// 2: a stream to be passed on, to 32 follows; 3: a stream that was passed on, from 32
// follows. The answer is one byte, 0 if it goes on; then TLS 1.3 between the two ends,
// with certificates of the devices' own Ed25519 keys, and in it the port u16 from who
// dials and one byte, 0, from who accepts.
//
// 4: the caller leaves a room, room 16 follows. The answer of a host is one byte, 0 if the
// caller is off the roster.
package mesh

import (
	"errors"
	"time"
)

// Port is the tunnel port of this service, as a TCP port number.
const Port = 27499

const (
	// MaxRoster is the longest roster that is taken, in bytes.
	MaxRoster = 128 << 10
	// MaxMembers is how many members a session hears of at most, in devices.
	MaxMembers = 4096

	maxRooms  = 256      // that two devices tell each other of
	maxNotice = 4 << 10  // bytes
	sendQueue = 256      // frames that wait for a slow member; what comes then is dropped
	maxConns  = 1024     // streams that are served at once
	perPeer   = 64       // of one member, and connections that have not said yet what they are for
	unproved  = 32       // streams of one member by way of another one before it has proved who it is
	someConns = 4        // of one member, however many there are of others
	frameRate = 400.0    // frames a second that a member may have passed on
	frameMost = 1000.0   // … at once
	msgRate   = 200.0    // other messages a second that are taken of a member
	msgMost   = 2 * 1000 // … at once
	payBytes  = 512      // of a message that count as another one
	beginRate = 1.0      // sessions a second with a member
	beginMost = 8.0      // … at once
	giveRate  = 4.0      // rosters a second that are given to a member
	giveMost  = 64.0     // … at once
	takeRate  = 8.0      // rosters a second that are taken of a member: two may come for one
	takeMost  = 128.0    // … at once
	knockRate = 1.0      // a second that a member brings
	knockMost = 16.0     // … at once

	giveLater = time.Second / 4 // until rosters that were too much are given
	takeLater = time.Second / 8 // … are taken
)

var (
	// ErrNoWay reports that no member who is connected to both can pass a stream on.
	ErrNoWay = errors.New("mesh: no member is connected to both")
	// ErrRefused reports that the member in the middle or at the end has refused.
	ErrRefused = errors.New("mesh: refused")

	errProtocol = errors.New("mesh: the other device says what is not understood")
)
