package waku

import (
	"bufio"
	"context"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// TestJSWaku lets js-waku, which is not ours, use a node: once with the
// multiplexer that it has by default, once with Yamux. It is skipped unless
// KITH_JSWAKU names a directory in which this was done: npm install
// @waku/sdk@0.0.36 @chainsafe/libp2p-yamux@7 @multiformats/multiaddr@12
func TestJSWaku(t *testing.T) {
	dir := os.Getenv("KITH_JSWAKU")
	if dir == "" {
		t.Skip("KITH_JSWAKU is not set: see the comment")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("no node here")
	}
	for _, muxer := range []string{"mplex", "yamux"} {
		t.Run(muxer, func(t *testing.T) { jsWaku(t, node, dir, muxer) })
	}
}

func jsWaku(t *testing.T, node, dir, muxer string) {
	s, address := startService(t, ServiceConfig{})
	listen, err := s.ListenWebSocket("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, fastConfig(address))
	topic := rendezvous.Topic{9}
	session := join(t, a, rendezvous.Point{Topic: topic})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	first := frameOf(1)
	publish(ctx, t, session, first)
	awaitStats(t, s, func(st Stats) bool { return st.Stored == 1 })

	script, err := os.ReadFile(filepath.Join("testdata", "jswaku.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kith-"+muxer+strconv.Itoa(os.Getpid())+".mjs") // modules are looked for beside it
	if err := os.WriteFile(file, script, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file)
	name := contentTopic(topic)
	cmd := exec.CommandContext(ctx, node, file, s.Multiaddr("127.0.0.1", listen.Port(), "ws"), strconv.Itoa(DefaultCluster), name)
	cmd.Stderr = os.Stderr
	cmd.Env = os.Environ()
	if muxer == "yamux" {
		cmd.Env = append(cmd.Env, "KITH_YAMUX=1")
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	expect := func(word, value string) {
		t.Helper()
		for lines.Scan() {
			t.Log(lines.Text())
			if got, ok := strings.CutPrefix(lines.Text(), word); ok {
				if !strings.Contains(got, value) {
					t.Fatalf("js-waku says %q, want %q in it", lines.Text(), value)
				}
				return
			}
		}
		t.Fatalf("js-waku ended before %q", word)
	}
	expect("connected", muxer)
	// The hash is js-waku's own, computed from what it was given.
	expect("stored", hex.EncodeToString(first[:8])+" "+onlyHash(t, s))
	expect("subscribed", "true")
	second := frameOf(2)
	publish(ctx, t, session, second)
	expect("heard", hex.EncodeToString(second[:8]))
	expect("pushed", "1")
	answer := frameOf(2)
	answer[0] ^= 0xff
	awaitFrame(ctx, t, session, answer)
	in.Close()
	expect("stopped", "")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// onlyHash returns the hash of the one message that is stored.
func onlyHash(t *testing.T, s *Service) string {
	t.Helper()
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if len(s.store.all) != 1 {
		t.Fatalf("%d messages are stored, want 1", len(s.store.all))
	}
	return hex.EncodeToString(s.store.all[0].hash[:])
}
