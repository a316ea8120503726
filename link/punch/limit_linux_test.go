package punch

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

const limitEnv = "PUNCH_TEST_FILES"

// TestPoolAtTheLimitOfFiles lowers the limit, in a process of its own.
func TestPoolAtTheLimitOfFiles(t *testing.T) {
	if os.Getenv(limitEnv) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestPoolAtTheLimitOfFiles$", "-test.v")
		cmd.Env = append(os.Environ(), limitEnv+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for _, o := range ways() {
		for _, c := range []struct{ files, least, most int }{{120, 80, 104}, {60, 32, 44}, {25, 0, 0}} {
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(c.files), Max: 4096}); err != nil {
				t.Skip("the limit of files cannot be changed: ", err)
			}
			p, err := openPool(PoolConfig{Receive: func(int, netip.AddrPort, []byte) {}}, o.open)
			if c.least == 0 {
				if err == nil {
					_ = p.Close()
					t.Fatalf("%s: opened with %d files", o.name, c.files)
				}
				t.Log(err)
				continue
			}
			if err != nil {
				t.Fatalf("%s, %d files: %v", o.name, c.files, err)
			}
			if p.Len() < c.least || p.Len() > c.most || p.Limit() == nil {
				t.Errorf("%s: %d sockets with %d files, %v", o.name, p.Len(), c.files, p.Limit())
			}
			t.Log(p.Limit())
			// Something is left for the rest of the program.
			other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatalf("%s: the pool took the last file: %v", o.name, err)
			}
			_ = other.Close()
			conn, err := p.Keep(p.Len() - 1)
			if err != nil {
				t.Fatalf("%s: %v", o.name, err)
			}
			_ = conn.Close()
			_ = p.Close()
		}
	}
}
