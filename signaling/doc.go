// Package signaling lets the two devices of a pair tell each other where they
// are: sealed messages on topics that only they can derive and that change daily.
//
// A message is a frame of package wire, sealed under the day's key of its
// direction (pairing.Chain), with a CBOR map as body:
//
//	0x10 presence  1 boot id 8, 2 counter, 3 day, 4 echo 8, 5 seen, 6 want,
//	               7 name, 8 version, 9 capabilities,
//	               10 candidates [kind, address and port, priority],
//	               12 NAT behaviour (package link/punch)
//	0x11 goodbye   1 boot id 8, 2 counter, 4 echo 8
//	0x12 commit    1 boot id 8, 2 counter, 11 body (package pairing, Commit)
//	0x13 note      1 boot id 8, 2 counter, 4 echo 8, 11 body 1 to 900,
//	               14 number, 15 acknowledged
//	0x14 question  1 boot id 8, 2 counter, 4 echo 8, 11 body 1 to 900, 14 number
//	0x15 answer    1 boot id 8, 2 counter, 4 echo 8, 11 body 1 to 900,
//	               14 number of the question; without 11 and 14: who runs here
//
// A boot id is new at each start of a program, and a counter grows within it. A
// presence counts only if it echoes the boot id of the receiver's present run:
// that proves that it is fresh, so that a recorded message of an earlier run
// changes nothing. A presence that does not is answered with this side's own,
// and the two know each other one round trip after either has started.
//
// A Channel repeats its presence until the other side has confirmed it, and is
// silent after that.
//
// # Notes
//
// Note carries up to 900 bytes from program to program, on a medium of its own
// choice (Config.Notes), one note at a time. Notes are numbered from 1 in each run
// of the sender. One is taken if it echoes the receiver's present run and its number
// is higher than those taken from the sender's run before; then field 15 of a
// message without a body says so. A note that echoes another run is answered, too,
// with no acknowledgement: so its sender learns the run and sends it again at once.
// A device takes 50 notes a second on average.
//
// # Questions
//
// Ask sends up to 900 bytes to the other device on all media, and returns what its
// program answers (Config.TakeQuestion, Answer), which may take its time. A question is
// fresh and numbered as a note is. One that comes again is answered again with the same
// bytes, and looked at once. A device takes one question a second. What questions and
// answers say is in Question and Reply. A version that knows no questions ignores both
// types.
package signaling
