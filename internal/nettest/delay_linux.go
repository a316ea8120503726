package nettest

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// onTheWay is how many packets a Delay keeps at most; what comes then is lost.
const onTheWay = 100_000

// Delay has every packet that crosses the Internet from now on take that much longer, each
// way: not every kernel can do that by itself. It ends with the test.
func (i *Internet) Delay(d time.Duration) {
	t := i.lab.t
	t.Helper()
	const name = "delay0"
	var tun *os.File
	var err error
	i.Router.Do(func() { tun, err = openTUN(name) })
	if err != nil {
		t.Fatalf("delay: %v", err)
	}
	i.Router.IP("link", "set", name, "txqueuelen", "5000", "up")
	i.Router.sysctl("net/ipv4/conf/"+name+"/rp_filter", "0")
	for _, family := range []string{"-4", "-6"} {
		i.Router.IP(family, "route", "add", "default", "dev", name, "table", "100")
		// What comes out of the delay finds its way as before.
		i.Router.IP(family, "rule", "add", "not", "iif", name, "lookup", "100", "pref", "100")
	}
	type packet struct {
		data []byte
		at   time.Time
	}
	way := make(chan packet, onTheWay)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(way)
		for {
			buf := make([]byte, 2048)
			n, err := tun.Read(buf)
			if err != nil {
				return
			}
			select {
			case way <- packet{buf[:n], time.Now().Add(d)}:
			default:
			}
		}
	}()
	go func() {
		defer close(ended)
		for p := range way {
			select {
			case <-time.After(time.Until(p.at)):
			case <-ctx.Done():
			}
			_, _ = tun.Write(p.data) // fails while the interface goes down
		}
	}()
	t.Cleanup(func() {
		cancel()
		tun.Close()
		<-ended
	})
}

// openTUN makes a TUN interface in this thread's namespace. It vanishes with the file.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
