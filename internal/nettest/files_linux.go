package nettest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sentHere reads the counters of this thread's namespace.
func sentHere() (n int64, err error) {
	raw, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		const packets = 9 // column behind the name: bytes, packets … received, then bytes and packets sent
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(rest)
		if !ok || !strings.HasPrefix(name, "eth") || len(fields) <= packets {
			continue
		}
		one, err := strconv.ParseInt(fields[packets], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("nettest: /proc/net/dev: %w", err)
		}
		n += one
	}
	return n, nil
}

const ballastFile = "ballast"

// ballast fills a directory's file system.
func ballast(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, ballastFile), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 4096, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			return err
		}
	}
	return nil
}
