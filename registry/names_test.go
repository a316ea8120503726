package registry

import (
	"errors"
	"strings"
	"testing"
)

// TestLongNames: what is stored can be read again.
func TestLongNames(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("é", maxNameBytes)
	for i := range 3 {
		d := Device{PairID: PairID{byte(i)}, State: Active, Name: long}
		d.ID[0] = byte(i)
		if d, err = s.Put(d); err != nil || len(d.Name) > maxNameBytes {
			t.Fatalf("%q, %v", d.Name, err)
		}
	}
	for _, change := range []func(*Device){
		func(d *Device) { d.PeerName = long },
		func(d *Device) { d.ChainDay = -1 },
		func(d *Device) { d.State = 9 },
		func(d *Device) { d.Rights.TCP = make([]uint16, maxPorts+1) },
	} {
		if _, err := s.Update(PairID{1}, change); !errors.Is(err, ErrRecord) {
			t.Errorf("stored: %v", err)
		}
	}
	if s, err = Open(dir); err != nil || len(s.List()) != 3 || len(s.Problems()) > 0 {
		t.Errorf("%d are left, %v, %v", len(s.List()), s.Problems(), err)
	}
}
