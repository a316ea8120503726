package kith_test

import (
	"bufio"
	"context"
	"crypto/rand"
	bin "encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/rendezvous"
)

// topicFlood is how many frames of noise come on the code's topic.
const topicFlood = 100_000

// TestNetworkTopicFlood has somebody who sees the broker's topics send 100,000 frames of
// noise on that of a code while two devices pair there.
func TestNetworkTopicFlood(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	m := newMeetLab(ctx, t, nettest.NATEasy)
	if _, err := exec.LookPath("mosquitto"); err != nil {
		nettest.Skip(t, "the command mosquitto is not installed")
	}
	host := m.inet.Server("broker")
	broker := host.Start("mosquitto", "-v", "-c", brokerConf(t))
	broker.Await(ctx, "running")
	at := host.Addrs()[0].String()
	settings := [][]string{{"mqtt", "mqtt://" + at}}
	m.fresh(ctx, settings)
	code, p := m.nodes[0].offer(ctx, "words")
	id := regexp.MustCompile(`kith/1/[0-9a-f]{40}`)
	topic := id.FindString(broker.Await(ctx, id.String()))
	var conn net.Conn
	var err error
	m.inet.Server("attacker").Do(func() { conn, err = new(net.Dialer).DialContext(ctx, "tcp", at+":1883") })
	if err != nil {
		t.Fatal(err)
	}
	begun, sent := make(chan struct{}), make(chan error, 1)
	go func() { sent <- floodTopic(conn, topic, begun) }()
	select {
	case <-begun:
	case err := <-sent:
		t.Fatal(err)
	}
	loud := m.join(ctx, code, p)
	far := "it had come to its end"
	select {
	case err = <-sent:
	default:
		far = "it was under way"
		conn.Close()
		err = <-sent
	}
	m.fresh(ctx, settings)
	t.Logf("paired in %v (%s: %v), in silence in %v", loud.Round(time.Millisecond), far, err, m.pair(ctx).Round(time.Millisecond))
}

// floodTopic publishes noise to a topic of an MQTT 3.1.1 broker, and closes begun when
// the first hundredth is out. Its result says how far it came.
func floodTopic(conn net.Conn, topic string, begun chan<- struct{}) error {
	w := bufio.NewWriterSize(conn, 1<<16)
	const id = "flood"
	connect := append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(id))}, id...)
	if _, err := w.Write(connect); err != nil {
		return err
	}
	body := bin.BigEndian.AppendUint16(nil, uint16(len(topic)))
	body = append(body, topic...)
	packet := append([]byte{0x30}, bin.AppendUvarint(nil, uint64(len(body)+rendezvous.FrameSize))...)
	packet = append(packet, body...)
	noise := make([]byte, rendezvous.FrameSize)
	for i := range topicFlood {
		if _, err := rand.Read(noise); err != nil {
			return err
		}
		if _, err := w.Write(append(packet[:len(packet):len(packet)], noise...)); err != nil {
			return fmt.Errorf("%d frames, then %w", i, err)
		}
		if i == topicFlood/100 {
			close(begun)
		}
	}
	return w.Flush()
}
