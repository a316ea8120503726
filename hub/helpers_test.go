package hub

import (
	"bytes"
	"os"
	"sync"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// subscribePacket returns a SUBSCRIBE.
func subscribePacket(t testing.TB, topics ...string) []byte {
	t.Helper()
	p := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1}
	for _, topic := range topics {
		p.Filters = append(p.Filters, packets.Subscription{Filter: topic})
	}
	var buf bytes.Buffer
	if err := p.SubscribeEncode(&buf); err != nil {
		t.Error(err)
	}
	return buf.Bytes()
}

// publishPacket returns a PUBLISH.
func publishPacket(t testing.TB, topic string, payload []byte) []byte {
	t.Helper()
	p := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: topic, Payload: payload}
	var buf bytes.Buffer
	if err := p.PublishEncode(&buf); err != nil {
		t.Error(err)
	}
	return buf.Bytes()
}

// chmod700 makes a test's directory what a state directory must be.
func chmod700(dir string) error {
	if dir == "" {
		return nil
	}
	return os.Chmod(dir, 0o700)
}

// syncBuffer is a buffer for a logger.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
