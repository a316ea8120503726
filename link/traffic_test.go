package link

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
)

// dataPacket looks like a data packet of WireGuard's.
func dataPacket(index uint32, number uint64, size int) []byte {
	b := make([]byte, size)
	b[0] = 4
	binary.LittleEndian.PutUint32(b[4:], index)
	binary.LittleEndian.PutUint64(b[8:], number)
	return b
}

type keyed struct {
	index  uint32
	number uint64
}

// deliver counts packets as the socket does, in batches.
func (m *meter) deliver(batch int, packets []keyed) {
	var got tally
	for i, p := range packets {
		b := dataPacket(p.index, p.number, 32)
		if i%batch != 0 && got.add(b) {
			continue
		}
		m.arrive(&got)
		got = tally{}
		got.add(b)
	}
	m.arrive(&got)
}

func TestLossIsSeenInTheNumbers(t *testing.T) {
	all := func(index uint32, from, to uint64, lost func(uint64) bool) []keyed {
		var out []keyed
		for n := from; n < to; n++ {
			if !lost(n) {
				out = append(out, keyed{index, n})
			}
		}
		return out
	}
	none := func(uint64) bool { return false }
	every := func(k uint64) func(uint64) bool { return func(n uint64) bool { return n%k == 1 } }
	join := func(lists ...[]keyed) (out []keyed) {
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	shuffled := func(window int, list []keyed) []keyed {
		random := rand.New(rand.NewPCG(1, 2))
		for i := 0; i+window <= len(list); i += window {
			part := list[i : i+window]
			random.Shuffle(window, func(a, b int) { part[a], part[b] = part[b], part[a] })
		}
		return list
	}
	const unknown = -1
	for _, tc := range []struct {
		name    string
		packets []keyed
		want    float64
	}{
		{"nothing came", nil, unknown},
		{"too few to say", all(7, 0, 9, none), unknown},
		{"all came", all(7, 0, 1000, none), 0},
		{"all came, from a late beginning", all(7, 1<<40, 1<<40+1000, none), 0},
		{"one of ten is lost", all(7, 0, 10000, every(10)), 0.1},
		{"half are lost", all(7, 0, 10000, every(2)), 0.5},
		{"out of order", shuffled(64, all(7, 0, 6400, none)), 0},
		{"out of order, and a fifth lost", shuffled(64, all(7, 0, 6400, every(5))), 0.2},
		{"a new key", join(all(7, 0, 500, none), all(8, 0, 500, none)), 0},
		{"a new key, and late packets of the last", join(all(7, 0, 490, none), all(8, 0, 250, none), all(7, 490, 500, none), all(8, 250, 500, none)), 0},
		{"a new key, and a quarter lost", join(all(7, 0, 1000, every(4)), all(8, 0, 1000, every(4))), 0.25},
		{"copies", join(all(7, 0, 1000, none), all(7, 0, 1000, none)), 0},
		{"a forged number", join(all(7, 0, 500, none), []keyed{{7, math.MaxUint64}}, all(7, 500, 1000, none)), 0},
		{"forged keys", func() (out []keyed) {
			for i := range uint64(1000) {
				out = append(out, keyed{7, i}, keyed{uint32(1000 + i), i * 1e15})
			}
			return out
		}(), 0},
	} {
		for _, batch := range []int{1, 45, 128} {
			m := new(meter)
			m.deliver(batch, tc.packets)
			if got := m.read(simStart).LossIn; math.Abs(got-tc.want) > 0.011 {
				t.Errorf("%s, in batches of %d: %.4f, want %.4f", tc.name, batch, got, tc.want)
			}
		}
	}
}

// TestFiguresOverTime drives a meter as run does: a look every half second while
// there is traffic, and one after it.
func TestFiguresOverTime(t *testing.T) {
	m := new(meter)
	now, number := simStart, uint64(0)
	traffic := func(d time.Duration, perLook int, lost float64) {
		for end := now.Add(d); now.Before(end); now = now.Add(trafficPeriod) {
			var got []keyed
			for range perLook {
				if number++; float64(number%100) >= 100*lost {
					got = append(got, keyed{7, number})
				}
			}
			m.deliver(45, got)
			m.sent.Add(uint64(100 * perLook))
			m.look(now)
		}
	}
	within := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > want/20+0.011 {
			t.Errorf("%s at %s: %.3f, want %.3f", what, now.Sub(simStart), got, want)
		}
	}
	quiet := m.read(now)
	if quiet != (Traffic{LossIn: -1, LossOut: -1}) {
		t.Errorf("at first: %+v", quiet)
	}
	traffic(20*time.Second, 1000, 0.1)
	f := m.read(now.Add(-trafficPeriod)) // that of the last look
	within("sent", f.SendRate, 200_000)
	within("received", f.ReceiveRate, 2000*32*0.9)
	within("loss", f.LossIn, 0.1)
	if f.Sent != 4_000_000 || f.Received != 40_000*32*9/10 {
		t.Errorf("%+v", f)
	}
	m.look(now) // the last one
	now = now.Add(time.Hour)
	if f = m.read(now); f.SendRate != 0 || f.ReceiveRate != 0 {
		t.Errorf("idle for an hour: %+v", f)
	}
	within("best", f.PeakSend, 200_000)
	within("loss", f.LossIn, 0.1)
	m.look(now) // with the first packet
	now = now.Add(trafficPeriod)
	traffic(5*time.Second, 10, 0)
	f = m.read(now.Add(-trafficPeriod))
	within("sent", f.SendRate, 2000)
	within("best", f.PeakSend, 200_000)
	traffic(6*time.Second, 1000, 0)
	within("loss, once it has ended", m.read(now).LossIn, 0)
	m.told(encodeLoss(0.3))
	within("loss out", m.read(now).LossOut, 0.3)
	m.told(0)
	if out := m.read(now).LossOut; out >= 0 {
		t.Errorf("a peer that tells nothing: %v", out)
	}
}

func TestLossCode(t *testing.T) {
	for _, share := range []float64{0, 1e-4, 0.25, 0.5, 1, 1.5} {
		if got := decodeLoss(encodeLoss(share)); math.Abs(got-min(share, 1)) > 1e-4 {
			t.Errorf("%v becomes %v", share, got)
		}
	}
	for code := range math.MaxUint16 + 1 {
		if got := encodeLoss(decodeLoss(uint16(code))); got != uint16(code) {
			t.Fatalf("code %d becomes %d", code, got)
		}
	}
}

// TestLossThroughSockets loses a fifth of one direction's packets, and asks both ends.
func TestLossThroughSockets(t *testing.T) {
	fw := &firewall{Bind: new(udpBind)}
	a := newNode(t, SocketConfig{Bind: fw}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	b := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false)})
	a.SetRemote(loopback(b.socket, "127.0.0.1"))
	a.wait(t, Up, 5*time.Second)
	b.wait(t, Up, 5*time.Second)
	fw.rule(func(raw []byte, _ netip.AddrPort) bool {
		return isWireGuard(raw) && binary.LittleEndian.Uint64(raw[8:])%5 == 4
	})
	const count, size = 1000, 200
	for n := range uint64(count) {
		if err := a.socket.Send([][]byte{dataPacket(7, n, size)}, a.Link); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "all packets", func() bool { return b.Traffic().Received >= count*size*4/5 })
	if f := b.Traffic(); math.Abs(f.LossIn-0.2) > 0.02 || f.LossOut >= 0 || f.Sent != 0 {
		t.Errorf("the receiver's figures: %+v", f)
	}
	a.Probe() // whose answer tells
	await(t, "the pong", func() bool { return a.Traffic().LossOut >= 0 })
	await(t, "a sample of the rate", func() bool { return a.Traffic().PeakSend > 0 })
	if f := a.Traffic(); math.Abs(f.LossOut-0.2) > 0.02 || f.Sent != count*size || f.Received != 0 || f.LossIn >= 0 {
		t.Errorf("the sender's figures: %+v", f)
	}
}

// FuzzTally gives a meter whatever comes from a peer's address.
func FuzzTally(f *testing.F) {
	f.Add(bytes.Repeat(dataPacket(7, 1, 32), 4))
	f.Add(append(dataPacket(7, math.MaxUint64, 32), dataPacket(7, 0, 32)...))
	f.Add(append(dataPacket(1, 1, 32), dataPacket(2, 1<<50, 32)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, now := new(meter), simStart
		for ; len(raw) >= 32; raw = raw[32:] {
			b := bytes.Clone(raw[:32])
			b[0], b[1], b[2], b[3] = b[0]%4+1, 0, 0, 0
			var got tally
			if !isWireGuard(b) || !got.add(b) {
				t.Fatalf("a packet that begins with % x is not counted", b[:16])
			}
			m.arrive(&got)
			now = now.Add(trafficPeriod / 3)
			m.look(now)
			f := m.read(now)
			if f.LossIn > 1 || f.ReceiveRate < 0 || f.ReceiveRate > f.PeakReceive*4 {
				t.Fatalf("%+v", f)
			}
			if code := m.lossCode(); code != encodeLoss(f.LossIn) {
				t.Fatalf("code %d for %v", code, f.LossIn)
			}
		}
	})
}
