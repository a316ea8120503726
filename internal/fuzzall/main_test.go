package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestTargets: the fuzz functions of a directory's tests are found, and nothing else.
func TestTargets(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a_test.go": "package a\n\nfunc FuzzOne(f *testing.F) {}\n\nfunc TestFuzzNone(t *testing.T) {}\n",
		"b_test.go": "package a\n\n// func FuzzNone(\nfunc FuzzTwo(f *testing.F) {}\n",
		"c.go":      "package a\n\nfunc FuzzThree() {}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := targets(dir); err != nil || !slices.Equal(got, []string{"FuzzOne", "FuzzTwo"}) {
		t.Errorf("%v, %v", got, err)
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
