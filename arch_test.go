package kith_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/kithproject/kith"

// mayImport says what of this module a package may import: only what comes
// before it on the way of the data. "*" is everything. Every package must be
// here.
var mayImport = map[string][]string{
	"internal/retry":            {},
	"internal/strictcbor":       {},
	"internal/wire":             {},
	"internal/netmon":           {"identity"},
	"internal/testreport":       {},
	"internal/fuzzall":          {},
	"internal/train":            {},
	"internal/nettest":          {},
	"internal/tmuxtest":         {},
	"identity":                  {"internal/durable"},
	"code":                      {"internal/wire"},
	"code/scan":                 {"code"},
	"rendezvous":                {},
	"rendezvous/rendezvoustest": {"rendezvous"},
	"rendezvous/lan":            {"rendezvous", "internal/netmon"},
	"rendezvous/mqtt":           {"rendezvous", "internal/wire"},
	"rendezvous/dht":            {"rendezvous", "internal/durable", "internal/wire"},
	"rendezvous/paper":          {"rendezvous", "internal/wire"},
	"rendezvous/waku":           {"rendezvous", "internal/wire"},
	"rendezvous/dns":            {"rendezvous", "internal/wire"},
	"pairing":                   {"identity", "code", "internal/retry", "internal/strictcbor", "internal/wire"},
	"pairing/cpace":             {},
	"room":                      {"identity", "code", "pairing", "pairing/cpace", "internal/durable", "internal/retry", "internal/strictcbor", "internal/wire"},
	"registry":                  {"identity", "internal/durable", "internal/strictcbor"},
	"signaling":                 {"identity", "rendezvous", "pairing", "internal/strictcbor", "internal/wire"},
	"link/punch":                {},
	"link/relay":                {"internal/train"},
	"link":                      {"identity", "signaling", "internal/netmon", "internal/train", "internal/wire", "link/punch"},
	"link/portmap":              {},
	"tunnel":                    {"identity"},
	"lane":                      {"identity", "internal/wire"},
	"lane/carry":                {},
	"app/chat":                  {"identity", "internal/durable", "internal/wire"},
	"app/kin":                   {"identity", "pairing", "internal/strictcbor", "internal/wire"},
	"app/forward":               {},
	"app/files":                 {},
	"app/mail":                  {"identity", "internal/durable"},
	"app/proxy":                 {"app/forward"},
	"app/tun":                   {"app/forward"},
	"internal/durable":          {},
	"internal/durable/disktest": {"internal/durable"},
	"internal/netif":            {},
	"app/expose":                {"app/forward"},
	"app/mesh":                  {"identity", "rendezvous"},
	"app/measure":               {},
	"models":                    {},
	"hub/hubaddr":               {},
	"hub":                       {"hub/hubaddr", "app/mail", "doctor/dialback", "internal/durable", "rendezvous", "rendezvous/dht", "rendezvous/waku", "internal/train"},
	".": {
		"identity", "code", "rendezvous", "rendezvous/lan", "pairing", "registry", "signaling", "link", "tunnel", "lane", "lane/carry",
		"app/forward", "app/kin", "app/mail", "app/measure", "app/mesh", "internal/durable", "internal/netmon", "internal/wire", "link/portmap", "link/punch", "link/relay",
		"hub/hubaddr", "rendezvous/mqtt", "rendezvous/dht", "rendezvous/waku", "room", "doctor", "doctor/dialback",
	},
	"doctor":           {"doctor/dialback", "hub/hubaddr", "identity", "internal/netmon", "link/portmap", "link/punch", "link/relay", "rendezvous", "rendezvous/dht", "rendezvous/lan", "rendezvous/mqtt", "rendezvous/waku"},
	"doctor/dialback":  {},
	"internal/control": {"*"},
	"internal/cli":     {"*"},
	"internal/bench":   {"*"},
	"internal/wan":     {},
	"internal/chatui":  {},
	"cmd/kith":         {"internal/cli"},
}

// testHelpers may be imported by any test.
var testHelpers = []string{"internal/durable/disktest", "rendezvous/rendezvoustest", "internal/nettest", "internal/tmuxtest", "internal/wan"}

// home says which packages may import a third-party module: each heavy or
// delicate one stays behind a few. Tests may import the test libraries anywhere.
var home = map[string][]string{
	"github.com/flynn/noise":         {"pairing", "room"},
	"github.com/fxamacker/cbor/v2":   {"internal/strictcbor"},
	"github.com/eclipse/paho.golang": {"rendezvous/mqtt"},
	"github.com/huin/goupnp":         {"link/portmap"},
	"github.com/makiuchi-d/gozxing":  {"code/scan"},
	"github.com/pion/stun/v4":        {"link", "link/relay", "hub", "doctor"},
	"github.com/pion/turn/v5":        {"link", "link/relay", "hub"},
	"github.com/libp2p":              {"rendezvous/waku"},
	"github.com/multiformats":        {"rendezvous/waku"},
	"google.golang.org/protobuf":     {"rendezvous/waku"},
	"github.com/miekg/dns":           {"rendezvous/dns"},
	"lukechampine.com/blake3":        {"app/files"},
	"rsc.io/qr":                      {"code"},
	"github.com/spf13/cobra":         {"internal/cli"},
	"github.com/vishvananda/netlink": {"internal/netif", "internal/netmon", "internal/nettest"},
	"github.com/vishvananda/netns":   {"internal/nettest"},
	"golang.org/x/term":              {"internal/cli"},
	"golang.org/x/time":              {"rendezvous/dns", "app/kin"},
	"golang.org/x/crypto":            {"code", "pairing", "room", "internal/wire", "link", "app/mail", "app/chat"},
	"golang.org/x/net":               {"rendezvous/lan", "link", "link/portmap", "link/punch", "hub", "app/tun", "doctor"},
	"golang.org/x/sys":               {".", "app/files", "rendezvous/lan", "link", "link/portmap", "link/punch", "internal/cli", "internal/netif", "internal/nettest", "internal/train", "internal/wan", "doctor"},
	"golang.zx2c4.com/wireguard":     {"link", "tunnel", "internal/bench"},
	"gvisor.dev/gvisor":              {"tunnel", "app/tun"},
	"github.com/gtank/ristretto255":  {"pairing/cpace"},
	"golang.org/x/text":              {"internal/chatui", "room"},

	"charm.land/bubbletea/v2":            {"internal/chatui"},
	"github.com/charmbracelet/x/ansi":    {"internal/chatui"},
	"github.com/VictoriaMetrics/metrics": {"hub"},
	"github.com/coder/websocket":         {"hub"},
	"github.com/mochi-mqtt/server/v2":    {"hub", "rendezvous/rendezvoustest"},
	"github.com/pion/logging":            {"hub"},
}

var testOnly = []string{
	"github.com/anacrolix",
	"go.uber.org/goleak", "pgregory.net/rapid", "github.com/rogpeppe/go-internal",
}

// banned are imports that nobody needs here, and imports that a pure package
// must not have.
var banned = map[string]map[string]string{
	"*": {
		"log": "use log/slog", "math/rand": "use math/rand/v2 or crypto/rand", "io/ioutil": "use io and os",
	},
	"pairing":     {"net": "a state machine has no sockets", "os": "a state machine has no files"},
	"room":        {"net": "a state machine has no sockets"},
	"code":        {"net": "no I/O", "os": "no I/O"},
	"tunnel":      {"os/exec": "nothing is run"},
	"app/chat":    {"os/exec": "nothing is run"}, // os: its store is files in a folder of its own
	"app/forward": {"os": "an app is given what it needs"},
	"app/kin":     {"os": "an app is given what it needs"},
	"app/proxy":   {"os": "an app is given what it needs"},
	"app/tun":     {"os/exec": "an app is given what it needs"},
	"app/expose":  {"os": "an app is given what it needs"},
	"app/mesh":    {"os": "an app is given what it needs"},
	"app/measure": {"os": "an app is given what it needs"},
	"lane":        {"os/exec": "nothing is run"},
}

// maxLines is how long a file may be, in lines.
const maxLines = 500

// longFiles are the exceptions, each with its reason.
var longFiles = map[string]string{}

// A source is one file, as far as this test cares.
type source struct {
	dir     string // "." is the root
	name    string
	imports []string
	lines   int
}

// isModule reports whether a directory is a module of its own.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// sources reads every Go file of the module, for every operating system.
func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != "." && (strings.HasPrefix(name, ".") || name == "testdata" || isModule(p)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		whole, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.PackageClauseOnly)
		if err != nil || whole.Name == nil {
			return err
		}
		s := source{dir: filepath.ToSlash(filepath.Dir(p)), name: d.Name(), lines: countLines(t, p)}
		for _, i := range f.Imports {
			imp, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, imp)
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// check returns what is wrong with one file's imports and size.
func check(s source) []string {
	var bad []string
	report := func(format string, args ...any) {
		bad = append(bad, path.Join(s.dir, s.name)+": "+fmt.Sprintf(format, args...))
	}
	test := strings.HasSuffix(s.name, "_test.go")
	allowed, known := mayImport[s.dir]
	if !known {
		report("package %s is not in the table of arch_test.go", s.dir)
	}
	if !test && s.lines > maxLines && longFiles[path.Join(s.dir, s.name)] == "" {
		report("%d lines; split it by what it is about (at most %d)", s.lines, maxLines)
	}
	for _, imp := range s.imports {
		own, ours := strings.CutPrefix(imp, module)
		switch {
		case ours && test:
			if !slices.Contains(testHelpers, strings.TrimPrefix(own, "/")) && !ownImport(s.dir, strings.TrimPrefix(own, "/"), allowed) && s.dir != "." {
				report("test imports %s, which is not before it on the way of the data", imp)
			}
		case ours:
			if !ownImport(s.dir, strings.TrimPrefix(own, "/"), allowed) {
				report("imports %s, which is not before it on the way of the data", imp)
			}
		case strings.Contains(strings.SplitN(imp, "/", 2)[0], "."):
			if why := thirdParty(s.dir, imp, test); why != "" {
				report("%s", why)
			}
		}
		for _, scope := range []string{"*", s.dir} {
			if why, no := banned[scope][imp]; no && !test {
				report("imports %s: %s", imp, why)
			}
		}
	}
	return bad
}

func ownImport(dir, imp string, allowed []string) bool {
	if imp == "" {
		imp = "."
	}
	return imp == dir || slices.Contains(allowed, "*") || slices.Contains(allowed, imp)
}

func thirdParty(dir, imp string, test bool) string {
	under := func(mod string) bool { return imp == mod || strings.HasPrefix(imp, mod+"/") }
	if slices.ContainsFunc(testOnly, under) {
		if test || dir == "rendezvous/rendezvoustest" {
			return ""
		}
		return "imports " + imp + " outside a test"
	}
	for mod, homes := range home {
		if under(mod) {
			if slices.Contains(homes, dir) || test {
				return ""
			}
			return fmt.Sprintf("imports %s, whose home is %s", imp, strings.Join(homes, ", "))
		}
	}
	return "imports " + imp + ", which has no home in arch_test.go"
}

// TestImports holds the direction of imports on every operating system.
func TestImports(t *testing.T) {
	all := sources(t)
	if len(all) < 50 {
		t.Fatalf("only %d files found: is the test run in the root of the module?", len(all))
	}
	for _, s := range all {
		for _, bad := range check(s) {
			t.Error(bad)
		}
	}
}

// TestImportsCatches proves that the check can fail.
func TestImportsCatches(t *testing.T) {
	for name, s := range map[string]source{
		"a later stage":                    {dir: "registry", name: "x.go", imports: []string{module + "/link"}},
		"a later stage, on another system": {dir: "identity", name: "x_windows.go", imports: []string{module + "/pairing"}},
		"an unknown package":               {dir: "util", name: "x.go"},
		"a module away from home":          {dir: "registry", name: "x.go", imports: []string{"gvisor.dev/gvisor/pkg/tcpip"}},
		"an unknown module":                {dir: "registry", name: "x.go", imports: []string{"example.com/leftpad"}},
		"a test library":                   {dir: "registry", name: "x.go", imports: []string{"go.uber.org/goleak"}},
		"log":                              {dir: "registry", name: "x.go", imports: []string{"log"}},
		"sockets in a state machine":       {dir: "pairing", name: "x.go", imports: []string{"net"}},
		"a long file":                      {dir: "registry", name: "x.go", lines: maxLines + 1},
	} {
		if len(check(s)) == 0 {
			t.Errorf("%s was not caught", name)
		}
	}
	if bad := check(source{dir: "link", name: "x.go", imports: []string{"net", module + "/identity"}}); len(bad) > 0 {
		t.Errorf("a good file was refused: %v", bad)
	}
}
