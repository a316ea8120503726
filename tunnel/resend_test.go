package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// A fakeBind records what is sent, and when.
type fakeBind struct {
	start  time.Time
	mu     sync.Mutex
	sent   []sending
	queue  chan packet
	failed error // of Open
}

type sending struct {
	at time.Duration
	b  []byte
	to string
}

type packet struct {
	b    []byte
	from conn.Endpoint
}

func newFakeBind() *fakeBind { return &fakeBind{start: time.Now(), queue: make(chan packet, 1)} }

func (f *fakeBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		p := <-f.queue
		sizes[0], eps[0] = copy(packets[0], p.b), p.from
		return 1, nil
	}
	return []conn.ReceiveFunc{receive}, 1, f.failed
}

func (f *fakeBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range bufs {
		f.sent = append(f.sent, sending{time.Since(f.start), bytes.Clone(b), ep.DstToString()})
	}
	return nil
}

// take returns what was sent since the last take.
func (f *fakeBind) take() []sending {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent := f.sent
	f.sent = nil
	return sent
}

func (f *fakeBind) Close() error                                { return nil }
func (f *fakeBind) SetMark(uint32) error                        { return nil }
func (f *fakeBind) ParseEndpoint(string) (conn.Endpoint, error) { return nil, errors.New("unused") }
func (f *fakeBind) BatchSize() int                              { return 1 }

// message makes a WireGuard message that differs by tag.
func message(kind uint32, size int, tag byte) []byte {
	b := bytes.Repeat([]byte{tag}, size)
	binary.LittleEndian.PutUint32(b, kind)
	return b
}

func endpoint(port uint16) conn.Endpoint {
	return &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)}
}

// resends is when an unanswered initiation goes out again.
var resends = []time.Duration{50, 150, 350, 750, 1150, 1550, 1950, 2350, 2750, 3150, 3550, 3950}

func milliseconds(sent []sending) []time.Duration {
	var out []time.Duration
	for _, s := range sent {
		out = append(out, s.at/time.Millisecond)
	}
	return out
}

// TestResendTimes lets one event happen after an initiation, and checks when that
// went out.
func TestResendTimes(t *testing.T) {
	const pause = 400 * time.Millisecond // after three copies
	first := message(typeInitiation, initiationSize, 1)
	for _, tc := range []struct {
		name  string
		event func(r *resendBind, receive func([]byte, conn.Endpoint) int)
		want  []time.Duration // of first, in ms
	}{
		{"nothing", func(*resendBind, func([]byte, conn.Endpoint) int) {}, resends},
		{"response", func(_ *resendBind, receive func([]byte, conn.Endpoint) int) {
			receive(message(typeResponse, responseSize, 1), endpoint(1))
		}, resends[:3]},
		{"data", func(_ *resendBind, receive func([]byte, conn.Endpoint) int) {
			receive(message(typeTransport, 32, 1), endpoint(1))
		}, resends[:3]},
		{"response to another", func(_ *resendBind, receive func([]byte, conn.Endpoint) int) {
			receive(message(typeResponse, responseSize, 2), endpoint(2))
		}, resends},
		{"data of another", func(_ *resendBind, receive func([]byte, conn.Endpoint) int) {
			receive(message(typeTransport, 32, 2), endpoint(2))
		}, resends},
		{"response of a wrong size", func(_ *resendBind, receive func([]byte, conn.Endpoint) int) {
			receive(message(typeResponse, responseSize+1, 1), endpoint(1))
		}, resends},
		{"cookie", func(_ *resendBind, receive func([]byte, conn.Endpoint) int) {
			receive(message(3, 64, 1), endpoint(1))
		}, resends},
		{"their initiation", func(_ *resendBind, receive func([]byte, conn.Endpoint) int) {
			receive(message(typeInitiation, initiationSize, 9), endpoint(1))
		}, resends},
		{"short packet", func(_ *resendBind, receive func([]byte, conn.Endpoint) int) {
			receive([]byte{2, 0, 0}, endpoint(1))
		}, resends},
		{"forget", func(r *resendBind, _ func([]byte, conn.Endpoint) int) { r.forget(endpoint(1)) }, resends[:3]},
		{"forget another", func(r *resendBind, _ func([]byte, conn.Endpoint) int) { r.forget(endpoint(2)) }, resends},
		{"close", func(r *resendBind, _ func([]byte, conn.Endpoint) int) { _ = r.Close() }, resends[:3]},
		{"next initiation", func(r *resendBind, _ func([]byte, conn.Endpoint) int) {
			_ = r.Send([][]byte{message(typeInitiation, initiationSize, 2)}, endpoint(1))
		}, resends[:3]},
		{"initiation to another", func(r *resendBind, _ func([]byte, conn.Endpoint) int) {
			_ = r.Send([][]byte{message(typeInitiation, initiationSize, 2)}, endpoint(2))
		}, resends},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeBind()
				r := newResendBind(f)
				receive := opened(t, r, f)
				if err := r.Send([][]byte{first}, endpoint(1)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(pause)
				tc.event(r, receive)
				time.Sleep(time.Minute)
				synctest.Wait()
				sent := f.take()
				sent = slices.DeleteFunc(sent, func(s sending) bool { return !bytes.Equal(s.b, first) })
				if got, want := milliseconds(sent), append([]time.Duration{0}, tc.want...); !slices.Equal(got, want) {
					t.Errorf("sent at %v, want %v", got, want)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// opened opens r and returns what has a packet received: it returns the size that
// WireGuard sees.
func opened(t *testing.T, r *resendBind, f *fakeBind) func([]byte, conn.Endpoint) int {
	t.Helper()
	fns, _, err := r.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	return func(b []byte, from conn.Endpoint) int {
		f.queue <- packet{b, from}
		sizes, eps := []int{0}, []conn.Endpoint{nil}
		if n, err := fns[0]([][]byte{make([]byte, 2000)}, sizes, eps); n != 1 || err != nil {
			t.Errorf("received %d, %v", n, err)
		}
		return sizes[0]
	}
}

// TestRepeatedResponse receives initiations and checks what WireGuard sees of
// them and what is answered in its place.
func TestRepeatedResponse(t *testing.T) {
	type step struct {
		kind    uint32
		tag     byte
		from    uint16
		respond bool // WireGuard answers it
		seen    bool // WireGuard sees it
		again   bool // the earlier response is sent
	}
	const ini = typeInitiation
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"copy", []step{{ini, 1, 1, true, true, false}, {ini, 1, 1, false, false, true}, {ini, 1, 1, false, false, true}}},
		{"copy of one that was not answered", []step{{ini, 1, 1, false, true, false}, {ini, 1, 1, false, true, false}}},
		{"another initiation", []step{{ini, 1, 1, true, true, false}, {ini, 2, 1, false, true, false}}},
		{"copy from elsewhere", []step{{ini, 1, 1, true, true, false}, {ini, 1, 2, false, true, false}}},
		{"data", []step{{ini, 1, 1, true, true, false}, {typeTransport, 1, 1, false, true, false}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeBind()
			r := newResendBind(f)
			receive := opened(t, r, f)
			for i, s := range tc.steps {
				if seen := receive(message(s.kind, initiationSize, s.tag), endpoint(s.from)) != 0; seen != s.seen {
					t.Errorf("step %d: seen %v", i, seen)
				}
				response := message(typeResponse, responseSize, s.tag)
				var want []sending
				if s.again {
					want = []sending{{b: response, to: endpoint(s.from).DstToString()}}
				}
				sent := f.take()
				if !slices.EqualFunc(sent, want, func(a, b sending) bool { return bytes.Equal(a.b, b.b) && a.to == b.to }) {
					t.Errorf("step %d: sent %v", i, sent)
				}
				if s.respond {
					if err := r.Send([][]byte{response}, endpoint(s.from)); err != nil {
						t.Error(err)
					}
					f.take()
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestResendPassesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeBind()
		r := newResendBind(f)
		for _, bufs := range [][][]byte{
			{message(typeTransport, 1460, 1), message(typeTransport, 1460, 2)},
			{message(typeInitiation, initiationSize-1, 1)},
			{{1}},
		} {
			if err := r.Send(bufs, endpoint(1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if sent := f.take(); len(sent) != len(bufs) {
				t.Errorf("%d packets of %d", len(sent), len(bufs))
			}
		}
		// After Close nothing is remembered, until the next Open.
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		initiation := [][]byte{message(typeInitiation, initiationSize, 1)}
		for _, want := range []int{1, 1 + len(resends)} {
			if err := r.Send(initiation, endpoint(1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if sent := f.take(); len(sent) != want {
				t.Errorf("%d initiations, want %d", len(sent), want)
			}
			opened(t, r, f)
		}
		f.failed = errors.New("busy")
		if _, _, err := r.Open(0); !errors.Is(err, f.failed) {
			t.Errorf("open: %v", err)
		}
	})
}
