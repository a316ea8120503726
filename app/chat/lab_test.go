package chat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// errPower is what every operation says after the power was cut.
var errPower = errors.New("the power was cut")

// A memDisk is a disk in memory that can lose its power at any operation: what was not
// synced is then there in part, or not, or with other bytes.
type memDisk struct {
	mu    sync.Mutex
	rnd   *rand.Rand
	now   map[string][]byte
	safe  map[string][]byte // synced
	left  int               // operations until the power is cut; negative: it is not
	dead  bool
	full  bool // nothing can be written
	ops   int
	bytes int64 // written
}

func newMemDisk(seed uint64) *memDisk {
	return &memDisk{rnd: rand.New(rand.NewPCG(seed, 1)), now: make(map[string][]byte), safe: make(map[string][]byte), left: -1}
}

// step counts an operation that changes something. It reports whether it is the last
// before the power is cut.
func (d *memDisk) step() (last bool, err error) {
	if d.dead {
		return false, errPower
	}
	d.ops++
	if d.left > 0 {
		d.left--
	}
	return d.left == 0, nil
}

func (d *memDisk) cutPower() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
}

// reboot brings the power back.
func (d *memDisk) reboot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.now {
		d.now[name] = d.torn(d.now[name], d.safe[name])
		if d.now[name] == nil {
			delete(d.now, name)
		}
	}
	for name, b := range d.safe {
		if d.now[name] == nil {
			d.now[name] = slices.Clone(b)
		}
	}
	d.safe = make(map[string][]byte)
	for name, b := range d.now {
		d.safe[name] = slices.Clone(b)
	}
	d.dead, d.left = false, -1
}

func (d *memDisk) torn(now, safe []byte) []byte {
	same := 0
	for same < len(now) && same < len(safe) && now[same] == safe[same] {
		same++
	}
	if same == len(now) && same == len(safe) {
		return now
	}
	if same < len(safe) && d.rnd.IntN(2) == 0 {
		return slices.Clone(safe)
	}
	out := slices.Clone(now[:same+d.rnd.IntN(len(now)-same+1)])
	if same < len(out) && d.rnd.IntN(3) == 0 {
		for i := same; i < len(out); i++ {
			if d.rnd.IntN(4) == 0 {
				out[i] = byte(d.rnd.Uint32())
			}
		}
	}
	return out
}

func (d *memDisk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.now)), nil
}

func (d *memDisk) ReadAt(name string, p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errPower
	}
	b, ok := d.now[name]
	if !ok {
		return 0, fs.ErrNotExist
	}
	return copy(p, b[min(off, int64(len(b))):]), nil
}

func (d *memDisk) WriteAt(name string, p []byte, off int64, sync bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return errors.New("no space left")
	}
	last, err := d.step()
	if err != nil {
		return err
	}
	d.bytes += int64(len(p))
	b := d.now[name]
	if int64(len(b)) < off {
		return fmt.Errorf("a hole at %d of %s", len(b), name)
	}
	if off < int64(len(b)) {
		b = slices.Clone(b[:off]) // what is safe has the old bytes
	}
	d.now[name] = append(b, p...)
	if last {
		d.dead = true
		return errPower
	}
	if sync {
		d.safe[name] = d.now[name]
	}
	return nil
}

func (d *memDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	last, err := d.step()
	if err != nil {
		return err
	}
	if last && d.rnd.IntN(2) == 0 {
		d.dead = true
		return errPower
	}
	d.now[to], d.safe[to] = d.now[from], d.safe[from]
	delete(d.now, from)
	delete(d.safe, from)
	if d.dead = last; last {
		return errPower
	}
	return nil
}

func (d *memDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.now[name]; !ok {
		return nil
	}
	last, err := d.step()
	if err != nil {
		return err
	}
	delete(d.now, name)
	delete(d.safe, name)
	if d.dead = last; last {
		return errPower
	}
	return nil
}

// copyOf is a disk with the same files.
func (d *memDisk) copyOf() *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := newMemDisk(7)
	for name, b := range d.now {
		out.now[name], out.safe[name] = slices.Clone(b), slices.Clone(b)
	}
	return out
}

// A lab is some devices and who of them reaches whom.
type lab struct {
	t     testing.TB
	mu    sync.Mutex
	nodes []*node
	up    map[[2]int]bool
	conns map[[2]int][]net.Conn
	convs []ConvID // rooms of all, or those of pairs if there is none
	lost  atomic.Bool
}

// A lossyConn carries nothing more, and says nothing of it, once its lab is lost.
type lossyConn struct {
	net.Conn
	silence net.Conn
	lost    *atomic.Bool
}

func (c lossyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.lost.Load() {
		return c.silence.Read(p)
	}
	return n, err
}

func (c lossyConn) Write(p []byte) (int, error) {
	if c.lost.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c lossyConn) SetReadDeadline(t time.Time) error {
	return errors.Join(c.Conn.SetReadDeadline(t), c.silence.SetReadDeadline(t))
}

func (c lossyConn) Close() error { return errors.Join(c.Conn.Close(), c.silence.Close()) }

type node struct {
	lab  *lab
	n    int
	id   *identity.Identity
	disk *memDisk
	real disk // in place of disk
	mail Mail
	max  int
	rate float64
	now  func() time.Time
	pass func(conv ConvID, author identity.DeviceID) []identity.DeviceID
	svc  *Service // nil: it is not running; lab.mu guards it
	ln   *pipeListener
}

func newLab(t testing.TB, n int) *lab {
	l := &lab{t: t, up: make(map[[2]int]bool), conns: make(map[[2]int][]net.Conn)}
	for i := range n {
		id, err := identity.FromSeeds([32]byte{byte(i), 1}, [32]byte{byte(i), 2})
		if err != nil {
			t.Fatal(err)
		}
		l.nodes = append(l.nodes, &node{lab: l, n: i, id: id, disk: newMemDisk(uint64(i))})
	}
	return l
}

// room makes a conversation of all.
func (l *lab) room() ConvID {
	id := ConvID{1, byte(len(l.convs))}
	l.convs = append(l.convs, id)
	return id
}

func (l *lab) pair(a, b int) ConvID { return PairConv(l.nodes[a].id.ID(), l.nodes[b].id.ID()) }

func pairKey(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

// members is what a device knows of the members of conversations. lab.mu is held.
func (l *lab) member(of, n int) Member {
	up := of == n || l.up[pairKey(of, n)] && l.nodes[n].svc != nil
	return Member{ID: l.nodes[n].id.ID(), Name: fmt.Sprint("device ", n), Online: up}
}

func (n *node) list() []Conv {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	var out []Conv
	for _, id := range n.lab.convs {
		c := Conv{ID: id, Room: true, Name: "room"}
		for i := range n.lab.nodes {
			c.Members = append(c.Members, n.lab.member(n.n, i))
		}
		out = append(out, c)
	}
	if len(n.lab.convs) > 0 {
		return out
	}
	for i := range n.lab.nodes {
		if i != n.n {
			out = append(out, Conv{ID: n.lab.pair(n.n, i), Name: fmt.Sprint("device ", i), Members: []Member{n.lab.member(n.n, n.n), n.lab.member(n.n, i)}})
		}
	}
	return out
}

// start runs a device.
func (n *node) start() *Service {
	n.ln = &pipeListener{ch: make(chan net.Conn), done: make(chan struct{})}
	on := n.real
	if on == nil {
		on = n.disk
	}
	s, err := New(Config{
		Key: [32]byte{byte(n.n)}, Self: n.id, Listener: n.ln, Dial: n.dial, Who: n.who, Convs: n.list, Mail: n.mail, Pass: n.pass,
		MaxEntries: n.max, Rate: n.rate, Now: n.now, disk: on,
	})
	if err != nil {
		n.lab.t.Fatal(err)
	}
	n.lab.mu.Lock()
	n.svc = s
	n.lab.mu.Unlock()
	n.lab.changed()
	return s
}

// stop ends a device as its user does.
func (n *node) stop() {
	n.lab.mu.Lock()
	s := n.svc
	n.svc = nil
	n.lab.mu.Unlock()
	if s != nil {
		if err := s.Close(); err != nil {
			n.lab.t.Error(err)
		}
		n.lab.changed()
	}
}

// kill ends a device as kill -9 or a power cut does, and brings it back.
func (n *node) kill() {
	n.disk.cutPower()
	n.stop()
	n.disk.reboot()
	n.start()
}

func (n *node) dial(ctx context.Context, peer identity.DeviceID) (net.Conn, error) {
	near, far := net.Pipe()
	var ln *pipeListener
	n.lab.mu.Lock()
	for i, o := range n.lab.nodes {
		if k := pairKey(n.n, i); o.id.ID() == peer && o.svc != nil && n.lab.up[k] {
			ln = o.ln
			n.lab.conns[k] = append(n.lab.conns[k], near, far)
		}
	}
	n.lab.mu.Unlock()
	if ln != nil {
		select {
		case ln.ch <- pipeConn{far, pipeAddr(n.n)}:
			silence, _ := net.Pipe()
			return lossyConn{near, silence, &n.lab.lost}, nil
		case <-ln.done:
		case <-ctx.Done():
		}
	}
	near.Close()
	far.Close()
	return nil, errors.New("not there")
}

func (n *node) who(a net.Addr) (identity.DeviceID, bool) {
	return n.lab.nodes[a.(pipeAddr)].id.ID(), true
}

// connect joins two devices or cuts what joins them.
func (l *lab) connect(a, b int, up bool) {
	l.mu.Lock()
	k := pairKey(a, b)
	was := l.up[k]
	l.up[k] = up
	conns := l.conns[k]
	delete(l.conns, k)
	l.mu.Unlock()
	if !up {
		for _, c := range conns {
			c.Close()
		}
	}
	if was == up {
		return
	}
	for _, n := range [][2]int{{a, b}, {b, a}} {
		l.mu.Lock()
		s := l.nodes[n[0]].svc
		l.mu.Unlock()
		if s == nil {
			continue
		}
		if up {
			s.Connected(l.nodes[n[1]].id.ID())
		} else {
			s.Changed()
		}
	}
}

// breakOff ends the connections of two devices, which still reach each other.
func (l *lab) breakOff(a, b int) {
	l.mu.Lock()
	conns := l.conns[pairKey(a, b)]
	delete(l.conns, pairKey(a, b))
	l.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

func (l *lab) connectAll() {
	for a := range l.nodes {
		for b := range a {
			l.connect(a, b, true)
		}
	}
}

// move has a connection break, and come back.
func (l *lab) move(a, b int) {
	l.connect(a, b, false)
	l.connect(a, b, true)
}

func (l *lab) changed() {
	for _, n := range l.nodes {
		l.mu.Lock()
		s := n.svc
		l.mu.Unlock()
		if s != nil {
			s.Changed()
		}
	}
}

func (l *lab) startAll() {
	for _, n := range l.nodes {
		n.start()
	}
}

func (l *lab) stopAll() {
	for _, n := range l.nodes {
		n.stop()
	}
}

// texts are what a device shows of a conversation.
func (n *node) texts(t testing.TB, c ConvID) []string {
	t.Helper()
	var out []string
	for _, m := range n.all(t, c) {
		out = append(out, m.Text)
	}
	return out
}

func (n *node) all(t testing.TB, c ConvID) []Message {
	t.Helper()
	var out []Message
	var before *Message
	for {
		page, err := n.svc.History(c, before, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			return out
		}
		out = append(slices.Clone(page), out...)
		before = &page[0]
	}
}

// difference returns what two devices show differently; "" is nothing.
func (l *lab) difference(t testing.TB, c ConvID) string {
	t.Helper()
	name := func(m Message) string {
		return fmt.Sprintf("%s/%s/%d/%d %q", m.Author.Short(), m.Log, m.Seq, m.Lamport, m.Text)
	}
	var first []string
	for i, n := range l.nodes {
		var got []string
		for _, m := range n.all(t, c) {
			got = append(got, name(m))
		}
		if i == 0 {
			first = got
		} else if !slices.Equal(got, first) {
			return fmt.Sprintf("device 0 shows %d lines:\n%s\ndevice %d shows %d:\n%s", len(first), strings.Join(first, "\n"), i, len(got), strings.Join(got, "\n"))
		}
	}
	return ""
}

func (n *node) send(t testing.TB, c ConvID, text string) Message {
	t.Helper()
	m, err := n.svc.Send(t.Context(), c, text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (n *node) await(t testing.TB, m Message, s State) Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := n.svc.Wait(ctx, m, s)
	if err != nil {
		t.Fatalf("%q is %s, want %s: %v", m.Text, got.State, s, err)
	}
	return got
}

// pass lets time pass. It is called in bubbles alone.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

type pipeAddr int

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return fmt.Sprint(int(a)) }

type pipeConn struct {
	net.Conn
	from pipeAddr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.from }

type pipeListener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, io.EOF
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return pipeAddr(0) }
