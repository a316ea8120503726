package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
	"pgregory.net/rapid"
)

func testSealer(t testing.TB, first byte) *Sealer {
	t.Helper()
	s, err := NewSealer(append([]byte{first}, make([]byte, 31)...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFrameRoundTrip(t *testing.T) {
	s := testSealer(t, 1)
	rapid.Check(t, func(rt *rapid.T) {
		f := Frame{Type: rapid.Byte().Draw(rt, "type"), Body: rapid.SliceOfN(rapid.Byte(), 0, MaxBody).Draw(rt, "body")}
		copy(f.SID[:], rapid.SliceOfN(rapid.Byte(), SIDSize, SIDSize).Draw(rt, "sid"))
		raw, err := s.Seal(rand.Reader, f)
		if err != nil {
			rt.Fatal(err)
		}
		if len(raw) != FrameSize {
			rt.Fatalf("a frame of %d bytes", len(raw))
		}
		got, err := s.Open(raw)
		if err != nil {
			rt.Fatal(err)
		}
		if got.Type != f.Type || got.SID != f.SID || !bytes.Equal(got.Body, f.Body) {
			rt.Fatalf("got %+v, want %+v", got, f)
		}
	})
}

func TestFrameSizes(t *testing.T) {
	if FrameSize != 1340 || MaxBody != 1289 {
		t.Fatalf("frames of %d bytes with bodies to %d: the protocol says 1340 and 1289", FrameSize, MaxBody)
	}
	s := testSealer(t, 1)
	for _, n := range []int{0, 1, MaxBody - 1, MaxBody} {
		raw, err := s.Seal(rand.Reader, Frame{Body: make([]byte, n)})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Open(raw); err != nil || len(got.Body) != n {
			t.Errorf("a body of %d bytes became %d bytes, %v", n, len(got.Body), err)
		}
	}
	if _, err := s.Seal(rand.Reader, Frame{Body: make([]byte, MaxBody+1)}); err == nil {
		t.Error("a body that is too long was sealed")
	}
}

// TestFrameNothingElseOpens flips every byte, cuts and extends.
func TestFrameNothingElseOpens(t *testing.T) {
	s := testSealer(t, 1)
	raw, err := s.Seal(rand.Reader, Frame{Type: 7, Body: []byte("body")})
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		if _, err := s.Open(bad); !errors.Is(err, ErrFrame) {
			t.Fatalf("byte %d flipped: %v, want ErrFrame", i, err)
		}
	}
	for _, bad := range [][]byte{nil, {}, raw[1:], raw[:len(raw)-1], append(bytes.Clone(raw), 0), make([]byte, FrameSize)} {
		if _, err := s.Open(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("%d bytes: %v, want ErrFrame", len(bad), err)
		}
	}
	if _, err := testSealer(t, 2).Open(raw); !errors.Is(err, ErrFrame) {
		t.Errorf("another key: %v, want ErrFrame", err)
	}
}

// sealPlain seals any plaintext as a frame, as a hostile holder of the key may.
func sealPlain(t testing.TB, first byte, plain []byte) []byte {
	t.Helper()
	aead, err := chacha20poly1305.NewX(append([]byte{first}, make([]byte, 31)...))
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	return aead.Seal(bytes.Clone(nonce), nonce, plain, frameAD)
}

// TestFrameLengthField seals every length that does not fit: a holder of the key
// must not make a receiver read past the frame.
func TestFrameLengthField(t *testing.T) {
	s := testSealer(t, 1)
	for n := range 1 << 16 {
		if n > 1+SIDSize+2 && n < plainSize-4 || n > plainSize+4 && n%997 != 0 {
			continue // the ends, and samples beyond
		}
		plain := make([]byte, plainSize)
		binary.BigEndian.PutUint16(plain, uint16(n))
		f, err := s.Open(sealPlain(t, 1, plain))
		fits := n >= 1+SIDSize && n <= plainSize-2
		if (err == nil) != fits {
			t.Errorf("length %d: %v", n, err)
		}
		if err == nil && len(f.Body) != n-1-SIDSize {
			t.Errorf("length %d gave a body of %d bytes", n, len(f.Body))
		}
	}
}

func TestFrameNeedsRandomness(t *testing.T) {
	if _, err := testSealer(t, 1).Seal(bytes.NewReader(make([]byte, 23)), Frame{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("sealed with 23 of 24 random bytes: %v", err)
	}
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := NewSealer(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes was taken", n)
		}
	}
}

// FuzzOpen opens what comes, as a frame and as the plaintext of a frame that is
// sealed under the right key.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, FrameSize))
	f.Add([]byte{0, 9, 1})
	f.Add([]byte{0x05, 0x12, 0xff})
	f.Add([]byte{0xff, 0xff, 6})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := testSealer(t, 1)
		if _, err := s.Open(b); err == nil {
			t.Fatal("a forged frame")
		}
		plain := make([]byte, plainSize)
		copy(plain, b)
		got, err := s.Open(sealPlain(t, 1, plain))
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("an error that tells more: %v", err)
			}
			return
		}
		again, err := s.Seal(rand.Reader, got)
		if err != nil {
			t.Fatalf("what was opened cannot be sealed: %v", err)
		}
		if back, err := s.Open(again); err != nil || back.Type != got.Type || back.SID != got.SID || !bytes.Equal(back.Body, got.Body) {
			t.Fatalf("got %+v, %v, want %+v", back, err, got)
		}
	})
}

func BenchmarkOpenBad(b *testing.B) {
	s := testSealer(b, 1)
	junk := make([]byte, FrameSize)
	b.ReportAllocs()
	b.SetBytes(FrameSize)
	for b.Loop() {
		if _, err := s.Open(junk); err == nil {
			b.Fatal("opened")
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	s := testSealer(b, 1)
	f := Frame{Type: 1, Body: make([]byte, MaxBody)}
	b.ReportAllocs()
	b.SetBytes(FrameSize)
	for b.Loop() {
		if _, err := s.Seal(rand.Reader, f); err != nil {
			b.Fatal(err)
		}
	}
}
