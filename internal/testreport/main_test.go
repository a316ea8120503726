package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name, in string
		ok       bool
		want     []string
		absent   string
	}{
		{
			"passes are short", `{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Elapsed":1.5}`,
			true, []string{"ok    p ", "1.5s", "1 passed, 0 failed, 0 skipped"}, "chatter",
		},
		{
			"a failure says what it said", `{"Action":"output","Package":"p","Test":"TestA","Output":"a_test.go:3: wrong\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`,
			false, []string{"a_test.go:3: wrong\nFAIL  p TestA", "0 passed, 2 failed"}, "NOT ENDED",
		},
		{
			"a skip says why", `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"pass","Package":"p"}`,
			true, []string{"p TestA: needs root\n", "1 passed, 0 failed, 1 skipped"}, "=== RUN",
		},
		{
			"tests that never ended are shown", `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: in a goroutine\n"}
{"Action":"output","Package":"q","Test":"TestC","Output":"chatter\n"}
{"Action":"output","Package":"p","Output":"FAIL p 1s\n"}
{"Action":"fail","Package":"p"}
{"Action":"pass","Package":"q","Test":"TestC"}
{"Action":"pass","Package":"q"}`,
			false, []string{"panic: in a goroutine\nNOT ENDED  p TestA\nFAIL p 1s\n"}, "chatter",
		},
		{"no tests at all", `{"Action":"pass","Package":"p"}`, false, []string{"0 passed"}, "FAIL"},
		{"what does not build", "# p\nx.go:1: nonsense\n" + `{"Action":"fail","Package":"p"}`, false, []string{"x.go:1: nonsense\n"}, "NOT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			if ok := report(strings.NewReader(c.in), &out); ok != c.ok {
				t.Errorf("ok is %v", ok)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is missing in:\n%s", want, &out)
				}
			}
			if strings.Contains(out.String(), c.absent) {
				t.Errorf("%q is in:\n%s", c.absent, &out)
			}
		})
	}
}
