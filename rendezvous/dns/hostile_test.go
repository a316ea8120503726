package dns

import (
	"bytes"
	"crypto/rand"
	"net"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kithproject/kith/rendezvous"

	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// TestHostile has a server that answers every question with another head, garbage
// of all kinds, and one frame that is none of the garbage.
func TestHostile(t *testing.T) {
	var polls, fetches atomic.Int64
	good := rendezvoustest.Frame(7)
	handle := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		r := new(mdns.Msg).SetReply(q)
		defer func() { _ = w.WriteMsg(r) }()
		if q.Opcode == mdns.OpcodeUpdate {
			return
		}
		name := q.Question[0].Name
		junk := func(size int) []byte {
			raw := make([]byte, size)
			_, _ = rand.Read(raw)
			return raw
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			if name == zone {
				return
			}
			polls.Add(1)
			r.Answer = append(r.Answer, pack(name, junk(numberSize)), pack(name, junk(numberSize)), pack(name, nil), &mdns.CNAME{
				Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeCNAME, Class: mdns.ClassINET}, Target: name,
			})
			r.Truncated = polls.Load()%2 == 0
			return
		}
		fetches.Add(1)
		for _, size := range []int{0, 1, numberSize, rendezvous.FrameSize, numberSize + rendezvous.FrameSize + 1, 20_000} {
			r.Answer = append(r.Answer, pack(name, junk(size)))
		}
		other := numberSize + rendezvous.FrameSize
		r.Answer = append(r.Answer, pack("other."+name, junk(other)), &mdns.TXT{
			Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET}, Txt: []string{"not base64!", ""},
		}, pack(name, append(make([]byte, numberSize), good...)))
	})
	address := "127.0.0.1:" + freePort(t)
	for _, network := range []string{"udp", "tcp"} {
		started := make(chan struct{})
		s := &mdns.Server{Addr: address, Net: network, Handler: handle, NotifyStartedFunc: func() { close(started) }}
		done := make(chan error, 1)
		go func() { done <- s.ListenAndServe() }()
		select {
		case <-started:
		case err := <-done:
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-done
		})
	}
	cfg := config(address)
	cfg.Fast = 20 * time.Millisecond
	cfg.Slow = cfg.Fast
	e := open(t, cfg)
	start := time.Now()
	s := join(t, e, rendezvous.Point{})
	m, err := s.Receive(t.Context())
	if err != nil || !bytes.Equal(m.Frame, good) || m.Exchange != "dns" {
		t.Fatalf("got %d bytes, %v; want the frame", len(m.Frame), err)
	}
	rendezvoustest.Await(t, "twenty polls", func() bool { return polls.Load() >= 20 })
	n, took := polls.Load(), time.Since(start)
	s.Close()
	if least := time.Duration(n-1) * cfg.Fast; took < least {
		t.Errorf("%d polls in %v, want at least %v", n, took, least)
	}
	if f := fetches.Load(); f > n+1 {
		t.Errorf("%d fetches for %d polls", f, n)
	}
	other := join(t, e, rendezvous.Point{Topic: rendezvous.Topic{1}}) // the frame comes once, whatever the head does
	before := polls.Load()
	if m, err := other.Receive(t.Context()); err != nil || !bytes.Equal(m.Frame, good) {
		t.Fatalf("got %d bytes, %v; want the frame", len(m.Frame), err)
	}
	rendezvoustest.Await(t, "ten polls", func() bool { return polls.Load() >= before+10 })
	other.Deliver(rendezvous.Message{Frame: rendezvoustest.Frame(8)})
	if m, err := other.Receive(t.Context()); err != nil || m.Frame[0] != 8 {
		t.Errorf("a frame that had not changed came again: %v", err)
	}
}
