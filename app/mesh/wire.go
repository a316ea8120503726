package mesh

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
)

// What a connection is for.
const (
	connSession byte = 1
	connRelay   byte = 2
	connRelayed byte = 3
	connLeave   byte = 4
)

// Answers to connRelay, connRelayed and connLeave, and of the end to a port.
const (
	statusOK     byte = 0
	statusNoWay  byte = 1
	statusDenied byte = 2
)

// A kind of message within a session.
type kind byte

const (
	msgRooms   kind = 1
	msgWant    kind = 2
	msgRoster  kind = 3
	msgRemoved kind = 4
	msgNear    kind = 5
	msgFar     kind = 6
	msgFrame   kind = 7
)

const (
	headerSize = 4
	roomSize   = 16
	markSize   = 8
	stateSize  = roomSize + 8 + markSize
	frameHead  = 2*identity.IDSize + rendezvous.TopicSize
)

// maxBody is the longest body of a message, in bytes.
func maxBody(k kind) int {
	switch k {
	case msgRooms:
		return maxRooms * stateSize
	case msgWant:
		return roomSize
	case msgRoster:
		return roomSize + MaxRoster
	case msgRemoved:
		return maxNotice
	case msgNear, msgFar:
		return MaxMembers * identity.IDSize
	case msgFrame:
		return frameHead + rendezvous.FrameSize
	}
	return 0
}

// A State is how far a device's roster of a room is.
type State struct {
	Room    [16]byte
	Version uint64  // the roster's number; 0: there is none yet
	Mark    [8]byte // differs between rosters of one number
}

// A relayed is a frame on its way between two members.
type relayed struct {
	to, from identity.DeviceID
	topic    rendezvous.Topic
	frame    []byte
}

// message puts a header before a body.
func message(k kind, body ...[]byte) []byte {
	out := []byte{byte(k), 0, 0, 0}
	for _, b := range body {
		out = append(out, b...)
	}
	n := len(out) - headerSize
	out[1], out[2], out[3] = byte(n>>16), byte(n>>8), byte(n)
	return out
}

// readMessage reads one message of at most the size that its kind may have.
func readMessage(in io.Reader) (kind, []byte, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, nil, err
	}
	k, n := kind(head[0]), int(head[1])<<16|int(head[2])<<8|int(head[3])
	if n > maxBody(k) {
		return 0, nil, fmt.Errorf("%w: kind %d of %d bytes", errProtocol, k, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(in, body); err != nil {
		return 0, nil, err
	}
	return k, body, nil
}

func encodeStates(states []State) []byte {
	out := make([]byte, 0, len(states)*stateSize)
	for _, s := range states[:min(len(states), maxRooms)] {
		out = binary.BigEndian.AppendUint64(append(out, s.Room[:]...), s.Version)
		out = append(out, s.Mark[:]...)
	}
	return out
}

func parseStates(body []byte) ([]State, error) {
	if len(body)%stateSize != 0 || len(body) > maxRooms*stateSize {
		return nil, errProtocol
	}
	out := make([]State, 0, len(body)/stateSize)
	for ; len(body) > 0; body = body[stateSize:] {
		out = append(out, State{
			Room: [16]byte(body), Version: binary.BigEndian.Uint64(body[roomSize:]), Mark: [markSize]byte(body[roomSize+8:]),
		})
	}
	return out, nil
}

func encodeIDs(ids []identity.DeviceID) []byte {
	out := make([]byte, 0, len(ids)*identity.IDSize)
	for _, id := range ids[:min(len(ids), MaxMembers)] {
		out = append(out, id[:]...)
	}
	return out
}

func parseIDs(body []byte) ([]identity.DeviceID, error) {
	if len(body)%identity.IDSize != 0 || len(body) > MaxMembers*identity.IDSize {
		return nil, errProtocol
	}
	out := make([]identity.DeviceID, 0, len(body)/identity.IDSize)
	for ; len(body) > 0; body = body[identity.IDSize:] {
		out = append(out, identity.DeviceID(body[:identity.IDSize]))
	}
	return out, nil
}

func (r relayed) encode() []byte { return message(msgFrame, r.to[:], r.from[:], r.topic[:], r.frame) }

func parseRelayed(body []byte) (relayed, error) {
	if len(body) != frameHead+rendezvous.FrameSize {
		return relayed{}, errProtocol
	}
	const id = identity.IDSize
	return relayed{
		to: identity.DeviceID(body[:id]), from: identity.DeviceID(body[id : 2*id]),
		topic: rendezvous.Topic(body[2*id : frameHead]), frame: body[frameHead:],
	}, nil
}

// parseRoster splits a message of a roster.
func parseRoster(body []byte) (room [16]byte, roster []byte, err error) {
	if len(body) <= roomSize || len(body) > roomSize+MaxRoster {
		return room, nil, errProtocol
	}
	return [16]byte(body), body[roomSize:], nil
}
