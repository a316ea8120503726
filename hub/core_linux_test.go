package hub

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/pion/stun/v4"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	forwardEnv = "KITH_HUB_BENCH_FORWARD" // a kind of forwarder and where to
	corePacket = 1300                     // bytes, as WireGuard's of a full packet through the relay
	coreTrain  = 40                       // packets in one segmented send
	coreBatch  = 32                       // packets in one sendmmsg
	coreWindow = 400                      // packets that are under way
	coreRounds = 5
	coreRun    = time.Second
)

// check ends a forwarder that cannot work; its parent sees it.
func check(err error) {
	if err != nil && !errors.Is(err, unix.EINTR) {
		fmt.Fprintln(os.Stdout, err)
		os.Exit(1)
	}
}

// forwardChild is the smallest program that forwards datagrams: one thread, blocking
// sockets, and as many packets per system call as the kernel takes. "batch" reads with
// recvmmsg and writes with sendmmsg, "join" writes one segmented train instead,
// "train" also reads trains.
func forwardChild() bool {
	kind, to, ok := strings.Cut(os.Getenv(forwardEnv), " ")
	if !ok {
		return false
	}
	runtime.LockOSThread()
	go func() { // until the parent ends
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	in, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	check(err)
	check(unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer))
	check(unix.Bind(in, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := unix.Getsockname(in)
	check(err)
	dst, err := net.ResolveUDPAddr("udp4", to)
	check(err)
	out, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	check(err)
	check(unix.SetsockoptInt(out, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer))
	check(unix.Connect(out, &unix.SockaddrInet4{Addr: [4]byte(dst.IP.To4()), Port: dst.Port}))
	fmt.Fprintf(os.Stdout, "127.0.0.1:%d\n", name.(*unix.SockaddrInet4).Port)
	if kind == "train" {
		forwardTrains(in, out)
	}
	forwardBatches(in, out, kind == "join")
	return true
}

func segmentControl(size int) []byte {
	oob := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(size))
	return oob
}

func forwardTrains(in, out int) {
	check(unix.SetsockoptInt(in, unix.IPPROTO_UDP, unix.UDP_GRO, 1))
	buf, oob, control := make([]byte, 1<<16), make([]byte, 64), segmentControl(corePacket)
	for {
		n, _, _, _, err := unix.RecvmsgBuffers(in, [][]byte{buf}, oob, 0)
		check(err)
		if n > corePacket {
			_, err = unix.SendmsgN(out, buf[:n], control, nil, 0)
		} else {
			_, err = unix.Write(out, buf[:n])
		}
		check(err)
	}
}

func forwardBatches(in, out int, join bool) {
	const batch = 64
	type mmsghdr struct {
		hdr unix.Msghdr
		n   uint32
		_   [4]byte
	}
	var heads [batch]mmsghdr
	var iovs [batch]unix.Iovec
	var bufs [batch][2048]byte
	for i := range heads {
		iovs[i].Base = &bufs[i][0]
		heads[i].hdr.Iov = &iovs[i]
		heads[i].hdr.Iovlen = 1
	}
	control := segmentControl(corePacket)
	for {
		for i := range heads {
			iovs[i].SetLen(len(bufs[i]))
		}
		n, _, err := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(in), uintptr(unsafe.Pointer(&heads)), batch, unix.MSG_WAITFORONE, 0, 0)
		if err != 0 {
			check(err)
			continue
		}
		for i := range heads[:n] {
			iovs[i].SetLen(int(heads[i].n))
		}
		if join && n > 1 {
			for at := 0; at < int(n); {
				count := min(int(n)-at, 49) // 64 kB
				m := unix.Msghdr{Iov: &iovs[at], Control: &control[0]}
				m.SetIovlen(count)
				m.SetControllen(len(control))
				_, _, err := unix.Syscall(unix.SYS_SENDMSG, uintptr(out), uintptr(unsafe.Pointer(&m)), 0)
				if err != 0 {
					check(err)
				}
				at += count
			}
			continue
		}
		if _, _, err := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(out), uintptr(unsafe.Pointer(&heads)), n, 0, 0, 0); err != 0 {
			check(err)
		}
	}
}

// processors returns all that we may use but the last, and the last.
func processors(t testing.TB) (rest, last unix.CPUSet) {
	t.Helper()
	if err := unix.SchedGetaffinity(0, &rest); err != nil {
		t.Fatal(err)
	}
	for cpu := 1023; cpu >= 0; cpu-- {
		if rest.IsSet(cpu) {
			last.Set(cpu)
			if rest.Count() > 1 {
				rest.Clear(cpu)
			}
			return rest, last
		}
	}
	t.Fatal("no processor")
	return rest, last
}

// pinned starts a command on the last of our processors.
func pinned(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	_, last := processors(t)
	if err := unix.SchedSetaffinity(0, &last); err != nil {
		t.Fatal(err)
	}
	err := cmd.Start()
	if back := unix.SchedSetaffinity(0, &before); back != nil {
		t.Fatal(back)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// elsewhere keeps this process off the last processor, and returns what ends that.
func elsewhere(t testing.TB) func() {
	t.Helper()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	rest, _ := processors(t)
	set := func(cpus *unix.CPUSet) {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			if id, err := strconv.Atoi(thread.Name()); err == nil {
				_ = unix.SchedSetaffinity(id, cpus) // it may have ended
			}
		}
	}
	set(&rest)
	return func() { set(&all) }
}

// startForwarder starts forwardChild on one processor.
func startForwarder(t testing.TB, kind string, to net.Addr) (*child, string) {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), forwardEnv+"="+kind+" "+to.String())
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.in = in
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	pinned(t, c.cmd)
	t.Cleanup(func() {
		_ = in.Close()
		_ = c.cmd.Wait()
	})
	c.out = bufio.NewScanner(out)
	c.out.Scan()
	if _, _, err := net.SplitHostPort(c.out.Text()); err != nil {
		t.Fatalf("%s: %s", kind, c.out.Text())
	}
	return c, c.out.Text()
}

// flow is one way for packets, from a socket over a process to another socket.
type flow struct {
	name     string
	by       *child
	from, to *net.UDPConn
	dst      *net.UDPAddr
	head     []byte // before each packet that is sent
	perByte  []float64
	perTime  []float64
	lost     int
}

// run sends for a while, coreWindow packets ahead of what arrives, and notes bytes a
// second of the processor and of the clock.
func (f *flow) run(t testing.TB, trains bool) {
	t.Helper()
	var arrived atomic.Int64 // packets
	wake := make(chan struct{}, 1)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		buf, oob := make([]byte, 1<<16), make([]byte, 64)
		for ctx.Err() == nil {
			_ = f.to.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			n, _, _, _, err := f.to.ReadMsgUDPAddrPort(buf, oob)
			if err == nil {
				arrived.Add(int64((n + corePacket + 3) / (corePacket + 4)))
			}
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	})
	packet := append(slices.Clone(f.head), make([]byte, corePacket)...)
	count := coreBatch
	ms := make([]ipv4.Message, coreBatch)
	for i := range ms {
		ms[i].Buffers, ms[i].Addr = [][]byte{packet}, f.dst
	}
	if trains {
		count, ms = coreTrain, ms[:1]
		ms[0].Buffers = slices.Repeat([][]byte{packet}, count)
		ms[0].OOB = segmentControl(len(packet))
	}
	pc := ipv4.NewPacketConn(f.from)
	start, used, sent, lost := time.Now(), f.by.cpu(t), int64(0), int64(0)
	last := time.Now()
	for time.Since(start) < coreRun {
		for sent-lost-arrived.Load()+int64(count) > coreWindow {
			before := arrived.Load()
			<-wake
			if now := time.Now(); arrived.Load() != before {
				last = now
			} else if now.Sub(last) > 30*time.Millisecond { // the rest is lost
				lost, last = sent-arrived.Load(), now
			}
		}
		for rest := ms; len(rest) > 0; {
			n, err := pc.WriteBatch(rest, 0)
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		sent += int64(count)
	}
	took, cpu := time.Since(start), f.by.cpu(t)-used
	bytes := float64(arrived.Load() * corePacket)
	cancel()
	wg.Wait()
	f.lost += int(lost)
	f.perByte = append(f.perByte, bytes/cpu.Seconds()/1e6)
	f.perTime = append(f.perTime, bytes/took.Seconds()/1e6)
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// sink is a socket for packets that takes trains.
func sink(t testing.TB) *net.UDPConn {
	c := udpConn(t, "127.0.0.1:0")
	_ = c.SetReadBuffer(socketBuffer)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) })
	return c
}

// BenchmarkCore compares what a hub relays with what the smallest possible program
// forwards, each on one processor, with the same packets from the same sender, which
// uses the other: in bytes a second of the processor, and of the clock. The sender
// sends packets one by one (32 in a sendmmsg), or as trains that the kernel
// segments. Each figure is the median of five runs of a second, in turn.
func BenchmarkCore(b *testing.B) {
	for _, sender := range []string{"packets", "trains"} {
		b.Run(sender, func(b *testing.B) {
			var flows []*flow
			for _, kind := range []string{"batch", "join", "train"} {
				from, to := sink(b), sink(b)
				c, addr := startForwarder(b, kind, to.LocalAddr())
				dst, err := net.ResolveUDPAddr("udp4", addr)
				if err != nil {
					b.Fatal(err)
				}
				flows = append(flows, &flow{name: kind, by: c, from: from, to: to, dst: dst})
			}
			hub := startChild(b, true)
			server, err := net.ResolveUDPAddr("udp4", net.JoinHostPort(hub.addr.Host, strconv.Itoa(int(hub.addr.Port))))
			if err != nil {
				b.Fatal(err)
			}
			client, peer := sink(b), sink(b)
			user := fmt.Sprintf("%d:bench", time.Now().Add(time.Hour).Unix())
			c := &rawTURN{Conn: connected{client, server}, user: user, password: turnPassword(hub.addr.TURNSecret(), user)}
			m := c.ask(b, stun.MethodAllocate, wantUDP)
			var relay stun.XORMappedAddress
			if err := relay.GetFromAs(m, stun.AttrXORRelayedAddress); err != nil {
				b.Fatal(m)
			}
			if m := c.ask(b, stun.MethodChannelBind, channelAttr(0x4000), peerAttr(peer.LocalAddr())); m.Type.Class != stun.ClassSuccessResponse {
				b.Fatal(m)
			}
			up := &flow{name: "hub, to peer", by: hub, from: client, to: peer, dst: server, head: channelData(0x4000, make([]byte, corePacket))[:4]}
			down := &flow{name: "hub, to client", by: hub, from: peer, to: client, dst: &net.UDPAddr{IP: relay.IP, Port: relay.Port}}
			flows = append(flows, up, down)
			free := elsewhere(b)
			for b.Loop() {
				for range coreRounds {
					for _, f := range flows {
						f.run(b, sender == "trains")
					}
				}
			}
			free()
			best := slices.MaxFunc(flows[:3], func(x, y *flow) int { return int(median(x.perByte) - median(y.perByte)) })
			for _, f := range flows {
				b.Logf("%-15s %6.0f MB per second of processor, %6.0f MB/s, %d lost: %.0f %% of %s", f.name, median(f.perByte), median(f.perTime), f.lost,
					100*median(f.perByte)/median(best.perByte), best.name)
			}
			b.ReportMetric(median(best.perByte), "forward-MB/cpu-s")
			b.ReportMetric(median(up.perByte), "up-MB/cpu-s")
			b.ReportMetric(median(down.perByte), "down-MB/cpu-s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// connected is a socket that others may send to, as a connection to one address.
type connected struct {
	*net.UDPConn
	to *net.UDPAddr
}

// Write sends to that address.
func (c connected) Write(p []byte) (int, error) { return c.WriteToUDP(p, c.to) }
