// Package carry moves a connection between two devices from their tunnel to a lane,
// a direct TLS connection, and back, without losing or repeating a byte. So a
// connection is as fast as the wire while there is one, and lives on in the tunnel
// when its device goes elsewhere.
//
// A connection begins as a plain one inside the tunnel, at the cost of nothing. When it
// has carried a few MiB, the side that dialed it opens a second connection inside the
// tunnel, the control connection, and a lane; from then on each side chooses by itself
// where it writes. Both carriers hold the plain bytes of the stream, with no frames
// around them. What must be said is said on the control connection, in messages of 16
// bytes:
//
//	hello   u8 1 || 0 || u16 port of the dialer || u16 port dialed || 10 x 0
//	status  u8 2 || u8 0 taken, 1 not known here, 2 busy || 14 x 0
//	switch  u8 3 || 3 x 0 || u32 epoch || u64 what follows this offset comes by the lane
//	ack     u8 4 || 3 x 0 || u32 epoch || u64 read up to here
//	end     u8 5 || 3 x 0 || u32 epoch || u64 the stream ends here
//	back    u8 6 || 3 x 0 || u32 epoch || u64 the lane is left, read up to here
//
// All numbers are big endian. Offsets count the bytes of a direction from the first of
// the connection. The dialer says hello, the other side answers with a status, and then
// both say the rest. Epochs count lanes, from 1; a lane begins with 16 bytes from the
// dialer (u8 7 || 0 || both ports as in hello || 2 x 0 || u32 epoch || 4 x 0), and one
// byte, 7, as the answer.
//
// # Back
//
// Who finds that the lane is dead (an error, no acknowledgement for 2 s, another
// network) or idle says back, and reads it no more. The other side answers with its own
// back. What was written to the lane and not read is then written to the tunnel, from
// the offset that back names. So the sender keeps at most 4 MiB until they are
// acknowledged, and the receiver keeps nothing. The next lane is the next epoch.
//
// # Limits
//
// A lane carries at most 4 MiB per round trip, as the tunnel's own connections do. A lane
// that carries nothing for 10 s is left, and one that has carried 256 GiB, whose keys TLS
// does not renew. Deadlines hold on both carriers; that of a Write which the lane does not
// take leaves the lane.
//
// # What the other device can do
//
// It is a paired device, and the stream is its own. Offsets that cannot be end the
// connection. Who never acknowledges makes this side hold 4 MiB for two seconds, and is
// served through the tunnel then. Until it has read them there the connection counts as
// one that is on a lane (OnLane), and at most a minute after Close.
package carry
