package doctor

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
)

// TestSTUNServers: names are looked up side by side, and an address without a way there is
// not one that is silent.
func TestSTUNServers(t *testing.T) {
	const atOnce = 3 // more than the two questions, for IPv4 and IPv6, of one name
	old := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = old })
	var mu sync.Mutex
	begun, all := 0, make(chan struct{})
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		mu.Lock()
		if begun++; begun == atOnce {
			close(all)
		}
		mu.Unlock()
		select {
		case <-all:
			return nil, errors.New("no way")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	env := &Env{STUN: []string{"one.example.org:1", "two.example.org:1", "three.example.org:1", "no port"}}
	out, failed := stunServers(t.Context(), env)
	if len(out) != 0 || len(failed) != 4 || !strings.Contains(failed[3], "not HOST:PORT") {
		t.Errorf("%v %q", out, failed)
	}
	for _, line := range failed {
		if strings.Contains(line, "deadline") || strings.Contains(line, "timeout") {
			t.Errorf("one after another: %s", line)
		}
	}

	const nowhere = "[fe80::1%nosuch0]:9" // of a link that there is not
	env = &Env{STUN: []string{"127.0.0.1:9", nowhere}}
	out, failed = stunServers(t.Context(), env)
	if len(out) != 1 || out[0].Name != "127.0.0.1:9" || len(failed) != 1 || !strings.Contains(failed[0], "has no way") {
		t.Errorf("%v %q", out, failed)
	}
}
