package kith_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// bubbleHelpers are functions that sleep for their callers, all of which are in a
// testing/synctest bubble.
var bubbleHelpers = map[string]bool{"rendezvous/rendezvoustest through": true, "app/chat pass": true}

// sleepsOutside returns the functions of a test file that call time.Sleep outside
// a testing/synctest bubble: there a sleep is a guess how long something takes.
func sleepsOutside(f *ast.File) []string {
	var out []string
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		var bubbles []*ast.CallExpr
		var sleeps []*ast.CallExpr
		ast.Inspect(fn, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch pkg, _ := sel.X.(*ast.Ident); {
			case pkg == nil:
			case pkg.Name == "synctest" && sel.Sel.Name == "Test":
				bubbles = append(bubbles, call)
			case pkg.Name == "time" && sel.Sel.Name == "Sleep":
				sleeps = append(sleeps, call)
			}
			return true
		})
		for _, s := range sleeps {
			inside := false
			for _, b := range bubbles {
				inside = inside || b.Pos() < s.Pos() && s.End() <= b.End()
			}
			if !inside {
				out = append(out, fn.Name.Name)
			}
		}
	}
	return out
}

// TestSleepsAreInBubbles holds that no test waits by the real clock.
func TestSleepsAreInBubbles(t *testing.T) {
	for _, s := range sources(t) {
		if !strings.HasSuffix(s.name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(s.dir, s.name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range sleepsOutside(f) {
			if !bubbleHelpers[s.dir+" "+name] {
				t.Errorf("%s/%s: %s sleeps outside a testing/synctest bubble: await the event", s.dir, s.name, name)
			}
		}
	}
}

func TestSleepCheckFindsSleeps(t *testing.T) {
	const source = `package x
func TestA(t *testing.T) { synctest.Test(t, func(t *testing.T) { time.Sleep(1) }) }
func TestB(t *testing.T) { time.Sleep(1); synctest.Test(t, func(t *testing.T) {}) }
`
	f, err := parser.ParseFile(token.NewFileSet(), "x_test.go", source, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := sleepsOutside(f); len(got) != 1 || got[0] != "TestB" {
		t.Errorf("found %v, want TestB alone", got)
	}
}
