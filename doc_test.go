package kith_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func countLines(t *testing.T, file string) int {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(raw, []byte("\n"))
}

// unit finds a unit, or what says that a number has none, in a comment.
var unit = regexp.MustCompile(`(?i)\b(bytes?|bits?|seconds?|milliseconds?|nanoseconds?|minutes?|days?|hours?|packets?|frames?|characters?|hops|percent|version|number|port|priority|state|states|method|methods|role|roles|kind|kinds|reason|reasons|form|forms|mode|modes|index|words?|digits?|lines?|modules?|levels?|pixels?|how many|count|type|types|zero value|probes|datagrams|other)\b`)

// documented returns what the exported API of a file leaves unsaid.
func documented(file string, src any) ([]string, error) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, file, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	var bad []string
	report := func(pos token.Pos, format string, args ...any) {
		bad = append(bad, fmt.Sprintf("%s: %s", set.Position(pos), fmt.Sprintf(format, args...)))
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if exported(d) {
				checkFunc(d, report)
			}
		case *ast.GenDecl:
			checkGen(d, report)
		}
	}
	return bad, nil
}

// exported reports whether a function, or a method of an exported type, is part
// of the API. Methods that only satisfy an interface of another library are
// documented there if they stand in a type that is not exported.
func exported(d *ast.FuncDecl) bool {
	if !d.Name.IsExported() {
		return false
	}
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if gen, ok := t.(*ast.IndexExpr); ok {
		t = gen.X
	}
	id, ok := t.(*ast.Ident)
	return ok && id.IsExported()
}

var wellKnown = map[string]bool{"Error": true, "Unwrap": true, "String": true, "Is": true}

func checkFunc(d *ast.FuncDecl, report func(token.Pos, string, ...any)) {
	text := d.Doc.Text()
	if wellKnown[d.Name.Name] && d.Recv != nil {
		return
	}
	if !strings.HasPrefix(text, d.Name.Name) {
		report(d.Pos(), "the comment of %s does not begin with its name", d.Name.Name)
		return
	}
	if d.Type.Results == nil {
		return
	}
	for _, r := range d.Type.Results.List {
		if id, ok := r.Type.(*ast.Ident); ok && id.Name == "error" && !strings.Contains(strings.ToLower(text), "err") && !conventional(d.Name.Name) {
			report(d.Pos(), "%s returns an error; its comment does not say when", d.Name.Name)
		}
	}
}

// conventional methods have errors that their interface's documentation gives.
func conventional(name string) bool {
	return name == "Close" || name == "Read" || name == "Write" || name == "Accept" || name == "CloseWrite"
}

func checkGen(d *ast.GenDecl, report func(token.Pos, string, ...any)) {
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if !s.Name.IsExported() {
				continue
			}
			if d.Doc.Text() == "" && s.Doc.Text() == "" {
				report(s.Pos(), "type %s has no comment", s.Name.Name)
			}
			if st, ok := s.Type.(*ast.StructType); ok {
				checkFields(s.Name.Name, st, report)
			}
		case *ast.ValueSpec:
			checkValue(d, s, report)
		}
	}
}

func checkValue(d *ast.GenDecl, s *ast.ValueSpec, report func(token.Pos, string, ...any)) {
	for i, name := range s.Names {
		if !name.IsExported() {
			continue
		}
		text := d.Doc.Text() + s.Doc.Text() + s.Comment.Text()
		if text == "" {
			report(s.Pos(), "%s has no comment", name.Name)
		}
		if d.Tok != token.CONST || i >= len(s.Values) || s.Type != nil {
			continue
		}
		if lit, ok := s.Values[i].(*ast.BasicLit); ok && (lit.Kind == token.INT || lit.Kind == token.FLOAT) && !unit.MatchString(text) {
			report(s.Pos(), "the comment of %s does not name its unit", name.Name)
		}
	}
}

var numeric = map[string]bool{
	"int": true, "int8": true, "int16": true, "int32": true, "int64": true, "uint": true, "uint8": true,
	"uint16": true, "uint32": true, "uint64": true, "float32": true, "float64": true,
}

func checkFields(name string, st *ast.StructType, report func(token.Pos, string, ...any)) {
	for _, f := range st.Fields.List {
		id, ok := f.Type.(*ast.Ident)
		if !ok || !numeric[id.Name] || len(f.Names) == 0 || !f.Names[0].IsExported() {
			continue
		}
		if text := f.Doc.Text() + f.Comment.Text(); !unit.MatchString(text) {
			report(f.Pos(), "%s.%s does not name its unit", name, f.Names[0].Name)
		}
	}
}

// TestDocumented holds that the API says what it does, when it fails and in
// which unit.
func TestDocumented(t *testing.T) {
	packages := make(map[string]bool)
	for _, s := range sources(t) {
		if strings.HasSuffix(s.name, "_test.go") {
			continue
		}
		file := filepath.Join(s.dir, s.name)
		bad, err := documented(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range bad {
			t.Error(b)
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		packages[s.dir] = packages[s.dir] || f.Doc.Text() != ""
	}
	for dir, has := range packages {
		if !has {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

// TestDocumentedCatches proves that the check can fail.
func TestDocumentedCatches(t *testing.T) {
	for name, src := range map[string]string{
		"no comment":       "package p\nfunc Do() {}\n",
		"another name":     "package p\n// This does.\nfunc Do() {}\n",
		"a silent failure": "package p\n// Do does.\nfunc Do() error { return nil }\n",
		"a type":           "package p\ntype T int\n",
		"a number":         "package p\n// Max is the most.\nconst Max = 7\n",
		"a field":          "package p\n// T is.\ntype T struct {\n\tSize int // how big\n}\n",
	} {
		bad, err := documented("p.go", src)
		if err != nil {
			t.Fatal(err)
		}
		if len(bad) == 0 {
			t.Errorf("%s was not caught", name)
		}
	}
	good := "package p\n// Do does. It errs never.\nfunc Do() error { return nil }\n// Max is the most, in bytes.\nconst Max = 7\n"
	if bad, err := documented("p.go", good); err != nil || len(bad) > 0 {
		t.Errorf("a good file was refused: %v %v", bad, err)
	}
}
