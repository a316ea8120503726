package kith_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestRoamTable makes each change of the network many times and writes a table in
// Markdown: make roam. KITH_ROAM is the number of runs, and KITH_ROAM_FILE the
// file; without the first it is skipped.
func TestRoamTable(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("KITH_ROAM"))
	if err != nil || runs < 1 {
		t.Skip("it takes many minutes: make roam runs it")
	}
	var table strings.Builder
	table.WriteString("| what happens | runs | first byte: median | 95 % | most | transfer: median | 95 % | most | completed |\n" +
		"|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			first, flow, completed := measureChange(t, c, runs)
			line := fmt.Sprintf("| %s | %d | %s | %s | %s | %s | %s | %s | %d |\n", c.name, runs,
				quantile(first, 50), quantile(first, 95), quantile(first, 100),
				quantile(flow, 50), quantile(flow, 95), quantile(flow, 100), completed)
			table.WriteString(line)
			t.Log(line)
		})
	}
	idle := make([]string, len(idlePairs()))
	t.Run("idle", func(t *testing.T) {
		for i, c := range idlePairs() {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel() // they do nothing but wait
				idle[i] = measureIdle(t, c)
				t.Log(idle[i])
			})
		}
	})
	text := roamHead + table.String() + idleHead + strings.Join(idle, "")
	file := os.Getenv("KITH_ROAM_FILE")
	if file == "" || t.Failed() {
		t.Log("\n" + text)
		return
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const roamHead = `# Moving about

What it costs two connected devices when the network changes under them. Two homes, one
hub on the internet, all in network namespaces on one machine, with no delay on the
wires; between changes both find their best path again. ` + "`make roam`" + ` writes this page.

## Until there is traffic again

100 MB go through a forwarded port at up to 50 MB/s, every other time in the other
direction. The time runs from the moment when the network is back. *First byte* is the
answer to a ping through the tunnel; *transfer* is when the bytes of the transfer flow
for good: the end of its last pause of a quarter of a second or more, 0 if it had none.
*Completed* counts transfers of which all bytes came, with the right hash.

`

// measureChange makes a change again and again.
func measureChange(t *testing.T, c change, runs int) (first, flow []time.Duration, completed int) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(runs+1)*2*netTimeout)
	defer cancel()
	r := newRoamLab(ctx, t, c)
	for i := range runs {
		r.settle(ctx, t, c)
		res := r.roam(ctx, t, c, i%2 == 1)
		t.Logf("first byte %v, transfer %v (pauses:%s), error %v", res.first, res.flow, res.gaps, res.err)
		first, flow = append(first, res.first), append(flow, res.flow)
		if res.err == nil {
			completed++
		}
		if c.undo != nil {
			c.undo(ctx, r.reachLab)
		}
	}
	return first, flow, completed
}
