package kith_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// TestRoomOfMany has fifty nodes (manyNodes) of one process meet in a room: each sees all others.
func TestRoomOfMany(t *testing.T) {
	const n = manyNodes
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	host := openNode(t, network, stateDir(t), "host")
	if _, err := host.CreateRoom(kith.CreateRoomConfig{Name: "hall", Mode: room.Open}); err != nil {
		t.Fatal(err)
	}
	nodes := make([]*kith.Node, n-1)
	for i := range nodes {
		nodes[i] = openNode(t, network, stateDir(t), fmt.Sprint("m", i))
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	var wg sync.WaitGroup
	for _, m := range nodes {
		wg.Go(func() { joinRoom(ctx, t, host, m, "hall", "") })
	}
	wg.Wait()
	t.Logf("all joined after %v", time.Since(start).Round(time.Millisecond))
	for _, m := range append(nodes, host) {
		awaitRoom(ctx, t, m, "hall", "not all there", members(n, false))
	}
	t.Logf("all see all after %v", time.Since(start).Round(time.Millisecond))
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d KiB more in use in all, %d goroutines", (int64(after.HeapInuse)-int64(before.HeapInuse))>>10, runtime.NumGoroutine())
	for _, m := range nodes { // each says goodbye to all others
		wg.Go(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
