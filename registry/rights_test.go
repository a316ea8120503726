package registry

import (
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

func TestListenRights(t *testing.T) {
	var r Rights
	may := func(network string, ports ...uint16) {
		t.Helper()
		for _, p := range []uint16{0, 1, 80, 1023, 1024, 8080, 65535} {
			if got, want := r.AllowsListen(network, p), slices.Contains(ports, p); got != want {
				t.Errorf("%s port %d: %v, want %v, by %+v", network, p, got, want, r)
			}
		}
	}
	may("tcp")
	may("udp")
	r.Allow("tcp", 8080) // to reach a port is no right to listen on it
	r.Allow("udp", 80)
	may("tcp")
	may("udp")
	r.AllowListen("tcp", 8080)
	r.AllowListen("tcp", 80)
	r.AllowListen("tcp", 80)
	may("tcp", 80, 8080)
	may("udp")
	if r.Allows("tcp", 80) || len(r.ListenTCP) != 2 {
		t.Errorf("%+v", r)
	}
	r.AllowListen("udp", AnyPort) // the system's ports are not among them
	may("udp", 1024, 8080, 65535)
	r.DenyListen("udp", 8080)
	may("udp", 1024, 8080, 65535)
	r.Blocked = true
	may("tcp")
	may("udp")
	r.Blocked = false
	r.DenyListen("udp", AnyPort)
	r.DenyListen("tcp", 80)
	may("udp")
	may("tcp", 8080)
}

// TestListenRightsOfOtherVersions reads a record of before there were any, and one of a
// version that has more.
func TestListenRightsOfOtherVersions(t *testing.T) {
	d := testDevice(1)
	raw, err := encode(d, nil)
	if err != nil {
		t.Fatal(err)
	}
	var m map[uint64]cbor.RawMessage
	if err := cbor.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	delete(m, 27)
	delete(m, 28)
	m[firstUnknown] = cbor.RawMessage{1}
	if raw, err = cbor.Marshal(m); err != nil {
		t.Fatal(err)
	}
	got, keep, err := decode(raw)
	if err != nil || len(got.Rights.ListenTCP)+len(got.Rights.ListenUDP) > 0 || !slices.Equal(got.Rights.TCP, d.Rights.TCP) {
		t.Errorf("%+v, %v", got.Rights, err)
	}
	if len(keep) != 1 || keep[firstUnknown] == nil {
		t.Errorf("kept %v", keep)
	}
	m[27] = cbor.RawMessage{0x82, 0x19, 0x1f, 0x90, 0x00} // [8080, 0]
	if raw, err = cbor.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if got, _, err = decode(raw); err != nil || !slices.Equal(got.Rights.ListenTCP, []uint16{0, 8080}) {
		t.Errorf("%+v, %v", got.Rights, err)
	}
}
