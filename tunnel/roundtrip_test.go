package tunnel

import (
	"bytes"
	"encoding/binary"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"pgregory.net/rapid"
)

// clip sets the source port of a packet, which names the flow in these tests.
func clip(p []byte, flow int) []byte {
	binary.BigEndian.PutUint16(p[tcpPorts:], uint16(flow))
	return p
}

// TestSplitAndMerge splits segments of several flows, loses and mixes packets and
// merges what is left: each flow must bring the same bytes at the same sequence
// numbers in the same order, and the same acknowledgements.
func TestSplitAndMerge(t *testing.T) {
	const mss = 100
	rapid.Check(t, func(t *rapid.T) {
		flows := rapid.IntRange(1, 3).Draw(t, "flows")
		queues := make([][][]byte, flows)
		for f := range queues {
			seq := rapid.Uint32().Draw(t, "seq")
			for range rapid.IntRange(0, 4).Draw(t, "segments") {
				payload := rapid.SliceOfN(rapid.Byte(), 0, 12*mss).Draw(t, "payload")
				var views [][]byte
				if len(payload) > 0 {
					views = [][]byte{payload}
				}
				flags := rapid.SampledFrom([]header.TCPFlags{header.TCPFlagAck, header.TCPFlagAck, header.TCPFlagAck | header.TCPFlagPsh,
					header.TCPFlagAck | header.TCPFlagFin, header.TCPFlagRst, header.TCPFlagSyn}).Draw(t, "flags")
				options := rapid.SampledFrom([][]byte{{1, 1, 1, 1}, {1, 1, 1, 0}, {}}).Draw(t, "options")
				p := gsoPacket(views, options, flags, seq, mss)
				for _, b := range splitAll(p, 0) {
					if rapid.IntRange(0, 9).Draw(t, "fate") > 0 {
						queues[f] = append(queues[f], clip(b, f+1))
					}
				}
				p.DecRef()
				seq += uint32(len(payload))
			}
		}
		var batch [][]byte
		for {
			left := queues[:0:0]
			for _, q := range queues {
				if len(q) > 0 {
					left = append(left, q)
				}
			}
			if queues = left; len(queues) == 0 {
				break
			}
			f := rapid.IntRange(0, len(queues)-1).Draw(t, "turn")
			n := rapid.IntRange(1, len(queues[f])).Draw(t, "burst")
			batch, queues[f] = append(batch, queues[f][:n]...), queues[f][n:]
		}
		want := streams(batch)
		var m merger
		var merged [][]byte
		for _, r := range m.plan(batch) {
			b := m.join(make([]byte, 0, r.size), batch, r)
			if len(b) != r.size || int(binary.BigEndian.Uint16(b[ipLength:])) != len(b)-ipHeader {
				t.Fatalf("a packet of %d bytes, planned %d", len(b), r.size)
			}
			merged = append(merged, b)
		}
		got := streams(merged)
		if len(merged) > len(batch) || len(got) != len(want) {
			t.Fatalf("%d packets of %d, %d flows of %d", len(merged), len(batch), len(got), len(want))
		}
		for flow, events := range want {
			if !bytes.Equal(got[flow], events) {
				t.Fatalf("flow %d differs:\n%x\n%x", flow, got[flow], events)
			}
		}
	})
}

// TestMergeUndoesSplit checks that a segment becomes what it was, also among
// those of other flows.
func TestMergeUndoesSplit(t *testing.T) {
	const flows, mss = 3, 100
	var batch [][]byte
	var wholes [flows][]byte
	for f := range flows {
		p := gsoPacket([][]byte{bytes.Repeat([]byte{byte(f)}, 1234)}, []byte{1, 1, 1, 1}, header.TCPFlagAck|header.TCPFlagPsh, 1<<32-500, mss)
		view := p.ToView()
		wholes[f] = clip(bytes.Clone(view.AsSlice()), f)
		view.Release()
		for i, b := range splitAll(p, 0) {
			at := min(len(batch), i*(f+1)+f) // in turns
			batch = append(batch[:at:at], append([][]byte{clip(b, f)}, batch[at:]...)...)
		}
		p.DecRef()
	}
	var m merger
	runs := m.plan(batch)
	if len(runs) != flows {
		t.Fatalf("%d packets of %d are left, want %d", len(runs), len(batch), flows)
	}
	for f, r := range runs {
		if got := m.join(make([]byte, 0, r.size), batch, r); !bytes.Equal(got, wholes[f]) {
			t.Errorf("flow %d: %d bytes, want the same %d", f, len(got), len(wholes[f]))
		}
	}
}

// streams writes down for each flow, byte for byte, what its packets carry.
func streams(packets [][]byte) map[uint16][]byte {
	out := make(map[uint16][]byte)
	for _, p := range packets {
		flow := binary.BigEndian.Uint16(p[tcpPorts:])
		tcp := header.TCP(p[ipHeader:])
		seq, log := tcp.SequenceNumber(), out[flow]
		for _, b := range tcp.Payload() {
			log = append(log, b)
			log = binary.BigEndian.AppendUint32(log, seq)
			log = append(log, tcp.Options()...)
			seq++
		}
		// What is not data stands for itself, as does what is data and more.
		if flags := tcp.Flags() &^ header.TCPFlagPsh; flags != header.TCPFlagAck || len(tcp.Payload()) == 0 {
			log = append(log, 0xff, byte(flags))
		}
		out[flow] = log
	}
	return out
}

// FuzzMerge gives the merger packets of any kind: each must come out once, and
// none that is not IPv6.
func FuzzMerge(f *testing.F) {
	p := gsoPacket([][]byte{make([]byte, 250)}, nil, header.TCPFlagAck, 7, 100)
	defer p.DecRef()
	var seed []byte
	for _, b := range splitAll(p, 0) {
		seed = append(append(seed, byte(len(b))), b...)
	}
	f.Add(seed)
	f.Add([]byte{1, 0x60, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var batch [][]byte
		most := 0 // what may come out, in bytes
		for len(data) > 0 && len(batch) < 128 {
			n := min(int(data[0]), len(data)-1)
			batch, data = append(batch, data[1:1+n]), data[1+n:]
			if b := batch[len(batch)-1]; len(b) >= ipHeader && b[0]>>4 == header.IPv6Version {
				most += len(b)
			}
		}
		var m merger
		total, payloads := 0, 0
		for _, r := range m.plan(batch) {
			b := m.join(make([]byte, 0, r.size), batch, r)
			if len(b) != r.size || len(b) > maxMerged {
				t.Fatalf("%d bytes, planned %d", len(b), r.size)
			}
			total += len(b)
			for i := r.first; i != r.last; i = m.next[i] {
				payloads += r.headers // of the packet that follows: gone
			}
		}
		if total+payloads != most {
			t.Fatalf("%d bytes and %d of headers of %d", total, payloads, most)
		}
	})
}
