package waku

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	maxMessage  = 150 << 10         // bytes of one WakuMessage (64/WAKU2-NETWORK)
	maxEnvelope = maxMessage + 4096 // bytes of a message with what is around it
	maxTopic    = 256               // bytes of the name of a topic
	maxMeta     = 64                // bytes (14/WAKU2-MESSAGE)
	maxText     = 1024              // bytes of an identifier or a description
	maxList     = 256               // items of a repeated field
)

var (
	errMalformed = errors.New("malformed message")
	errTooLarge  = errors.New("message is too large")
)

// each calls f for each field of a protobuf message. number holds the value of a
// varint, data the bytes of a length-delimited field; other fields are skipped.
func each(b []byte, f func(num protowire.Number, number uint64, data []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		var number uint64
		var data []byte
		switch typ {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			if data, n = protowire.ConsumeBytes(b); data == nil && n >= 0 {
				data = []byte{}
			}
		case protowire.Fixed32Type, protowire.Fixed64Type:
			if n = protowire.ConsumeFieldValue(num, typ, b); n >= 0 {
				b = b[n:]
				continue
			}
		default: // groups are not used
			return errMalformed
		}
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		if err := f(num, number, data); err != nil {
			return err
		}
	}
	return nil
}

// text takes a string field of limited length.
func text(dst *string, data []byte, limit int) error {
	if len(data) > limit {
		return errTooLarge
	}
	*dst = string(data)
	return nil
}

func appendText(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func appendData(b []byte, num protowire.Number, data []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), data)
}

func appendNumber(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendBool(b []byte, num protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendNumber(b, num, 1)
}

// appendDelimited appends a message behind its length, as all protocols of Waku
// frame them on a stream.
func appendDelimited(dst, msg []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(msg))), msg...)
}

// readDelimited reads a message of at most limit bytes. It returns io.EOF where
// none begins.
func readDelimited(r *bufio.Reader, limit int) ([]byte, error) {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if size > uint64(limit) {
		return nil, fmt.Errorf("%w: %d bytes", errTooLarge, size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("message ends early: %w", err)
	}
	return b, nil
}
