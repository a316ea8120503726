// Command fuzzall fuzzes every fuzz target of the module for a while: as many at a time
// as there are cores, each with one worker, which takes less time than one after the
// other. It prints a line per target as it ends, and all that a failed one said. Its
// exit status is 1 if any failed; what made it fail is then in the package's
// testdata/fuzz.
//
//	go run ./internal/fuzzall 5s
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"
)

// A target is one fuzz function, and the test binary that has it.
type target struct{ dir, pkg, name, binary string }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fuzzall:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: fuzzall TIME, for example 5s")
	}
	long, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "fuzzall")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	cache, err := exec.CommandContext(ctx, "go", "env", "GOCACHE").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	corpora := filepath.Join(strings.TrimSpace(string(cache)), "fuzz")
	var wg sync.WaitGroup
	var mu sync.Mutex // guards failed and the output
	var failed []string
	queue := make(chan target)
	for range runtime.NumCPU() {
		wg.Go(func() {
			for t := range queue {
				out, ok := t.fuzz(ctx, corpora, long)
				mu.Lock()
				if ok {
					fmt.Printf("ok    %s %s: %s\n", t.pkg, t.name, result(out))
				} else {
					fmt.Printf("%sFAIL  %s %s\n", out, t.pkg, t.name)
					failed = append(failed, t.name)
				}
				mu.Unlock()
			}
		})
	}
	err = build(ctx, tmp, queue)
	close(queue)
	wg.Wait()
	if err == nil && len(failed) > 0 {
		err = fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return err
}

// build builds a test binary per package that has fuzz targets, and lists them.
func build(ctx context.Context, tmp string, queue chan<- target) error {
	list, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}\t{{.ImportPath}}", "./...").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(list)), "\n") {
		dir, pkg, _ := strings.Cut(line, "\t")
		if has, err := fuzzes(dir); err != nil {
			return err
		} else if !has {
			continue
		}
		binary := filepath.Join(tmp, fmt.Sprintf("%d.test", i))
		if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-fuzz", ".", "-o", binary, pkg).CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
		if _, err := os.Stat(binary); err != nil {
			continue // its tests are for another system
		}
		names := exec.CommandContext(ctx, binary, "-test.list=^Fuzz")
		names.Dir = dir
		out, err := names.Output()
		if err != nil {
			return fmt.Errorf("list the targets of %s: %w", pkg, err)
		}
		for _, name := range strings.Fields(string(out)) {
			queue <- target{dir, pkg, name, binary}
		}
	}
	return nil
}

// fuzzes reports whether a directory's tests have fuzz functions, for some system.
func fuzzes(dir string) (bool, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return false, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return false, err
		}
		if fuzzFunc.Match(text) {
			return true, nil
		}
	}
	return false, nil
}

var fuzzFunc = regexp.MustCompile(`(?m)^func Fuzz\w+\(`)

// fuzz runs a target, once more if the fuzzer itself did not end in time, as it does now
// and then (golang/go#75804): a real finding says what failed.
func (t target) fuzz(ctx context.Context, corpora string, long time.Duration) (out []byte, ok bool) {
	for range 2 {
		cmd := exec.CommandContext(ctx, t.binary, "-test.run=^$", "-test.parallel=1", "-test.fuzz=^"+t.name+"$",
			"-test.fuzztime="+long.String(), "-test.fuzzcachedir="+filepath.Join(corpora, filepath.FromSlash(t.pkg)))
		cmd.Dir = t.dir // where new failures are written to
		o, err := cmd.CombinedOutput()
		if err == nil {
			return o, true
		}
		if out = append(out, o...); !deadline.Match(o) {
			break
		}
	}
	return out, false
}

var deadline = regexp.MustCompile(`(?m)^--- FAIL: Fuzz.*\n\s+context deadline exceeded\nFAIL`)

// result is the last that the fuzzer counted.
func result(out []byte) string {
	last := "done"
	for line := range strings.Lines(string(out)) {
		if counts, ok := strings.CutPrefix(line, "fuzz: elapsed: "); ok {
			last = strings.TrimSpace(counts)
		}
	}
	return last
}
