// Command testreport reads the output of go test -json and prints what a person
// needs: each package as it ends, the output of what failed, then every skipped
// test with its reason, and the counts in the last line. Its exit status is 1 if
// anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// event is a line of test2json.
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

func main() {
	if !report(os.Stdin, os.Stdout) {
		os.Exit(1)
	}
}

// maxLine is the longest line of go test that is understood, in bytes.
const maxLine = 16 << 20

func report(in io.Reader, out io.Writer) bool {
	var passed, failed, skipped int
	var skips []string
	output := make(map[string]*strings.Builder)
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		var ev event
		if json.Unmarshal(lines.Bytes(), &ev) != nil {
			fmt.Fprintln(out, lines.Text()) // of the go command itself
			continue
		}
		key := ev.Package + " " + ev.Test
		switch ev.Action {
		case "output", "build-output":
			if output[key] == nil {
				output[key] = &strings.Builder{}
			}
			output[key].WriteString(ev.Output)
			if ev.Action == "build-output" {
				fmt.Fprint(out, ev.Output)
			}
			continue
		case "pass":
			if ev.Test == "" {
				fmt.Fprintf(out, "ok    %-60s %7.1fs\n", ev.Package, ev.Elapsed)
			} else {
				passed++
			}
		case "fail":
			failed++
			if ev.Test == "" {
				unfinished(out, ev.Package, output)
			}
			if text := output[key]; text != nil {
				fmt.Fprint(out, text.String())
			}
			fmt.Fprintf(out, "FAIL  %s\n", key)
		case "skip":
			if ev.Test != "" {
				skipped++
				skips = append(skips, key+": "+reason(output[key]))
			}
		}
		if ev.Action == "pass" || ev.Action == "fail" || ev.Action == "skip" {
			delete(output, key)
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(out, "testreport:", err)
		failed++
	}
	if len(skips) > 0 {
		fmt.Fprintln(out, "\nskipped:")
		for _, s := range skips {
			fmt.Fprintln(out, "  "+s)
		}
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return failed == 0 && passed > 0
}

// unfinished prints what the tests of a package said that never ended: a panic in
// another goroutine or the timeout took them along, and one of them says why.
func unfinished(out io.Writer, pkg string, output map[string]*strings.Builder) {
	for _, key := range slices.Sorted(maps.Keys(output)) {
		if strings.HasPrefix(key, pkg+" ") && key != pkg+" " {
			fmt.Fprintf(out, "%sNOT ENDED  %s\n", output[key], key)
			delete(output, key)
		}
	}
}

// reason finds why a test was skipped in its output.
func reason(text *strings.Builder) string {
	if text == nil {
		return "no reason given"
	}
	var why []string
	for line := range strings.Lines(text.String()) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		if _, after, ok := strings.Cut(line, ".go:"); ok {
			_, line, _ = strings.Cut(after, ": ")
		}
		why = append(why, line)
	}
	if len(why) == 0 {
		return "no reason given"
	}
	return strings.Join(why, " ")
}
