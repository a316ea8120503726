package mail

import (
	"errors"
	"strconv"
	"testing"

	"github.com/kithproject/kith/internal/durable/disktest"
)

// TestCrash lets the power go after each step of a few puts and dones, and holds that
// what was acknowledged is there afterwards, whole, and nothing else but what was brought.
func TestCrash(t *testing.T) {
	blobs := make([][]byte, 6)
	for i := range blobs {
		blobs[i] = letter(t, 1, strconv.Itoa(i))
	}
	for steps := 0; ; steps++ {
		d := disktest.New()
		d.Cut(steps)
		s, err := openStore(StoreConfig{Dir: "x"}, d)
		if err != nil {
			t.Fatal(err)
		}
		acked, crashed := 0, false
		for _, b := range blobs {
			if err := s.Put("a", BoxOf(token(1)), b); err != nil {
				if !errors.Is(err, ErrDisk) {
					t.Fatalf("step %d: %v", steps, err)
				}
				crashed = true
				break
			}
			acked++
		}
		removed := 0
		for i := 0; i < 2 && !crashed; i++ {
			if err := s.Done(token(1), [][IDSize]byte{IDOf(blobs[i])}); err != nil {
				t.Fatal(err)
			}
			removed++
		}
		for _, names := range []bool{false, true} {
			for _, data := range []bool{false, true} {
				again, err := openStore(StoreConfig{Dir: "x"}, d.After(names, data))
				if err != nil {
					t.Fatalf("step %d: %v", steps, err)
				}
				got := make(map[string]bool)
				for _, text := range texts(t, again, 1) {
					got[text] = true
				}
				for i := removed; i < acked; i++ {
					if !got[strconv.Itoa(i)] {
						t.Errorf("step %d (names %v, data %v): letter %d was acknowledged and is lost", steps, names, data, i)
					}
				}
				if len(got) > acked+1 {
					t.Errorf("step %d: %d letters of %d", steps, len(got), acked)
				}
			}
		}
		if d.Steps() < steps {
			if steps < 20 {
				t.Fatalf("only %d steps: is the disk used?", steps)
			}
			return
		}
	}
}

// TestDiskErrors has each step fail once, without a crash: the sender is told, the place
// is given back, and the store goes on.
func TestDiskErrors(t *testing.T) {
	for failing := range 6 {
		d := disktest.New()
		d.Fail(failing)
		s, err := openStore(StoreConfig{Dir: "x"}, d)
		if err != nil {
			t.Fatal(err)
		}
		first := s.Put("a", BoxOf(token(1)), letter(t, 1, "first"))
		if failing <= 4 && !errors.Is(first, ErrDisk) {
			t.Errorf("step %d: %v, want ErrDisk", failing, first)
		}
		second := s.Put("a", BoxOf(token(1)), letter(t, 1, "second"))
		if failing > 4 != (second != nil) && failing > 4 {
			t.Errorf("step %d: %v", failing, second)
		}
		want := 0
		for _, err := range []error{first, second} {
			if err == nil {
				want++
			}
		}
		if got := texts(t, s, 1); len(got) != want || want == 0 {
			t.Errorf("step %d: %q, want %d", failing, got, want)
		}
		if st := s.Stats(); st.Letters != want || st.Bytes != int64(want)*blockSize || len(s.pending) > 0 {
			t.Errorf("step %d: %+v", failing, st)
		}
		again, err := openStore(StoreConfig{Dir: "x"}, d.After(true, true))
		if err != nil {
			t.Fatal(err)
		}
		if got := texts(t, again, 1); len(got) != want {
			t.Errorf("step %d, after a restart: %q, want %d", failing, got, want)
		}
	}
}
