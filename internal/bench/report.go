package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// A sample is one run of one way.
type sample struct {
	bytes   float64 // received payload, in bytes
	seconds float64 // wall clock
	cpu     float64 // CPU time of both ends, in seconds
	hub     float64 // CPU time of the hub in between, in seconds
}

// gbit is the throughput in Gbit/s.
func (s sample) gbit() float64 { return s.bytes * 8 / 1e9 / s.seconds }

// cpuPerGB is the CPU time of both ends in seconds per 10^9 bytes.
func (s sample) cpuPerGB() float64 { return s.cpu / (s.bytes / 1e9) }

// hubPerGB is the CPU time of the hub in seconds per 10^9 bytes.
func (s sample) hubPerGB() float64 { return s.hub / (s.bytes / 1e9) }

// median returns the middle value, or the mean of the two middle ones.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	if m := len(v) / 2; len(v)%2 == 1 {
		return v[m]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

// A result holds all runs of all ways.
type result struct {
	order []string // ways, as they are listed
	runs  map[string][]sample
}

func (r *result) add(way string, s sample) {
	if r.runs == nil {
		r.runs = make(map[string][]sample)
	}
	if !slices.Contains(r.order, way) {
		r.order = append(r.order, way)
	}
	r.runs[way] = append(r.runs[way], s)
}

func (r *result) values(way string, of func(sample) float64) []float64 {
	var out []float64
	for _, s := range r.runs[way] {
		out = append(out, of(s))
	}
	return out
}

// A gate is a figure that must hold.
type gate struct {
	what  string
	value float64
	limit float64
	most  bool // the limit is an upper one
}

func (g gate) holds() bool {
	if g.most {
		return g.value <= g.limit
	}
	return g.value >= g.limit
}

func (g gate) String() string {
	sign, verdict := ">=", "met"
	if g.most {
		sign = "<="
	}
	if !g.holds() {
		verdict = "missed"
	}
	return fmt.Sprintf("%-48s %6.2f  %s %.2f  %s", g.what, g.value, sign, g.limit, verdict)
}

// The limits that the data path is held to. Ratios are medians of the ratio
// within a round, since a shared machine changes its speed between rounds.
const (
	leastOfKernel = 1.0 // throughput of ours to WireGuard with a kernel TUN
	leastOfStock  = 4.0 // throughput of ours to WireGuard's own netstack
	mostCPU       = 4.7 // CPU seconds per GB of both ends; its encryption alone takes 1.0
	// leastOfLAN is the throughput of ours through two NATs to that on a LAN, beside
	// the same of raw TCP: the routers have the same CPUs as the ends, and their work
	// is done in the sender's system calls.
	leastOfLAN    = 0.95
	leastOfDirect = 0.5 // throughput of ours through the hub's relay to that on a LAN
)

// gates returns what can be said of the ways that were measured.
func (r *result) gates() []gate {
	var out []gate
	if v := r.ratios(wayOurs, wayKernel); len(v) > 0 {
		out = append(out, gate{what: "ours / WireGuard, kernel TUN (throughput)", value: median(v), limit: leastOfKernel})
	}
	if v := r.ratios(wayOurs, wayStock); len(v) > 0 {
		out = append(out, gate{what: "ours / WireGuard, its netstack (throughput)", value: median(v), limit: leastOfStock})
	}
	if v := r.values(wayOurs, sample.cpuPerGB); len(v) > 0 {
		out = append(out, gate{what: "ours, CPU-s/GB of both ends", value: median(v), limit: mostCPU, most: true})
	}
	if v, raw := r.ratios(wayNATs, wayOurs), r.ratios(wayTCPNATs, wayTCP); len(v) > 0 && len(raw) > 0 {
		out = append(out, gate{what: "ours, through two NATs / on a LAN, to raw TCP's", value: median(v) / min(1, median(raw)), limit: leastOfLAN})
	}
	for _, g := range []struct {
		what, way string
		limit     float64
	}{
		{"ours, through the relay / on a LAN (throughput)", wayRelay, leastOfDirect},
		{"ours, relay of the receiver / on a LAN", wayRelayDown, leastOfDirect},
	} {
		if v := r.ratios(g.way, wayOurs); len(v) > 0 {
			out = append(out, gate{what: g.what, value: median(v), limit: g.limit})
		}
	}
	return out
}

// ratios returns the quotient of two ways' throughputs for each round.
func (r *result) ratios(a, b string) []float64 {
	var out []float64
	for i := range min(len(r.runs[a]), len(r.runs[b])) {
		out = append(out, r.runs[a][i].gbit()/r.runs[b][i].gbit())
	}
	return out
}

// write prints the table and the gates; it reports whether all gates hold.
func (r *result) write(w io.Writer) bool {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "way\truns\tGbit/s\tmin - max\tCPU-s/GB\tmin - max\tof raw TCP")
	for _, way := range r.order {
		speed, cpu := r.values(way, sample.gbit), r.values(way, sample.cpuPerGB)
		share := "-"
		if v := r.ratios(way, wayTCP); len(v) > 0 {
			share = fmt.Sprintf("%.0f %%", 100*median(v))
		}
		fmt.Fprintf(tw, "%s\t%d\t%.2f\t%.2f - %.2f\t%.2f\t%.2f - %.2f\t%s\n", way, len(speed), median(speed),
			slices.Min(speed), slices.Max(speed), median(cpu), slices.Min(cpu), slices.Max(cpu), share)
	}
	_ = tw.Flush()
	for _, pair := range [][2]string{{wayNATs, wayOurs}, {wayTCPNATs, wayTCP}} {
		if v := r.ratios(pair[0], pair[1]); len(v) > 0 {
			fmt.Fprintf(w, "%s: %.2f of the throughput of %s\n", pair[0], median(v), pair[1])
		}
	}
	for _, way := range []string{wayRelay, wayRelayDown} {
		if v := r.values(way, sample.hubPerGB); len(v) > 0 {
			fmt.Fprintf(w, "%s: the hub takes %.2f CPU-s/GB, so that one CPU forwards %.2f Gbit/s\n", way, median(v), 8/median(v))
		}
	}
	ok := true
	for _, g := range r.gates() {
		fmt.Fprintln(w, g)
		ok = ok && g.holds()
	}
	return ok
}

// The ways to carry a stream that are compared.
const (
	wayTCP    = "tcp"
	wayTLS    = "tls"
	wayKernel = "kernel-tun"
	wayStock  = "stock-netstack"
	wayOurs   = "ours"
	wayStdUDP = "ours-std-bind"

	wayTCPNATs   = "tcp-nats"
	wayNATs      = "ours-nats"
	wayRelay     = "ours-relay"
	wayRelayDown = "ours-relay-down"
)

func allWays() []string {
	return []string{wayTCP, wayTLS, wayKernel, wayStock, wayOurs, wayTCPNATs, wayNATs, wayRelay, wayRelayDown}
}

// behindNATs reports whether a way needs the homes.
func behindNATs(way string) bool {
	return way == wayTCPNATs || way == wayNATs || way == wayRelay || way == wayRelayDown
}

// parseWays reads a comma-separated list; it errs for a way that there is not.
func parseWays(text string) ([]string, error) {
	known := append(allWays(), wayStdUDP)
	ways := strings.Split(text, ",")
	for _, w := range ways {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("bench: no way %q; there are %s", w, strings.Join(known, ", "))
		}
	}
	return ways, nil
}
