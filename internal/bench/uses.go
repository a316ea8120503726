package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// appOptions are what the command line says of the table of uses.
type appOptions struct {
	rounds int
	size   int64         // of the large file, in bytes
	files  int           // how many small ones
	time   time.Duration // of one measurement of a forward
	rows   []string
}

// wants reports whether a row is to be measured.
func (o appOptions) wants(row string) bool { return len(o.rows) == 0 || slices.Contains(o.rows, row) }

// The rows, and the ways within them.
const (
	rowLAN     = "lan"
	rowTunnel  = "tunnel"
	rowLossy   = "lossy"
	rowSmall   = "small"
	rowForward = "forward"
	rowAsk     = "requests"

	waySend   = "kith send"
	wayStream = "one stream"
	wayMany   = "64 streams"
	wayTar    = "tar"

	manyConns = 64
	smallSize = 1000 // bytes
	askRTT    = 20 * time.Millisecond
)

// allRows are those that there are.
func allRows() []string { return []string{rowLAN, rowTunnel, rowLossy, rowSmall, rowForward, rowAsk} }

// parseRows reads a comma-separated list, all if it is empty; it errs for a row that
// there is not.
func parseRows(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	rows := strings.Split(text, ",")
	for _, r := range rows {
		if !slices.Contains(allRows(), r) {
			return nil, fmt.Errorf("bench: no row %q; there are %s", r, strings.Join(allRows(), ", "))
		}
	}
	return rows, nil
}

// A useResult holds what was measured of each row.
type useResult struct {
	rows        map[string]*result
	peak        []float64 // MiB above idle, of the larger of both, with the large file
	kept, fresh []float64 // 99th percentiles, in seconds
}

func (r *useResult) add(row, way string, s sample) {
	if r.rows == nil {
		r.rows = make(map[string]*result)
	}
	if r.rows[row] == nil {
		r.rows[row] = new(result)
	}
	r.rows[row].add(way, s)
}

func (r *useResult) row(name string) *result {
	if one := r.rows[name]; one != nil {
		return one
	}
	return new(result)
}

// The limits that files and ports are held to. Ratios are medians of the ratio within a
// round.
const (
	leastOfTLS     = 0.9  // throughput of a large file over a lane to a copy over plain TLS
	mostCPUOfTLS   = 1.1  // its CPU time to that
	mostMemory     = 64.0 // MiB above idle, of either end
	leastOfStream  = 0.95 // throughput of a file through the tunnel to a stream of it
	leastLossy     = 170  // Mbit/s of a file at 1 % loss, 20 ms, 300 Mbit/s
	mostOfTar      = 3.0  // time of many small files to that of tar over TCP
	leastOfOne     = 0.9  // throughput of 64 connections through a forward to that of one
	mostRequestRTT = 3    // round trips of a small request, 99th percentile
	moreRequest    = 2 * time.Millisecond
)

func (r *useResult) gates() []gate {
	var out []gate
	ratio := func(row, a, b, what string, limit float64) {
		if v := r.row(row).ratios(a, b); len(v) > 0 {
			out = append(out, gate{what: what, value: median(v), limit: limit})
		}
	}
	ratio(rowLAN, waySend, wayTLS, "a large file over a lane / plain TLS", leastOfTLS)
	if one := r.row(rowLAN); len(one.order) > 0 {
		var cpu []float64
		for i := range min(len(one.runs[waySend]), len(one.runs[wayTLS])) {
			cpu = append(cpu, one.runs[waySend][i].cpuPerGB()/one.runs[wayTLS][i].cpuPerGB())
		}
		out = append(out, gate{what: "its CPU time / that of plain TLS", value: median(cpu), limit: mostCPUOfTLS, most: true},
			gate{what: "its memory above idle, MiB", value: median(r.peak), limit: mostMemory, most: true})
	}
	ratio(rowTunnel, waySend, wayStream, "a large file through the tunnel / one stream", leastOfStream)
	if v := r.row(rowLossy).values(waySend, sample.gbit); len(v) > 0 {
		out = append(out, gate{what: "a file at 1 % loss, 20 ms, 300 Mbit/s, in Mbit/s", value: 1000 * median(v), limit: leastLossy})
	}
	if v := r.row(rowSmall).ratios(wayTar, waySend); len(v) > 0 {
		out = append(out, gate{what: "many small files / tar (time)", value: median(v), limit: mostOfTar, most: true})
	}
	ratio(rowForward, wayMany, wayStream, "forward: 64 connections / one", leastOfOne)
	most := float64((mostRequestRTT*askRTT + moreRequest) / time.Millisecond)
	for _, g := range []struct {
		what   string
		values []float64
	}{{"small requests, 99 % below, ms", r.kept}, {"the same, a connection for each", r.fresh}} {
		if len(g.values) > 0 {
			out = append(out, gate{what: g.what, value: 1e3 * median(g.values), limit: most, most: true})
		}
	}
	return out
}

// write prints the table and the gates; it reports whether all gates hold.
func (r *useResult) write(w io.Writer) bool {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "row\tway\truns\tseconds\tGbit/s\tCPU-s/GB")
	for _, row := range allRows() {
		one := r.row(row)
		for _, way := range one.order {
			fmt.Fprintf(tw, "%s\t%s\t%d\t%.2f\t%.3f\t%.2f\n", row, way, len(one.runs[way]),
				median(one.values(way, func(s sample) float64 { return s.seconds })),
				median(one.values(way, sample.gbit)), median(one.values(way, sample.cpuPerGB)))
		}
	}
	_ = tw.Flush()
	ok := true
	for _, g := range r.gates() {
		fmt.Fprintln(w, g)
		ok = ok && g.holds()
	}
	return ok
}
