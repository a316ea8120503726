package link

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"pgregory.net/rapid"
)

func TestProbeRoundTrip(t *testing.T) {
	s := newSealer([32]byte{7})
	for _, tc := range []struct {
		name string
		p    probe
		size int
	}{
		{"ping", probe{kind: ping, flags: flagSelected, session: 1 << 63, seq: 42, tx: txid{1, 2, 3}}, smallProbe},
		{"large ping", probe{kind: ping, seq: 1}, DefaultDataSize},
		{"pong over IPv4", probe{kind: pong, tx: txid{9}, observed: netip.MustParseAddrPort("192.0.2.1:65535")}, smallProbe},
		{"pong that tells of loss", probe{kind: pong, tx: txid{9}, observed: netip.MustParseAddrPort("192.0.2.1:1"), loss: 0xfffe}, smallProbe},
		{"pong over IPv6", probe{kind: pong, observed: netip.MustParseAddrPort("[2001:db8::1]:1")}, smallProbe},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw, err := s.seal(rand.Reader, tc.p, tc.size)
			if err != nil || len(raw) != tc.size {
				t.Fatalf("%d bytes, %v", len(raw), err)
			}
			if isWireGuard(raw) || !isProbe(raw) || raw[0]&0xc0 == 0 {
				t.Errorf("begins with % x", raw[:8])
			}
			if got, err := s.open(bytes.Clone(raw)); err != nil || got != tc.p {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.p)
			}
			if _, err := newSealer([32]byte{8}).open(bytes.Clone(raw)); err == nil {
				t.Error("another key opens it")
			}
			for i := range raw {
				bad := bytes.Clone(raw)
				bad[i] ^= 0x80
				if _, err := s.open(bad); err == nil {
					t.Fatalf("byte %d changed, and it opens", i)
				}
			}
		})
	}
}

// TestProbeVector pins the wire format of the package comment.
func TestProbeVector(t *testing.T) {
	raw, err := os.ReadFile("testdata/probe.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Name, Key, Nonce, Type, Transaction, Observed, Probe string
		Loss                                                 float64
	}
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	bin := func(text string) []byte {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			p := probe{kind: pong, tx: txid(bin(v.Transaction)), observed: netip.MustParseAddrPort(v.Observed), loss: encodeLoss(v.Loss)}
			got, err := newSealer([32]byte(bin(v.Key))).seal(bytes.NewReader(bin(v.Nonce)), p, smallProbe)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, bin(v.Probe)) {
				t.Errorf("got  %x\nwant %s", got, v.Probe)
			}
		})
	}
	if len(vectors) < 3 {
		t.Errorf("%d vectors", len(vectors))
	}
}

func TestTellWireGuardApart(t *testing.T) {
	for typ := range uint32(7) {
		b := make([]byte, 32)
		binary.LittleEndian.PutUint32(b, typ)
		if got, want := isWireGuard(b), typ >= 1 && typ <= 4; got != want {
			t.Errorf("type %d: %v", typ, got)
		}
		if isWireGuard(b[:31]) {
			t.Errorf("type %d of 31 bytes", typ)
		}
	}
}

func FuzzProbe(f *testing.F) {
	s := newSealer([32]byte{7})
	for _, size := range []int{smallProbe, DefaultDataSize, MaxDataSize} {
		raw, err := s.seal(rand.Reader, probe{kind: ping, seq: 1}, size)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, true)
		f.Add(raw[:size-1], false)
	}
	f.Add([]byte{}, true)
	f.Add(make([]byte, 80), true)
	f.Fuzz(func(t *testing.T, raw []byte, seal bool) {
		if seal {
			// Behind the seal: what a hostile peer can send.
			nonce := make([]byte, 24)
			raw = s.aead.Seal(append(bytes.Clone(s.head[:]), nonce...), nonce, raw, s.ad)
		}
		isWireGuard(raw)
		isProbe(raw)
		p, err := s.open(bytes.Clone(raw))
		if err != nil {
			return
		}
		if p.kind != ping && p.kind != pong || len(raw) < smallProbe || len(raw) > MaxDataSize {
			t.Fatalf("opened %d bytes to %+v", len(raw), p)
		}
	})
}

func TestReplayWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w replayWindow
		seen := make(map[uint64]bool)
		var top uint64
		step := rapid.OneOf(rapid.Uint64Range(0, 3), rapid.Uint64Range(0, 3000))
		for range rapid.IntRange(1, 300).Draw(t, "n") {
			seq := top
			if rapid.Bool().Draw(t, "forward") {
				seq += step.Draw(t, "by")
			} else {
				seq -= min(seq, step.Draw(t, "by"))
			}
			got := w.accept(seq)
			switch {
			case seq == 0 || seen[seq]:
				if got {
					t.Fatalf("%d accepted twice, or zero", seq)
				}
			case seq > top || seq+960 > top:
				if !got {
					t.Fatalf("%d refused at top %d", seq, top)
				}
			}
			if got {
				seen[seq], top = true, max(top, seq)
			}
		}
	})
}
