// Package pairing lets two devices that share a one-time code prove themselves
// to each other and agree on a key for good: the protocol kith/1 of
// docs/protocol.md.
//
// Everything here is a state machine without sockets, clock or goroutines:
// bytes, user decisions and the time go in, and what to send, what to make
// durable and what to tell the user come out (Machine.Poll). A driver owns the
// sockets, the disk and the timer.
//
//	Machine  one side of one pairing, from the code to the active pair
//	Commit   the last phase alone, PREPARED and COMMITTED, which goes on after
//	         restarts and also ends pairs (UNPAIR)
//	Chain    the pair's key chain, from which the keys of each day come
//
// The handshake is Noise_NNpsk0_25519_ChaChaPoly_SHA256 with the psk from the
// code, ML-KEM-768 in the payloads, a hash commitment for the check number, and
// Ed25519 proofs over the transcript in the manner of SIGMA.
//
// What must hold, and what the tests and the models in models/ check:
//
//	S1  a side is ACTIVE only if the other has a durable record of the same pair
//	S2  a side that has sent PREPARED never silently forgets
//	S3  records are per pair id, so that a new pairing never mixes with an old
//
// Failures on a shared medium are silent: anybody may have sent the frame. Only
// what comes from the other side behind its keys reaches the user.
package pairing
