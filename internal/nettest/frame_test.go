package nettest

import (
	"bytes"
	"testing"
)

func frame4(protocol byte, body ...byte) []byte {
	ip := append([]byte{
		0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64, protocol, 0, 0,
		10, 0, 0, 1, 10, 0, 0, 2,
	}, body...)
	return append(append(make([]byte, 12), 8, 0), ip...)
}

func frame6(protocol byte, body ...byte) []byte {
	ip := make([]byte, 40)
	ip[0], ip[5], ip[6] = 0x60, byte(len(body)), protocol
	ip[8], ip[23], ip[24], ip[39] = 0xfd, 1, 0xfd, 2
	return append(append(append(make([]byte, 12), 0x86, 0xdd), ip...), body...)
}

// TestParseFrame reads frames as a switch sees them.
func TestParseFrame(t *testing.T) {
	udp := []byte{0, 7, 1, 187, 0, 10, 0, 0, 'h', 'i'}
	tcp := append([]byte{0, 7, 1, 187, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1}, 'h', 'i')
	later := frame4(UDP, udp...)
	later[14+7] = 1 // a fragment's offset
	padded := append(frame4(UDP, udp...), make([]byte, 18)...)
	for _, tc := range []struct {
		name     string
		frame    []byte
		ok       bool
		src, dst string
		payload  string
	}{
		{"UDP", frame4(UDP, udp...), true, "10.0.0.1:7", "10.0.0.2:443", "hi"},
		{"padded", padded, true, "10.0.0.1:7", "10.0.0.2:443", "hi"},
		{"TCP with options", frame4(TCP, tcp...), true, "10.0.0.1:7", "10.0.0.2:443", "hi"},
		{"UDP over IPv6", frame6(UDP, udp...), true, "[fd00::1]:7", "[fd00::2]:443", "hi"},
		{"ICMP", frame4(1, 8, 0), true, "10.0.0.1:0", "10.0.0.2:0", "\x08\x00"},
		{"later fragment", later, true, "10.0.0.1:0", "10.0.0.2:0", string(udp)},
		{"empty", nil, false, "", "", ""},
		{"ARP", append(make([]byte, 12), 8, 6), false, "", "", ""},
		{"cut IPv4", frame4(UDP, udp...)[:30], false, "", "", ""},
		{"cut IPv6", frame6(UDP, udp...)[:60], false, "", "", ""},
		{"TCP header longer than the packet", frame4(TCP, bytes.Repeat([]byte{0xf0}, 24)...), false, "", "", ""},
	} {
		p, ok := ParseFrame(tc.frame)
		if ok != tc.ok {
			t.Errorf("%s: %v", tc.name, ok)
			continue
		}
		if ok && (p.Src.String() != tc.src || p.Dst.String() != tc.dst || string(p.Payload) != tc.payload) {
			t.Errorf("%s: from %v to %v: %q", tc.name, p.Src, p.Dst, p.Payload)
		}
	}
}

// FuzzParseFrame reads anything.
func FuzzParseFrame(f *testing.F) {
	f.Add(frame4(UDP, 0, 7, 1, 187, 0, 8, 0, 0))
	f.Add(frame6(TCP, make([]byte, 20)...))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if p, ok := ParseFrame(frame); ok && len(p.Payload) > p.Size {
			t.Errorf("%d bytes of payload in a packet of %d", len(p.Payload), p.Size)
		}
	})
}
