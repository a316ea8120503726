package lane

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
)

// bufferSize is how much one system call writes or reads of a lane that carries bulk
// data, in bytes. TLS does it record by record, 16 KiB; see BenchmarkThroughput.
const bufferSize = 128 << 10

// base is the TCP connection below TLS. It writes nothing while it is mute, and
// gathers the records of one large write.
type base struct {
	net.Conn
	mute atomic.Bool

	mu     sync.Mutex // guards what follows
	corked bool
	out    []byte
	err    error // of a write: half a record may be on the way, nothing can follow

	// TLS reads one at a time.
	in   []byte // nil until a read has shown that there is bulk data
	r, w int
}

func (b *base) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mute.Load() {
		return 0, os.ErrDeadlineExceeded // of no consequence: the connection is dropped
	}
	if b.corked && len(b.out)+len(p) <= cap(b.out) {
		b.out = append(b.out, p...)
		return len(p), b.err
	}
	if err := b.flush(); err != nil {
		return 0, err
	}
	if b.corked && len(p) <= cap(b.out) {
		b.out = append(b.out, p...)
		return len(p), nil
	}
	n, err := b.Conn.Write(p)
	b.err = err
	return n, err
}

// flush writes what was gathered.
func (b *base) flush() error {
	if b.err != nil || len(b.out) == 0 {
		return b.err
	}
	_, b.err = b.Conn.Write(b.out)
	b.out = b.out[:0]
	return b.err
}

// cork lets writes gather until uncork.
func (b *base) cork() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out == nil {
		b.out = make([]byte, 0, bufferSize)
	}
	b.corked = true
}

func (b *base) uncork() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.corked = false
	return b.flush()
}

func (b *base) Read(p []byte) (int, error) {
	if b.r == b.w {
		if len(p) >= len(b.in) {
			n, err := b.receive(p)
			if n == len(p) && n >= bufferSize/16 {
				b.in = make([]byte, bufferSize)
			}
			return n, err
		}
		n, err := b.receive(b.in)
		b.r, b.w = 0, n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, b.in[b.r:b.w])
	b.r += n
	return n, nil
}

// buffered is how much has come that TLS has not read, in bytes; whoever reads TLS may
// ask.
func (b *base) buffered() int { return b.w - b.r }

// receive reads from TCP. The end of TCP is an error: a lane ends with TLS's
// close_notify, and crypto/tls would take the one for the other between two records,
// so that whoever sits on the way could cut a stream short unseen (RFC 8446 section 6.1).
func (b *base) receive(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if n == 0 && err == io.EOF { //nolint:errorlint // io.Reader returns io.EOF itself
		return 0, errCut
	}
	return n, err
}

// abort ends the connection at once: nothing that waits in the kernel is sent.
func (b *base) abort() {
	if tcp, ok := b.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on what is closed already
	}
	b.Close()
}
