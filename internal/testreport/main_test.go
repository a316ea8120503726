package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const in = `{"Action":"output","Package":"p","Test":"TestSkip","Output":"    x_test.go:7: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestSkip"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"fail","Package":"p"}
`
	var out strings.Builder
	if report(strings.NewReader(in), &out) {
		t.Error("a failure was reported as success")
	}
	for _, want := range []string{"p TestSkip: needs root", "got 1, want 2", "1 passed, 2 failed, 1 skipped\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	out.Reset()
	if report(strings.NewReader(""), &out) {
		t.Error("a run without tests was reported as success")
	}
	out.Reset()
	if !report(strings.NewReader(`{"Action":"pass","Package":"p","Test":"TestGood"}`+"\n"), &out) {
		t.Errorf("a good run was reported as failure:\n%s", out.String())
	}
}
