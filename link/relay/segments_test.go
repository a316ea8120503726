package relay

import (
	"bytes"
	"net"
	"slices"
	"testing"
)

// TestDatagrams sends batches of packets between two sockets, as one call each
// where the system can.
func TestDatagrams(t *testing.T) {
	a, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr := a.LocalAddr().(*net.UDPAddr)
	out, err := net.Dial("udp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	a.Close() // its port is for a socket that knows the other
	in, err := net.DialUDP("udp4", addr, out.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	from, to := newDatagrams(out), newDatagrams(in)
	var batch [][]byte
	for i, n := range append(slices.Repeat([]int{1300}, 100), 700, 1300, 1, 0, 1452) {
		batch = append(batch, bytes.Repeat([]byte{byte(i)}, n))
	}
	if err := from.packets(batch, nil, firstNumber); err != nil {
		t.Fatal(err)
	}
	for i, want := range batch {
		frame, _, err := to.read()
		if err != nil {
			t.Fatal(err)
		}
		number, data, ok := channelData(frame)
		if !ok || number != firstNumber || !bytes.Equal(data, want) {
			t.Fatalf("packet %d: %d bytes of %d, channel %#x", i, len(data), len(want), number)
		}
	}
}
