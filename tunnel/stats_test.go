package tunnel

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseStats(t *testing.T) {
	const mine, other = "public_key=aa\n", "public_key=bb\n"
	for _, tc := range []struct {
		name, text string
		want       PeerStats
		found      bool
	}{
		{"empty", "", PeerStats{}, false},
		{"interface alone", "private_key=aa\nlisten_port=1\n", PeerStats{}, false},
		{"another", other + "rx_bytes=1\n", PeerStats{}, false},
		{"fresh", mine + "last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\n", PeerStats{}, true},
		{"all", mine + "last_handshake_time_sec=5\nlast_handshake_time_nsec=6\ntx_bytes=7\nrx_bytes=8\n",
			PeerStats{LastHandshake: time.Unix(5, 6), TxBytes: 7, RxBytes: 8}, true},
		{"between others", other + "tx_bytes=1\n" + mine + "tx_bytes=2\n" + other + "tx_bytes=3\nrx_bytes=3\n", PeerStats{TxBytes: 2}, true},
		{"no number", mine + "tx_bytes=x\nrx_bytes=-1\nrx_bytes\n", PeerStats{}, true},
		{"too large", mine + "tx_bytes=18446744073709551615\n", PeerStats{}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, found := parseStats(strings.NewReader(tc.text), "aa")
			if got != tc.want || found != tc.found {
				t.Errorf("%+v, %v; want %+v, %v", got, found, tc.want, tc.found)
			}
		})
	}
}

// FuzzStats checks that only the section of a key counts.
func FuzzStats(f *testing.F) {
	f.Add("public_key=aa\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\ntx_bytes=7\nrx_bytes=8\n")
	f.Add("listen_port=1\npublic_key=bb\ntx_bytes=9\npublic_key=aa\nrx_bytes=3")
	f.Add("tx_bytes=99999999999999999999\npublic_key=aa\n=\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		st, found := parseStats(strings.NewReader(text), "aa")
		if !found && st != (PeerStats{}) {
			t.Errorf("%+v of a key that is not there", st)
		}
		if strings.Contains(text, "\r") || slices.ContainsFunc(strings.Split(text, "\n"), func(l string) bool { return len(l) > 1000 }) {
			return // the scanner strips the one and gives up at the other
		}
		if there := slices.Contains(strings.Split(text, "\n"), "public_key=aa"); there != found {
			t.Errorf("found %v, there %v", found, there)
		}
		// What stands in the section of another key changes nothing.
		more, again := parseStats(strings.NewReader(text+"\npublic_key=bb\ntx_bytes=1\nrx_bytes=2\nlast_handshake_time_sec=3\n"), "aa")
		if more != st || again != found {
			t.Errorf("%+v, %v with another peer; %+v, %v without", more, again, st, found)
		}
	})
}
