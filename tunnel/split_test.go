package tunnel

import (
	"bytes"
	"encoding/binary"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"pgregory.net/rapid"
)

// gsoPacket makes a TCP segment as the stack hands it over, its payload cut to
// the given views. Options are a multiple of four bytes.
func gsoPacket(views [][]byte, options []byte, flags header.TCPFlags, seq uint32, mss int) *stack.PacketBuffer {
	var payload buffer.Buffer
	size := 0
	for _, v := range views {
		size += len(v)
		payload.Append(buffer.NewViewWithData(v))
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv6MinimumSize + header.TCPHeaderMaximumSize,
		Payload:            payload,
	})
	transport := header.TCPMinimumSize + len(options)
	tcp := header.TCP(p.TransportHeader().Push(transport))
	tcp.Encode(&header.TCPFields{SrcPort: 1, DstPort: 2, SeqNum: seq, AckNum: 3, DataOffset: uint8(transport), Flags: flags, WindowSize: 4})
	copy(tcp[header.TCPMinimumSize:], options)
	ip := header.IPv6(p.NetworkHeader().Push(header.IPv6MinimumSize))
	ip.Encode(&header.IPv6Fields{
		PayloadLength: uint16(transport + size), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
		SrcAddr: tcpip.AddrFrom16([16]byte{1}), DstAddr: tcpip.AddrFrom16([16]byte{2}),
	})
	p.NetworkProtocolNumber = header.IPv6ProtocolNumber
	p.TransportProtocolNumber = header.TCPProtocolNumber
	if mss > 0 {
		p.GSOOptions = stack.GSO{Type: stack.GSOTCPv6, MSS: uint16(mss), L3HdrLen: header.IPv6MinimumSize, MaxSize: gsoMax}
	}
	return p
}

// splitAll returns the packets that p is split to.
func splitAll(p *stack.PacketBuffer, offset int) [][]byte {
	n := segments(p)
	bufs, sizes := make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, offset+gsoMax+header.IPv6MinimumSize)
	}
	split(p, bufs, sizes, offset)
	for i := range bufs {
		bufs[i] = bufs[i][offset : offset+sizes[i]]
	}
	return bufs
}

// TestSplit checks that the packets of a segment carry the same stream, each as a
// packet of its own that is not larger than MSS and headers.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mss := rapid.IntRange(1, 3000).Draw(t, "mss")
		views := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 5000), 0, 6).Draw(t, "views")
		options := make([]byte, 4*rapid.IntRange(0, 10).Draw(t, "options"))
		for i := range options {
			options[i] = byte(i + 1)
		}
		flags := header.TCPFlagAck
		if rapid.Bool().Draw(t, "psh") {
			flags |= header.TCPFlagPsh
		}
		if rapid.Bool().Draw(t, "fin") {
			flags |= header.TCPFlagFin
		}
		seq := rapid.Uint32().Draw(t, "seq")
		offset := rapid.IntRange(0, 32).Draw(t, "offset")
		whole := bytes.Join(views, nil)
		if len(whole)/mss > 2000 {
			t.Skip("rapid drew more packets than one buffer can make")
		}
		p := gsoPacket(views, options, flags, seq, mss)
		defer p.DecRef()
		headers := header.IPv6MinimumSize + header.TCPMinimumSize + len(options)
		packets := splitAll(p, offset)
		if want := max(1, (len(whole)+mss-1)/mss); len(packets) != want {
			t.Fatalf("%d packets, want %d", len(packets), want)
		}
		var got []byte
		for i, b := range packets {
			ip := header.IPv6(b)
			tcp := header.TCP(b[header.IPv6MinimumSize:])
			if len(b) > headers+mss || int(ip.PayloadLength()) != len(b)-header.IPv6MinimumSize {
				t.Fatalf("packet %d has %d bytes and says %d", i, len(b), ip.PayloadLength())
			}
			if want := seq + uint32(len(got)); tcp.SequenceNumber() != want {
				t.Fatalf("packet %d begins at %d, want %d", i, tcp.SequenceNumber(), want)
			}
			want := flags
			if i < len(packets)-1 {
				want &^= header.TCPFlagPsh | header.TCPFlagFin
			}
			if tcp.Flags() != want {
				t.Fatalf("packet %d has flags %v, want %v", i, tcp.Flags(), want)
			}
			if !bytes.Equal(rest(b[:headers]), rest(packets[0][:headers])) || !bytes.Equal(tcp.Options(), options) ||
				ip.SourceAddress() != tcpip.AddrFrom16([16]byte{1}) || tcp.AckNumber() != 3 {
				t.Fatalf("packet %d has other headers", i)
			}
			got = append(got, b[headers:]...)
		}
		if !bytes.Equal(got, whole) {
			t.Fatal("another stream")
		}
	})
}

// rest returns headers without what differs between packets of one segment.
func rest(headers []byte) []byte {
	b := bytes.Clone(headers)
	clear(b[4:6])   // payload length
	clear(b[44:48]) // sequence number
	b[53] = 0       // flags
	return b
}

func TestSplitKeepsWhole(t *testing.T) {
	for _, tc := range []struct {
		name      string
		size, mss int
		packets   int
	}{
		{"no segmentation", 5000, 0, 1},
		{"nothing", 0, 1000, 1},
		{"smaller", 999, 1000, 1},
		{"just", 1000, 1000, 1},
		{"one more", 1001, 1000, 2},
		{"largest", gsoMax - 60, 1328, 50},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var views [][]byte
			if tc.size > 0 {
				views = [][]byte{bytes.Repeat([]byte{7}, tc.size)}
			}
			p := gsoPacket(views, make([]byte, 12), header.TCPFlagAck, 1, tc.mss)
			defer p.DecRef()
			packets := splitAll(p, 0)
			if len(packets) != tc.packets {
				t.Fatalf("%d packets, want %d", len(packets), tc.packets)
			}
			if len(packets) == 1 {
				view := p.ToView()
				defer view.Release()
				if !bytes.Equal(packets[0], view.AsSlice()) {
					t.Error("the packet differs")
				}
			}
			last := packets[len(packets)-1]
			if got := int(binary.BigEndian.Uint16(last[4:])); got != len(last)-header.IPv6MinimumSize {
				t.Errorf("the last packet says %d", got)
			}
		})
	}
}

// TestRead checks that a packet which does not fit waits for the next Read.
func TestRead(t *testing.T) {
	n := &nic{queue: make(chan *stack.PacketBuffer, 3), closed: make(chan struct{})}
	d := device{n}
	for i := range 3 {
		n.queue <- gsoPacket([][]byte{bytes.Repeat([]byte{byte(i)}, 3000)}, nil, header.TCPFlagAck, 0, 1000)
	}
	bufs, sizes := make([][]byte, 7), make([]int, 7)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	for i, want := range []int{6, 3} {
		if got, err := d.Read(bufs, sizes, 16); got != want || err != nil {
			t.Fatalf("read %d: %d packets, %v; want %d", i, got, err, want)
		}
		if i == 0 {
			close(n.closed) // the queue is empty: only what waits can come now
		}
	}
	if got := bufs[0][16+sizes[0]-1]; got != 2 {
		t.Errorf("the packet that waited carries %d", got)
	}
}

// TestGSOMaxSize checks that a full segment is split to equal packets which the
// kernel takes in one go.
func TestGSOMaxSize(t *testing.T) {
	const (
		wireGuard = 32        // bytes that it adds to a packet
		mostUDP   = 65535 - 8 // bytes of payload in one go over IPv6, the smaller with IPv4's header
		ipv4      = 20
		options   = 12 // bytes, the timestamps
	)
	for _, tc := range []struct {
		mtu  int
		even bool
	}{{1280, true}, {DefaultMTU, true}, {9000, false}, {65000, false}} {
		n := &nic{mtu: tc.mtu}
		size := int(n.GSOMaxSize())
		if size > gsoMax {
			t.Errorf("MTU %d: %d bytes", tc.mtu, size)
		}
		data := size - header.TCPTotalHeaderMaximumSize - 1
		mss := tc.mtu - header.IPv6MinimumSize - header.TCPMinimumSize - options
		if tc.even && (data%mss != 0 || data/mss*(tc.mtu+wireGuard) > mostUDP-ipv4) {
			t.Errorf("MTU %d: %d bytes of data make %d packets and %d bytes", tc.mtu, data, data/mss, data%mss)
		}
	}
}
