package hub

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pion/stun/v4"
)

// guess is an Allocate request with a wrong password.
func guess(t testing.TB, c *rawTURN) []byte {
	t.Helper()
	user := fmt.Sprintf("%d:desk", time.Now().Add(time.Hour).Unix())
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), wantUDP,
		stun.NewUsername(user), stun.NewRealm(turnRealm), c.nonce, stun.NewLongTermIntegrity(user, turnRealm, "guess"))
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

// TestGuessing holds that whoever guesses credentials is slowed down, that the hub
// does not grow by it, and that clients of the same address that have a relay, and
// all clients of other addresses, notice nothing.
func TestGuessing(t *testing.T) {
	h := open(t, nil)
	peer := udpConn(t, "127.0.0.1:0")
	user, password := turnUser(h, "desk", time.Hour)
	relay := allocate(t, turnDial(t, h, "udp", user, password)) // of the attacker's address
	signed := dialRaw(t, h, "udp", user, password)
	if m := signed.ask(t, stun.MethodAllocate, wantUDP); m.Type.Class != stun.ClassSuccessResponse {
		t.Fatal(m)
	}
	attacker := dialRaw(t, h, "udp", "", "")
	if err := attacker.nonce.GetFrom(attacker.once(t, stun.MethodAllocate)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	const guesses = 20000
	wrong := guess(t, attacker)
	for i := range guesses {
		binary.BigEndian.PutUint32(wrong[8:], uint32(i))
		if _, err := attacker.Write(wrong); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			exchange(t, relay, peer.LocalAddr(), peer, fmt.Appendf(nil, "packet %d", i))
			if m := signed.ask(t, stun.MethodRefresh); m.Type.Class != stun.ClassSuccessResponse {
				t.Fatal(m)
			}
		}
	}
	bound := loginBurst + loginRate*(2+time.Since(start).Seconds())
	if got := metric(h, `kith_hub_turn_logins_total{result="refused"}`); got > bound || got < loginBurst/2 {
		t.Errorf("%v guesses were looked at, want about %v", got, bound)
	}
	if metric(h, `kith_hub_drops_total{reason="turn_rate"}`) < guesses/4 {
		t.Error("guesses were not dropped")
	}
	// Over TCP the address has a bound of its own, and its connections end.
	for tcp, ended := dialRaw(t, h, "tcp", "", ""), false; !ended; {
		if err := tcp.nonce.GetFrom(tcp.once(t, stun.MethodAllocate)); err != nil {
			t.Fatal(err)
		}
		wrong := guess(t, tcp)
		_ = tcp.SetDeadline(time.Now().Add(testLimit))
		for range 2 * int(loginBurst) {
			if _, err := tcp.Write(wrong); err != nil {
				break
			}
		}
		_, err := io.Copy(io.Discard, tcp)
		if ended = !errors.Is(err, os.ErrDeadlineExceeded); !ended {
			t.Fatal("a connection that guesses stays open")
		}
	}
	h.turn.logins.mu.Lock()
	if n := len(h.turn.logins.ips); n > maxSources {
		t.Errorf("%d addresses are remembered", n)
	}
	h.turn.logins.mu.Unlock()
	if elsewhere, err := net.ListenPacket("udp", "127.0.0.2:0"); err == nil { // only Linux has it without being told to
		defer elsewhere.Close()
		to := addrOf(attacker.RemoteAddr())
		m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = elsewhere.WriteTo(m.Raw, net.UDPAddrFromAddrPort(to))
		_ = elsewhere.SetReadDeadline(time.Now().Add(testLimit))
		if _, _, err := elsewhere.ReadFrom(make([]byte, 1500)); err != nil {
			t.Errorf("another address: %v", err)
		}
	}
}

// TestAmplification holds that a forged sender gets no more than five times the
// bytes sent in his name, and that only a few times.
func TestAmplification(t *testing.T) {
	h := open(t, nil)
	raw := func(kind stun.MessageType, attrs ...stun.Setter) []byte {
		m, err := stun.Build(append([]stun.Setter{stun.TransactionID, kind}, attrs...)...)
		if err != nil {
			t.Fatal(err)
		}
		return m.Raw
	}
	request := func(m stun.Method) stun.MessageType { return stun.NewType(m, stun.ClassRequest) }
	for name, p := range map[string][]byte{
		"binding": raw(stun.BindingRequest), "allocate": raw(request(stun.MethodAllocate)), "refresh": raw(request(stun.MethodRefresh)),
		"permission": raw(request(stun.MethodCreatePermission)), "channel": raw(request(stun.MethodChannelBind)), "connect": raw(request(stun.MethodConnect)),
		"unknown":  raw(request(stun.MethodAllocate), stun.RawAttribute{Type: 0x7f01}),
		"unsigned": raw(request(stun.MethodAllocate), stun.RawAttribute{Type: stun.AttrMessageIntegrity, Length: 20, Value: make([]byte, 20)}),
		"nonce": raw(request(stun.MethodAllocate), stun.RawAttribute{Type: stun.AttrNonce, Length: 1, Value: []byte{'x'}},
			stun.RawAttribute{Type: stun.AttrMessageIntegrity, Length: 20, Value: make([]byte, 20)}),
		"data": channelData(0x4000, make([]byte, 1200)), "little data": channelData(0x4000, []byte{1}), "indication": raw(stun.NewType(stun.MethodSend, stun.ClassIndication)),
	} {
		t.Run(name, func(t *testing.T) {
			for _, server := range h.Address().STUNServers() {
				victim := udpConn(t, "127.0.0.1:0")
				conn, err := net.Dial("udp", server)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				to := addrOf(conn.RemoteAddr())
				largest := 0
				for range 3 {
					if _, err := victim.WriteToUDPAddrPort(p, to); err != nil {
						t.Fatal(err)
					}
				}
				buf := make([]byte, 4096)
				answers := 0
				for {
					_ = victim.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
					n, _, err := victim.ReadFromUDPAddrPort(buf)
					if err != nil {
						break
					}
					answers++
					largest = max(largest, n)
				}
				if answers > 3 || largest > 5*len(p) {
					t.Errorf("%d answers, the largest of %d bytes for %d", answers, largest, len(p))
				}
				t.Logf("%s: %d bytes for %d", server, largest, len(p))
			}
		})
	}
	// However many are sent.
	start := time.Now()
	victim := dialRaw(t, h, "udp", "", "")
	const flood = 20000
	for i := range flood {
		p := raw(stun.BindingRequest)
		if i%2 == 1 {
			p = raw(request(stun.MethodAllocate))
		}
		if _, err := victim.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	answers := 0
	for victim.read(t, 200*time.Millisecond) != nil {
		answers++
	}
	most := bindingBurst + loginBurst + (bindingRate+loginRate)*(1+time.Since(start).Seconds())
	if float64(answers) > most {
		t.Errorf("%d answers to %d requests, want %v at most", answers, flood, most)
	}
}

// TestGarbageEverywhere sends noise to every port and inside every protocol, and
// uses the hub after it.
func TestGarbageEverywhere(t *testing.T) {
	h := open(t, nil)
	rng := rand.New(rand.NewPCG(1, 2))
	noise := func() []byte {
		p := make([]byte, rng.IntN(1500))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if len(p) > 8 && rng.IntN(2) == 0 { // as STUN, ChannelData or MQTT at first sight
			p[0] = []byte{0x00, 0x01, 0x40, 0x4f, 0x10, 0x16}[rng.IntN(6)]
			copy(p[4:], "\x21\x12\xa4\x42")
		}
		return p
	}
	for _, server := range h.Address().STUNServers() {
		c, err := net.Dial("udp", server)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 2000 {
			if _, err := c.Write(noise()); err != nil {
				t.Fatal(err)
			}
		}
	}
	dial := func(wrap func(net.Conn) net.Conn) {
		c, err := net.Dial("tcp", h.hostPort())
		if err != nil {
			t.Fatal(err)
		}
		c = wrap(c)
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(testLimit))
		for range 20 {
			if _, err := c.Write(noise()); err != nil {
				return // cut off, as it should
			}
		}
		_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = io.Copy(io.Discard, c)
	}
	for range 20 {
		dial(func(c net.Conn) net.Conn { return c })
		dial(func(c net.Conn) net.Conn { return tls.Client(c, h.Address().TLSConfig()) })
		for _, hello := range []string{"\x10\x0c\x00\x04MQTT\x05", "\x00\x03\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa", "GET /mqtt HTTP/1.1\r\n"} {
			dial(func(c net.Conn) net.Conn { _, _ = c.Write([]byte(hello)); return c })
		}
		ctx, cancel := context.WithTimeout(t.Context(), testLimit)
		ws, resp, err := websocket.Dial(ctx, "ws://"+h.hostPort()+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body != nil {
			_ = resp.Body.Close()
		}
		_ = ws.Write(ctx, websocket.MessageBinary, noise())
		_ = ws.CloseNow()
		cancel()
	}
	await(t, "all of them gone", func() bool { return metric(h, "kith_hub_connections") == 0 })
	c := dialMQTT(t, h, h.Address().MQTTURLs()[1], nil)
	topic := randomTopic()
	c.subscribe(t, topic)
	c.publish(t, topic, []byte("still here"))
	c.receive(t)
	user, password := turnUser(h, "desk", time.Hour)
	peer := udpConn(t, "127.0.0.1:0")
	exchange(t, allocate(t, turnDial(t, h, "tls", user, password)), peer.LocalAddr(), peer, []byte("still here"))
}

// TestMQTTFlood lets one address flood by many connections, all of which hear all
// that the others send, and holds that others are served in time meanwhile.
func TestMQTTFlood(t *testing.T) {
	h := open(t, nil)
	from, to := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil), dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
	topic, noise := randomTopic(), randomTopic()
	to.subscribe(t, topic)
	one, sub := publishPacket(t, noise, make([]byte, 1000)), subscribePacket(t, noise)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	for range 32 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := net.Dial("tcp", h.hostPort())
				if err != nil {
					continue
				}
				if login(conn, h.Address().MQTTPassword(), 30) == nil {
					_, _ = conn.Write(sub)
					done := make(chan struct{})
					go func() { defer close(done); _, _ = io.Copy(io.Discard, conn) }()
					_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
					for err = nil; err == nil; { // until the hub ends it
						select {
						case <-stop:
							err = io.EOF
						default:
							_, err = conn.Write(one)
						}
					}
					_ = conn.Close()
					<-done
				}
				_ = conn.Close()
			}
		})
	}
	await(t, "flooders cut off", func() bool { return metric(h, `kith_hub_drops_total{reason="packet_rate"}`) > 0 })
	var took []time.Duration
	for i := range int(publishBurst) - 10 {
		start := time.Now()
		from.publish(t, topic, fmt.Appendf(nil, "message %d", i))
		if got := string(to.receive(t).Payload); !strings.HasSuffix(got, fmt.Sprint(i)) {
			t.Errorf("%q came for message %d", got, i)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("median %v, worst %v", took[len(took)/2], took[len(took)-1])
	if worst := took[len(took)-1]; worst > 2*time.Second {
		t.Errorf("a message took %v", worst)
	}
}
