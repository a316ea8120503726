package hub

import (
	"net"
	"testing"
	"time"
)

// BenchmarkRelay measures packets of 1200 bytes from a client through the hub to
// a peer, with hub, client and peer in this process: 64 are under way at a time.
func BenchmarkRelay(b *testing.B) {
	for _, via := range []string{"udp", "tcp", "tls"} {
		b.Run(via, func(b *testing.B) {
			h := open(b, nil)
			peer := udpConn(b, "127.0.0.1:0")
			_ = peer.SetReadBuffer(socketBuffer)
			user, password := turnUser(h, "desk", time.Hour)
			relay := allocate(b, turnDial(b, h, via, user, password))
			packet := make([]byte, 1200)
			exchange(b, relay, peer.LocalAddr(), peer, packet) // makes the permission
			slots := make(chan struct{}, 64)
			done := make(chan struct{})
			go func() {
				defer close(done)
				buf := make([]byte, 2048)
				_ = peer.SetReadDeadline(time.Time{})
				for {
					if _, _, err := peer.ReadFrom(buf); err != nil {
						return
					}
					select {
					case <-slots:
					default:
					}
				}
			}()
			lost := 0
			b.SetBytes(int64(len(packet)))
			for b.Loop() {
				select {
				case slots <- struct{}{}:
				case <-time.After(100 * time.Millisecond): // a packet was lost
					lost++
				}
				if _, err := relay.WriteTo(packet, peer.LocalAddr()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(lost), "lost")
			_ = peer.Close()
			<-done
		})
	}
}

// BenchmarkPublish measures one message from a client through the broker to
// another, one at a time, over TLS.
func BenchmarkPublish(b *testing.B) {
	h := open(b, nil)
	from := dialMQTT(b, h, h.Address().MQTTURLs()[0], nil)
	to := dialMQTT(b, h, h.Address().MQTTURLs()[0], nil)
	topic := randomTopic()
	to.subscribe(b, topic)
	from.publish(b, topic, make([]byte, 1340))
	to.receive(b)
	limited := 0
	for b.Loop() {
		if limited++; limited >= int(publishBurst)-1 { // a client more for each burst
			b.StopTimer()
			_ = from.Disconnect(b.Context())
			limited, from = 0, dialMQTT(b, h, h.Address().MQTTURLs()[0], nil)
			b.StartTimer()
		}
		from.publish(b, topic, make([]byte, 1340))
		to.receive(b)
	}
}

// BenchmarkBinding measures answers to STUN binding requests, without sockets.
func BenchmarkBinding(b *testing.B) {
	h := open(b, nil)
	u := h.socks.main()[0]
	req := []byte("\x00\x01\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa")
	src := addrOf(&net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7})
	b.ReportAllocs()
	for b.Loop() {
		if resp, _, _ := binding(req, src, place{}, u.origin(u.local.Addr())); resp == nil {
			b.Fatal("no answer")
		}
	}
}
