package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFuzzes: packages without fuzz functions are not built.
func TestFuzzes(t *testing.T) {
	for text, want := range map[string]bool{
		"package a\n\nfunc FuzzOne(f *testing.F) {}\n":                           true,
		"package a\n\nfunc TestFuzzNone(t *testing.T) {}\n\n// func FuzzNone(\n": false,
	} {
		dir := t.TempDir()
		for _, name := range []string{"a_test.go", "b.go"} {
			if name == "b.go" {
				text = "package a\n\nfunc FuzzThree() {}\n"
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := fuzzes(dir); err != nil || got != want {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
}

// TestDeadline: only what the fuzzer itself did not end in time is tried again.
func TestDeadline(t *testing.T) {
	const counts = "fuzz: elapsed: 3s, execs: 1 (0/sec), new interesting: 13 (total: 15)\n"
	for out, again := range map[string]bool{
		counts + "--- FAIL: FuzzA (3.10s)\n    context deadline exceeded\nFAIL\n":                                                                                                         true,
		counts + "--- FAIL: FuzzA (1.10s)\n    --- FAIL: FuzzA (0.00s)\n        a_test.go:9: context deadline exceeded\n    \n    Failing input written to testdata/fuzz/FuzzA/1\nFAIL\n": false,
		counts + "PASS\n": false,
	} {
		if deadline.MatchString(out) != again {
			t.Errorf("%q: tried again: %v", out, !again)
		}
	}
	if got := result([]byte(counts + "PASS\n")); got != "3s, execs: 1 (0/sec), new interesting: 13 (total: 15)" {
		t.Errorf("result %q", got)
	}
}
