package pairing

import (
	"crypto/rand"
	"testing"
	"unicode"

	"github.com/kithproject/kith/internal/wire"
)

// fuzzMachine feeds bodies that are sealed under the right key, so that the inner
// parsers are reached: nothing may be stored, and the machine must go on.
func fuzzMachine(f *testing.F, joiner bool) {
	for typ := byte(0); typ <= frameReject; typ++ {
		f.Add(typ, []byte("body"), true)
		f.Add(typ, make([]byte, 1265), false)
	}
	f.Fuzz(func(t *testing.T, typ byte, body []byte, ownSID bool) {
		if len(body) > wire.MaxBody {
			return
		}
		oc, jc := configs(t)
		cfg := oc
		if joiner {
			cfg = jc
		}
		s := newSide(t, cfg)
		fr := wire.Frame{Type: typ, Body: body}
		if len(body) > 1 {
			fr.SID = sidOf(body[1:])
		}
		if ownSID {
			fr.SID = s.m.sid
		}
		raw, err := s.m.sealers[0].Seal(rand.Reader, fr)
		if err != nil {
			t.Fatal(err)
		}
		s.m.Receive(t0, 0, raw)
		s.m.Receive(t0, 0, body) // and as a frame itself
		s.drain(t0)
		if s.disk != nil {
			t.Fatal("something was stored")
		}
	})
}

func FuzzOfferer(f *testing.F) { fuzzMachine(f, false) }

func FuzzJoiner(f *testing.F) { fuzzMachine(f, true) }

func FuzzInfo(f *testing.F) {
	raw, err := Info{Name: "desk", OS: "linux", Day: 20000}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		i, err := decodeInfo(raw)
		if err != nil {
			return
		}
		if _, err := i.encode(); err != nil {
			t.Fatalf("what was read cannot be sent: %v", err)
		}
	})
}

func FuzzCommit(f *testing.F) {
	f.Add([]byte{msgPrepared}, uint8(Prepared))
	f.Add([]byte{msgUnpair}, uint8(Tomb))
	f.Fuzz(func(t *testing.T, plain []byte, state uint8) {
		var kJ, kO [32]byte
		c, err := NewCommit(State(state%3)+1, [16]byte{7}, Joiner, kJ, kO, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := wire.SealMessage(kO[:], c.ad(), plain, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c.Receive(t0, sealed)
		c.Receive(t0, plain)
		for {
			a, ok := c.Poll()
			if !ok {
				return
			}
			if a.Kind == CommitStore && (len(plain) != 17) {
				t.Fatalf("a message of %d bytes changed the state", len(plain))
			}
		}
	})
}

func FuzzCleanName(f *testing.F) {
	f.Add("laptop\x1b[31m")
	f.Fuzz(func(t *testing.T, in string) {
		got := CleanName(in)
		if len(got) > MaxName || CleanName(got) != got {
			t.Fatalf("%q became %q", in, got)
		}
		for _, r := range got {
			if unicode.IsControl(r) {
				t.Fatalf("%q became %q", in, got)
			}
		}
	})
}

func BenchmarkPairing(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		oc, jc := configs(b)
		o, j := newSide(b, oc), newSide(b, jc)
		exchange(o, j, t0)
		accept(b, o, j, t0)
		exchange(o, j, t0)
		wantPaired(b, o, j)
	}
}

func BenchmarkRejectFrame(b *testing.B) {
	oc, _ := configs(b)
	o := newSide(b, oc)
	junk := make([]byte, wire.FrameSize)
	b.ReportAllocs()
	for b.Loop() {
		o.m.Receive(t0, 0, junk)
	}
}
