package main

import (
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		of   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 100}, 3}} {
		if got := median(tc.of); got != tc.want {
			t.Errorf("median of %v is %v, want %v", tc.of, got, tc.want)
		}
	}
}

func TestParseWays(t *testing.T) {
	for _, tc := range []struct {
		text string
		ok   bool
	}{{strings.Join(allWays(), ","), true}, {wayOurs, true}, {wayStdUDP, true}, {"", false}, {"ours,", false}, {"quic", false}} {
		if ways, err := parseWays(tc.text); (err == nil) != tc.ok {
			t.Errorf("%q: %v, %v", tc.text, ways, err)
		}
	}
}

// TestReport checks the verdicts at their limits, and that ratios are taken
// within a round.
func TestReport(t *testing.T) {
	at := func(gbit, cpu float64) sample {
		return sample{bytes: gbit / 8 * 1e9, seconds: 1, cpu: cpu * gbit / 8, hub: gbit / 8}
	}
	for _, tc := range []struct {
		name         string
		ours         []sample
		kernel       []sample
		stock        []sample
		others       map[string][]sample
		met          bool
		lines, never []string
	}{
		{"met", []sample{at(2, 4), at(4, 4), at(3, 4)}, []sample{at(2, 5), at(4, 5), at(3, 5)}, []sample{at(0.5, 20), at(1, 20), at(0.75, 20)}, nil,
			true, []string{"ours            3     3.00    2.00 - 4.00  4.00", "kernel TUN (throughput)          1.00  >= 1.00  met", "4.00  >= 4.00  met", "4.00  <= 4.70  met"}, []string{"missed"}},
		{"slower than the kernel", []sample{at(2, 4)}, []sample{at(2.2, 5)}, nil, nil, false, []string{"0.91  >= 1.00  missed", "<= 4.70  met"}, []string{"netstack (throughput)"}},
		{"too dear", []sample{at(2, 4.8)}, nil, nil, nil, false, []string{"4.80  <= 4.70  missed"}, []string{"kernel TUN", "NaN"}},
		{"median of ratios", []sample{at(1, 4), at(9, 4), at(3, 4)}, []sample{at(1, 5), at(10, 5), at(2, 5)}, nil, nil, true, []string{"1.00  >= 1.00  met"}, nil},
		{"other ways", []sample{at(2, 4)}, nil, nil, map[string][]sample{wayTCP: {at(20, 1)}, wayTCPNATs: {at(18, 1)}, wayNATs: {at(1.72, 4)}, wayRelay: {at(1, 9)}, wayRelayDown: {at(0.9, 9)}}, false,
			[]string{"0.96  >= 0.95  met", "ours-nats: 0.86 of the throughput of ours", "tcp-nats: 0.90 of the throughput of tcp", "0.50  >= 0.50  met", "0.45  >= 0.50  missed", "ours-relay: the hub takes 1.00 CPU-s/GB, so that one CPU forwards 8.00 Gbit/s"}, []string{"kernel TUN"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r result
			for _, ways := range []map[string][]sample{{wayOurs: tc.ours, wayKernel: tc.kernel, wayStock: tc.stock}, tc.others} {
				for way, samples := range ways {
					for _, s := range samples {
						r.add(way, s)
					}
				}
			}
			var out strings.Builder
			if met := r.write(&out); met != tc.met {
				t.Errorf("met %v", met)
			}
			for _, line := range tc.lines {
				if !strings.Contains(out.String(), line) {
					t.Errorf("no %q in\n%s", line, out.String())
				}
			}
			for _, line := range tc.never {
				if strings.Contains(out.String(), line) {
					t.Errorf("%q in\n%s", line, out.String())
				}
			}
		})
	}
}
