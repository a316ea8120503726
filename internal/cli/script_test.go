package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kithproject/kith/internal/control"
	"github.com/kithproject/kith/internal/netmon"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"kith": func() { os.Exit(Main()) },
	})
}

// TestScripts runs the real command, as a person would, from testdata/script.
// Devices meet over this machine's loopback interface.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Condition: func(name string) (bool, error) {
			if name != "multicast" {
				return false, fmt.Errorf("no condition %q", name)
			}
			all, err := netmon.Interfaces()
			return slices.ContainsFunc(all, func(i netmon.Interface) bool { return i.Up && i.Multicast }), err
		},
		Setup: func(env *testscript.Env) error {
			// Unix sockets need short paths.
			dir, err := os.MkdirTemp("", "kith")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			for _, name := range []string{"a", "b", "c"} {
				s := settings{Name: map[string]string{"a": "desk", "b": "laptop", "c": "phone"}[name], Loopback: true, NoDHT: true}
				if err := s.save(filepath.Join(dir, name)); err != nil {
					return err
				}
				env.Setenv(strings.ToUpper(name), filepath.Join(dir, name))
			}
			env.Setenv("TMP_SHORT", dir)
			env.Setenv("UNIQUE", filepath.Base(dir)) // on this machine, for names that others see
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"await":  awaitFile,
			"daemon": awaitDaemon,
			"words":  extractWords,
			"serve":  serveHTTP,
			"echo":   serveEcho,
			"udp":    askUDP,

			"newpair":  newPair,
			"introno":  introNumber,
			"freeport": freePort,
			"freetcp":  freeTCP,
			"gone":     awaitGone,
			"web":      awaitWeb,
			"letters":  lettersAtHub,
		},
	})
}

// scriptWait bounds every wait of a script.
const scriptWait = 60 * time.Second

// poll calls f every few milliseconds until it reports true: the processes
// under test are others, and give no other sign than files and sockets.
func poll(ts *testscript.TestScript, what string, f func() bool) {
	ctx, cancel := context.WithTimeout(context.Background(), scriptWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("waited %s for %s", scriptWait, what)
		}
	}
}

// awaitFile: await FILE REGEXP waits until the file matches.
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE REGEXP")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	path := ts.MkAbs(args[0])
	matched, raw := false, []byte(nil)
	defer func() {
		if !matched {
			ts.Logf("%s holds:\n%s", args[0], raw)
		}
	}()
	poll(ts, args[0]+" to match "+args[1], func() bool {
		var err error
		raw, err = os.ReadFile(path)
		matched = err == nil && re.Match(raw)
		return matched
	})
}

// awaitDaemon: daemon DIR waits until a daemon serves the directory; ! daemon
// DIR waits until none does.
func awaitDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] daemon DIR")
	}
	poll(ts, "the daemon of "+args[0], func() bool {
		_, err := control.Connect(context.Background(), args[0])
		if neg {
			return errors.Is(err, control.ErrNoDaemon)
		}
		return err == nil
	})
}

// extractWords: words EVENTS FIELD OUT writes a field of the code event of
// kith pair --json to a file.
func extractWords(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: words EVENTS FIELD OUT")
	}
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var ev map[string]any
		if json.Unmarshal([]byte(line), &ev) != nil || ev["event"] != "code" {
			continue
		}
		text, _ := ev[args[1]].(string)
		if text == "" {
			ts.Fatalf("the code has no %s", args[1])
		}
		ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(text+"\n"), 0o600))
		return
	}
	ts.Fatalf("no code in %s", args[0])
}

// serveHTTP: serve VAR starts an HTTP server on a free port of localhost for the
// rest of the script and puts the port into VAR.
func serveHTTP(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve VAR")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	srv := &http.Server{
		ReadHeaderTimeout: scriptWait,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("hello through the tunnel\n"))
		}),
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	ts.Defer(func() { srv.Close(); <-done })
	_, port, err := net.SplitHostPort(ln.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

// serveEcho: echo VARIABLE answers each datagram at a UDP port of localhost with itself.
func serveEcho(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: echo VARIABLE")
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	ts.Check(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	ts.Defer(func() { pc.Close(); <-done })
	_, port, err := net.SplitHostPort(pc.LocalAddr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

// askUDP: udp ADDRESS TEXT sends a datagram until it comes back; ! udp holds that it
// does not for a second.
func askUDP(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] udp ADDRESS TEXT")
	}
	conn, err := net.Dial("udp", args[0])
	ts.Check(err)
	defer conn.Close()
	limit := time.Now().Add(scriptWait)
	if neg {
		limit = time.Now().Add(time.Second)
	}
	buf := make([]byte, 2000)
	for time.Now().Before(limit) {
		_, _ = conn.Write([]byte(args[1])) // a port that is closed may say so: then again
		ts.Check(conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)))
		if n, err := conn.Read(buf); err == nil && string(buf[:n]) == args[1] {
			if neg {
				ts.Fatalf("%q came back", args[1])
			}
			return
		}
	}
	if !neg {
		ts.Fatalf("%q did not come back", args[1])
	}
}

// freePort: freeport VARIABLE finds a UDP port that nobody uses at the moment.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport VARIABLE")
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(pc.LocalAddr().String())
	ts.Check(errors.Join(err, pc.Close()))
	ts.Setenv(args[0], port)
}

// freeTCP: freetcp VARIABLE finds a TCP port that nobody uses at the moment, nor the UDP
// port of that number and the next one: a hub needs them.
func freeTCP(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freetcp VARIABLE")
	}
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		addr := ln.Addr().(*net.TCPAddr)
		one, errOne := net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP, Port: addr.Port})
		two, errTwo := net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP, Port: addr.Port + 1})
		ln.Close()
		one.Close()
		two.Close()
		if errOne == nil && errTwo == nil {
			ts.Setenv(args[0], strconv.Itoa(addr.Port))
			return
		}
	}
	ts.Fatalf("no port is free")
}

// awaitGone: gone PORT waits until nothing listens on a TCP port of localhost.
func awaitGone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: gone PORT")
	}
	poll(ts, "port "+args[0]+" to be closed", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+args[0])
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
}

// awaitWeb: web PORT waits until the server of serve answers at a port of localhost.
func awaitWeb(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: web PORT")
	}
	client := http.Client{Timeout: scriptWait, Transport: &http.Transport{DisableKeepAlives: true}}
	poll(ts, "a server at port "+args[0], func() bool {
		r, err := client.Get("http://127.0.0.1:" + args[0] + "/")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		raw, err := io.ReadAll(r.Body)
		return err == nil && string(raw) == "hello through the tunnel\n"
	})
}
