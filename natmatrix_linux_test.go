package kith_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestNATMatrix runs each row of the NAT matrix many times and writes a table in
// Markdown: make natmatrix. KITH_NATMATRIX is the number of runs, and
// KITH_NATMATRIX_FILE the file; without the first it is skipped.
func TestNATMatrix(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("KITH_NATMATRIX"))
	if err != nil || runs < 1 {
		t.Skip("it takes many minutes: make natmatrix runs it")
	}
	var table strings.Builder
	fmt.Fprintf(&table, "| left | right | runs | straight | first byte: median | 95 %% | straight: median | 95 %% | path |\n"+
		"|---|---|---|---|---|---|---|---|---|\n")
	for _, row := range reachRows() {
		t.Run(fmt.Sprintf("%s-%s", row.a, row.b), func(t *testing.T) {
			first, straight, paths := measureRow(t, row, runs)
			line := fmt.Sprintf("| %s | %s | %d | %d %% | %s | %s | %s | %s | %s |\n", row.a, row.b, runs, 100*len(straight)/runs,
				quantile(first, 50), quantile(first, 95), quantile(straight, 50), quantile(straight, 95), paths)
			table.WriteString(line)
			t.Log(line)
		})
	}
	file := os.Getenv("KITH_NATMATRIX_FILE")
	if file == "" || t.Failed() {
		t.Log("\n" + table.String())
		return
	}
	text := "# What reaches what\n\nTwo homes, one hub on the internet, all in network namespaces on one machine, with no\n" +
		"delay on the wires; both daemons are started, and the time runs until the first answer\n" +
		"through the tunnel, and until the path goes through no relay. Before each run the routers\n" +
		"forget all their mappings. `make natmatrix` writes this table.\n\n" + table.String()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// measureRow starts both daemons again and again.
func measureRow(t *testing.T, row reachRow, runs int) (first, straight []time.Duration, paths string) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(runs+2)*20*time.Second)
	defer cancel()
	r := newReachLab(ctx, t, row.a, row.b)
	patience := 10 * time.Second
	if !row.straight {
		patience = 0
	}
	kinds := make(map[string]int)
	for range runs {
		for _, s := range r.nodes {
			s.up.Stop()
		}
		for _, s := range r.sites {
			s.Reboot(false)
		}
		o := r.restart(ctx, t, patience)
		first = append(first, o.first)
		if o.straight > 0 {
			straight = append(straight, o.straight)
		}
		kind, _, _ := strings.Cut(o.path, " ")
		kinds[kind]++
	}
	var names []string
	for kind, n := range kinds {
		names = append(names, fmt.Sprintf("%s %d", kind, n))
	}
	slices.Sort(names)
	return first, straight, strings.Join(names, ", ")
}

// quantile is a percentile of times, for people.
func quantile(all []time.Duration, percent int) string {
	if len(all) == 0 {
		return "-"
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[max((len(sorted)*percent+99)/100-1, 0)].Round(10 * time.Millisecond).String()
}
