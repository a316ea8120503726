package doctor

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// zone is a resolver that knows these, and that there are no others.
func zone(all map[string][]string) func(context.Context, string) ([]netip.Addr, error) {
	return func(_ context.Context, host string) (out []netip.Addr, err error) {
		for _, a := range all[host] {
			out = append(out, netip.MustParseAddr(a))
		}
		if out == nil {
			err = &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		return out, err
	}
}

// TestResolve: a name is looked up once in a run, also one that there is not, and whoever
// gives up early spoils nothing for the others.
func TestResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(map[string]int)
		var mu sync.Mutex
		env := &Env{lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			mu.Lock()
			asked[host]++
			mu.Unlock()
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return zone(map[string][]string{"here.example": {"::ffff:192.0.2.9"}})(ctx, host)
		}}
		hasty, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := resolve(hasty, env, "here.example"); err == nil {
				t.Error("an answer before there is one")
			}
		})
		synctest.Wait()
		for range 3 {
			wg.Go(func() {
				if a, err := resolve(t.Context(), env, "HERE.example"); err != nil || len(a) != 1 || a[0].String() != "192.0.2.9" {
					t.Errorf("%v %v", a, err)
				}
			})
			wg.Go(func() {
				if _, err := resolve(t.Context(), env, "gone.example"); err == nil {
					t.Error("found what there is not")
				}
			})
		}
		wg.Wait()
		if asked["here.example"] != 2 || asked["gone.example"] != 1 {
			t.Errorf("asked %v", asked)
		}
		if a, err := resolve(t.Context(), env, "::ffff:192.0.2.1"); err != nil || a[0].String() != "192.0.2.1" || len(asked) != 2 {
			t.Errorf("an address: %v %v %v", a, err, asked)
		}
	})
}
