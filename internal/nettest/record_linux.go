package nettest

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// maxRecorded bounds a recording, in bytes.
const maxRecorded = 256 << 20

// A Recording is every frame that crosses a switch.
type Recording struct {
	fd   int
	stop chan struct{}
	done chan struct{}

	mu     sync.Mutex // guards the fields below
	frames [][]byte
	size   int
}

// Record starts to record a switch, until the test ends or Stop.
func (b *Bridge) Record() *Recording {
	t := b.lab.t
	t.Helper()
	// Otherwise a bridge shows only what is for itself.
	b.lab.sw.IP("link", "set", b.name, "promisc", "on")
	r := &Recording{stop: make(chan struct{}), done: make(chan struct{})}
	var err error
	b.lab.sw.Do(func() {
		var ifi *net.Interface
		if ifi, err = net.InterfaceByName(b.name); err != nil {
			return
		}
		const all = 0x0300 // ETH_P_ALL in network order
		if r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return
		}
		if err = unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}); err != nil {
			return
		}
		err = unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	})
	if err != nil {
		t.Fatalf("record %s: %v", b.name, err)
	}
	go r.run()
	t.Cleanup(func() { r.Stop() })
	return r
}

func (r *Recording) run() {
	defer close(r.done)
	buf := make([]byte, 70_000)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if err != nil { // nothing within the socket's time limit
			select {
			case <-r.stop:
				return
			default:
				continue
			}
		}
		r.mu.Lock()
		if r.size+n <= maxRecorded {
			r.frames = append(r.frames, append([]byte(nil), buf[:n]...))
			r.size += n
		}
		r.mu.Unlock()
	}
}

// Stop ends the recording and returns its Ethernet frames. It is idempotent.
func (r *Recording) Stop() [][]byte {
	r.mu.Lock()
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
	r.mu.Unlock()
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd >= 0 {
		unix.Close(r.fd)
		r.fd = -1
	}
	return r.frames
}

// Frames returns what has been recorded so far.
func (r *Recording) Frames() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([][]byte(nil), r.frames...)
}
