package dht

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// BenchmarkFrame measures, on a DHT of 40 nodes on loopback, how long a frame
// takes from Publish to Receive while both sides look often.
func BenchmarkFrame(b *testing.B) {
	for _, c := range []struct {
		name    string
		mailbox bool
	}{{"shortcut", false}, {"mailbox", true}} {
		b.Run(c.name, func(b *testing.B) {
			n := startNet(b, 40, 0)
			change := func(cfg *Config) { cfg.NoShortcut = c.mailbox }
			from, to := n.device(b, change), n.device(b, change)
			topic := newTopic(b)
			sf, st := join(b, from, rendezvous.Point{Topic: topic}), join(b, to, rendezvous.Point{Topic: topic, Side: 1})
			await(b, "a node", func() bool { return from.Health().Ready && to.Health().Ready })
			f := frame(1)
			for i := uint64(0); b.Loop(); i++ {
				binary.BigEndian.PutUint64(f, i)
				got := make(chan bool, 1)
				go func() {
					for {
						m, err := st.Receive(b.Context())
						if err != nil || bytes.Equal(m.Frame, f) {
							got <- err == nil
							return
						}
					}
				}()
				again := time.NewTicker(250 * time.Millisecond)
				for arrived := false; !arrived; {
					if err := sf.Publish(b.Context(), f); err != nil {
						b.Fatal(err)
					}
					select {
					case arrived = <-got:
					case <-again.C:
					}
				}
				again.Stop()
			}
		})
	}
}

// BenchmarkOpen measures what a datagram with a tag that we listen for costs when
// its seal is wrong.
func BenchmarkOpen(b *testing.B) {
	k := derive(rendezvous.Topic{1})
	d := k.datagram(0, frame(1))
	d[100]++
	for b.Loop() {
		if _, ok := k.openDatagram(0, d); ok {
			b.Fatal("opened")
		}
	}
}

// BenchmarkParse measures reading a reply with an item.
func BenchmarkParse(b *testing.B) {
	all := seedMessages()
	reply := all[len(all)-1]
	for b.Loop() {
		if _, err := parse(reply); err != nil {
			b.Fatal(err)
		}
	}
}
