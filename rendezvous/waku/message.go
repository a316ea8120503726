package waku

import (
	"crypto/sha256"
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// A hash is the deterministic hash of a message (14/WAKU2-MESSAGE).
type hash [sha256.Size]byte

// A message is a WakuMessage (14/WAKU2-MESSAGE).
type message struct {
	payload      []byte
	contentTopic string
	version      uint32
	timestamp    int64 // Unix nanoseconds; meaningful if hasTime
	hasTime      bool
	meta         []byte // nil: not there
	proof        []byte // RLN; carried, never checked
	ephemeral    bool
}

// hash identifies the message on a pubsub topic.
func (m *message) hash(pubsub string) (out hash) {
	h := sha256.New()
	h.Write([]byte(pubsub))
	h.Write(m.payload)
	h.Write([]byte(m.contentTopic))
	h.Write(m.meta)
	if m.hasTime {
		var t [8]byte
		binary.BigEndian.PutUint64(t[:], uint64(m.timestamp))
		h.Write(t[:])
	}
	h.Sum(out[:0])
	return out
}

func (m *message) append(b []byte) []byte {
	b = appendData(b, 1, m.payload)
	b = appendText(b, 2, m.contentTopic)
	if m.version != 0 {
		b = appendNumber(b, 3, uint64(m.version))
	}
	if m.hasTime {
		b = appendNumber(b, 10, protowire.EncodeZigZag(m.timestamp))
	}
	if m.meta != nil {
		b = appendData(b, 11, m.meta)
	}
	if m.proof != nil {
		b = appendData(b, 21, m.proof)
	}
	return appendBool(b, 31, m.ephemeral)
}

// parseMessage reads a WakuMessage. What it returns shares memory with b.
func parseMessage(b []byte) (*message, error) {
	if len(b) > maxMessage {
		return nil, errTooLarge
	}
	m := new(message)
	err := each(b, func(num protowire.Number, number uint64, data []byte) error {
		switch num {
		case 1:
			m.payload = data
		case 2:
			return text(&m.contentTopic, data, maxTopic)
		case 3:
			m.version = uint32(number)
		case 10:
			m.timestamp, m.hasTime = protowire.DecodeZigZag(number), true
		case 11:
			if len(data) > maxMeta {
				return errTooLarge
			}
			m.meta = data
		case 21:
			m.proof = data
		case 31:
			m.ephemeral = number != 0
		}
		return nil
	})
	if err == nil && m.contentTopic == "" {
		err = errMalformed
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}
