package wan

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// open makes a TUN interface in a namespace. It vanishes with the file.
func open(ctx context.Context, e End, mtu int) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result)
	go func() { // on a thread of its own, which ends with it: it never goes back
		runtime.LockOSThread()
		f, err := openHere(e)
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, r.err
	}
	for _, args := range []string{
		"addr add " + e.Address + " dev " + e.Interface,
		"link set " + e.Interface + " mtu " + strconv.Itoa(mtu) + " txqueuelen 5000 up",
	} {
		cmd := exec.CommandContext(ctx, "ip", append([]string{"-n", e.Namespace}, strings.Fields(args)...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			r.f.Close()
			return nil, fmt.Errorf("wan: ip %s: %w: %s", args, err, out)
		}
	}
	return r.f, nil
}

// openHere leaves this thread in the namespace.
func openHere(e End) (*os.File, error) {
	ns, err := os.Open("/run/netns/" + e.Namespace)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	req, err := unix.NewIfreq(e.Interface)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("wan: make %s: %w", e.Interface, err)
	}
	return os.NewFile(uintptr(fd), e.Interface), nil
}
