package cli

import (
	"slices"
	"testing"

	"github.com/kithproject/kith/link"
)

func TestTrafficLines(t *testing.T) {
	for name, c := range map[string]struct {
		traffic *link.Traffic
		want    []string
	}{
		"no link yet": {nil, nil},
		"idle": {
			&link.Traffic{Sent: 1400, Received: 3_250_000_000, PeakReceive: 4e8, LossIn: 0.5, LossOut: -1},
			[]string{"1.4 kB sent, 3.2 GB received"},
		},
		"busy": {
			&link.Traffic{
				Sent: 999, Received: 5_000_000, SendRate: 10, ReceiveRate: 2_000_000, PeakSend: 20, PeakReceive: 3_000_000,
				LossIn: 0.0123, LossOut: -1,
			},
			[]string{"999 B sent, now 10 B/s, best 20 B/s", "5.0 MB received, now 2.0 MB/s, best 3.0 MB/s, 1.2 % lost"},
		},
		"nothing lost": {
			&link.Traffic{Sent: 1, SendRate: 1, LossIn: -1},
			[]string{"1 B sent, now 1 B/s, best 0 B/s, 0 % lost", "0 B received, now 0 B/s, best 0 B/s"},
		},
	} {
		if got := trafficLines(c.traffic); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
