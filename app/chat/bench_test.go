package chat

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// BenchmarkDelivered is how long a line takes until its author knows that it is durable
// at the other device, over net.Pipe, with real disks.
func BenchmarkDelivered(b *testing.B) {
	for _, at := range []string{"memory", "disk"} {
		b.Run(at, func(b *testing.B) {
			l := newLab(b, 2)
			if at == "disk" {
				for _, n := range l.nodes {
					d, err := openFolder(b.TempDir())
					if err != nil {
						b.Fatal(err)
					}
					n.real = d
				}
			}
			l.startAll()
			defer l.stopAll()
			l.connectAll()
			c := l.pair(0, 1)
			l.nodes[0].await(b, l.nodes[0].send(b, c, "first"), StateDelivered)
			for b.Loop() {
				l.nodes[0].await(b, l.nodes[0].send(b, c, "a line of some length, as people write them"), StateDelivered)
			}
		})
	}
}

// BenchmarkPiped is how many lines a second go when none is waited for.
func BenchmarkPiped(b *testing.B) {
	l := newLab(b, 2)
	for _, n := range l.nodes {
		d, err := openFolder(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		n.real, n.rate = d, 1e6
	}
	l.startAll()
	defer l.stopAll()
	l.connectAll()
	c := l.pair(0, 1)
	last := l.nodes[0].send(b, c, "first")
	waits := make(chan func() Message, 256)
	go func() {
		defer close(waits)
		for b.Loop() {
			wait, err := l.nodes[0].svc.Submit(c, "a line of some length, as people write them")
			if err != nil {
				b.Error(err)
				return
			}
			waits <- func() Message { m, _ := wait(b.Context()); return m }
		}
	}()
	for wait := range waits {
		last = wait()
	}
	l.nodes[0].await(b, last, StateDelivered)
}

// BenchmarkRoom is how long a line takes until its author knows that it is durable at 49
// other members, all of them in this process and with disks in memory.
func BenchmarkRoom(b *testing.B) {
	l := newLab(b, 50)
	c := l.room()
	l.startAll()
	defer l.stopAll()
	l.connectAll()
	l.nodes[0].await(b, l.nodes[0].send(b, c, "first"), StateDelivered)
	for b.Loop() {
		l.nodes[0].await(b, l.nodes[0].send(b, c, "a line of some length, as people write them"), StateDelivered)
	}
}

// BenchmarkMemory is how much memory a conversation takes, in bytes.
func BenchmarkMemory(b *testing.B) {
	for _, lines := range []int{0, 10_000, 100_000} {
		b.Run(fmt.Sprint(lines), func(b *testing.B) {
			for b.Loop() {
				l := newLab(b, 1)
				n := l.nodes[0]
				d, err := openFolder(b.TempDir())
				if err != nil {
					b.Fatal(err)
				}
				n.real = d
				c := l.room()
				n.start()
				n.fill(b, c, lines)
				n.stop()
				before := heap()
				begin := time.Now()
				n.start()
				if _, err := n.svc.History(c, nil, 1); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/open")
				b.ReportMetric(float64(heap()-before), "bytes/conv")
				begin = time.Now()
				if found, err := n.svc.Search(b.Context(), c, "not there", 10); err != nil || len(found) != 0 {
					b.Fatal(found, err)
				}
				b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/search")
				n.stop()
			}
		})
	}
}

// fill writes many lines at once.
func (n *node) fill(b *testing.B, c ConvID, lines int) {
	b.Helper()
	waits := make([]func(), 0, lines)
	for i := range lines {
		wait, err := n.svc.Submit(c, fmt.Sprint("a line of some length, as people write them ", i))
		if err != nil {
			b.Fatal(err)
		}
		waits = append(waits, func() { _, _ = wait(b.Context()) })
	}
	for _, wait := range waits {
		wait()
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
