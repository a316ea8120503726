// Package room is what rooms rest on: who founded one, who is in it, and how a
// device that has nothing but the code is let in. docs/protocol.md ("Rooms") has
// the bytes.
//
//	Host    lets devices in: by approval, by password, by a list, or whoever has the code
//	Joiner  asks a host to be let in, and believes nobody but the host that the code binds
//	Roster  one version of who is in the room, signed by a host
//	Store   the rooms of this device on the disk
//
// Host, Joiner and Roster have no sockets, files, clock or goroutines: frames,
// decisions and the time go in, and what to send, what to make durable and what
// to tell come out (Poll). A driver owns the rest.
//
// A room's id is a hash of its founder's key, and the long code is that id. A
// joiner with the long code tells nothing of itself to anybody who cannot show
// the key; a short code binds nothing, and serves only with a password.
//
// The join is Noise_NNpsk0_25519_ChaChaPoly_SHA256 with ML-KEM-768 in the
// payloads, the psk from the code, and CPace (package pairing/cpace) where there
// is a password: the password is never sent in any form, a recorded exchange
// offers no guess off line, and whoever meets the host gets one guess a
// handshake, which the host counts. Nobody else can make the host judge one in a
// joiner's name. 3 wrong ones void a short code; for the long code 10 stop the
// judging for a while, in which the host's user decides about everybody.
//
// What must hold, and what the tests and models/room_admit.pml and
// models/room_roster.pml check:
//
//	R1  a device believes that it is in the room only if that is durable at the host
//	R2  a device is in the roster once: its number and name are its own and stay
//	R3  no host that knows of a kick signs a roster with the one that was kicked
//	R4  two members' keys are unknown to the host and to who was kicked before
//
// Failures on a shared medium are silent: anybody may have sent the frame.
package room
