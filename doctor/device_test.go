package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/netmon"
)

var errDeviceNone = errors.New("there is none")

// a testDevice is one on which all is well: a laptop with one network, IPv4 alone.
func testDevice() *device {
	self := netip.MustParseAddr("192.168.1.20")
	return &device{
		read:     deviceFiles(nil),
		getenv:   func(string) string { return "" },
		command:  func(context.Context, string, ...string) ([]byte, error) { return nil, errDeviceNone },
		outbound: deviceWays(self, netip.Addr{}),
		gateway:  func(six bool) (netip.Addr, bool) { return netip.MustParseAddr("192.168.1.1"), !six },
		ask:      deviceAnswers(nil),
		dial:     func(context.Context, *Env, netip.AddrPort) error { return context.DeadlineExceeded },
		limits:   func() (uint64, uint64, error) { return 20, 1024, nil },
		buffer:   func() (int, error) { return 212992, nil },
		offload:  func() (bool, bool, error) { return true, true, nil },
		free:     func(string) (uint64, error) { return 1 << 30, nil },
		write:    func(string) error { return nil },
		locked:   func(string) bool { return false },
		bind:     func(uint16, bool) error { return nil },
		dnsPort:  53, ntpPort: 123, webPort: 80,
	}
}

// deviceFiles are what the system's files say.
func deviceFiles(all map[string]string) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		if text, ok := all[path]; ok {
			return []byte(text), nil
		}
		return nil, fs.ErrNotExist
	}
}

// deviceWays is a route table with a way for each family whose address is valid.
func deviceWays(four, six netip.Addr) func(netip.Addr) (netip.Addr, error) {
	return func(to netip.Addr) (netip.Addr, error) {
		self := six
		if to.Is4() {
			self = four
		}
		if !self.IsValid() {
			return self, syscall.ENETUNREACH
		}
		return self, nil
	}
}

// deviceAnswers is a network in which these addresses answer so, and others are silent.
func deviceAnswers(all map[string]deviceAnswer) func(context.Context, *Env, netip.AddrPort, []byte, deviceAsk) deviceAnswer {
	return func(_ context.Context, _ *Env, to netip.AddrPort, _ []byte, _ deviceAsk) deviceAnswer {
		return all[to.String()]
	}
}

func deviceIface(name string, addrs ...string) netmon.Interface {
	i := netmon.Interface{Name: name, MTU: 1500, Up: true, Multicast: true}
	for _, a := range addrs {
		i.Addrs = append(i.Addrs, netip.MustParsePrefix(a))
	}
	return i
}

func deviceEnv(list ...netmon.Interface) *Env {
	if list == nil {
		list = []netmon.Interface{deviceIface("eth0", "192.168.1.20/24")}
	}
	list = append(list, netmon.Interface{Name: "lo", Up: true, Loopback: true}, netmon.Interface{Name: "eth9"})
	return &Env{
		Interfaces: func() ([]netmon.Interface, error) { return list, nil },
		lookup:     func(context.Context, string) ([]netip.Addr, error) { return nil, errDeviceNone },
	}
}

// deviceWord runs a check, and says its answer in a word: a finding, or ok, nothing, unclear.
func deviceWord(t *testing.T, c Check, env *Env) (string, Answer) {
	t.Helper()
	a := c.Run(t.Context(), env, "")
	switch {
	case a.State == No:
		if !slices.ContainsFunc(c.Findings, func(f Finding) bool { return f.ID == a.Finding }) {
			t.Fatalf("%s has no finding %q", c.Code, a.Finding)
		}
		return a.Finding, a
	case a.State == Unknown:
		return "unclear", a
	case a.Silent:
		return "nothing", a
	}
	return "ok", a
}

// deviceExpect fails if a check does not answer so.
func deviceExpect(t *testing.T, c Check, env *Env, want string) Answer {
	t.Helper()
	got, a := deviceWord(t, c, env)
	if got != want {
		t.Errorf("%s says %s, want %s: %q %q", c.Code, got, want, a.Cause, a.Evidence)
	}
	return a
}

func TestDeviceState(t *testing.T) {
	for name, test := range map[string]struct {
		change func(t *testing.T, d *device, env *Env)
		want   string
	}{
		"sound":       {func(*testing.T, *device, *Env) {}, "ok"},
		"not yet":     {func(_ *testing.T, _ *device, env *Env) { env.Dir += "/none" }, "ok"},
		"no dir":      {func(_ *testing.T, _ *device, env *Env) { env.Dir = "" }, "unclear"},
		"gone":        {func(_ *testing.T, _ *device, env *Env) { env.Dir += "/none"; env.OpenErr = errDeviceNone }, "unusable"},
		"a file":      {func(t *testing.T, _ *device, env *Env) { env.Dir = devicePut(t, env.Dir, "x", 0o600) }, "unusable"},
		"full":        {func(_ *testing.T, d *device, _ *Env) { d.write = deviceFailing(syscall.ENOSPC) }, "full"},
		"quota":       {func(_ *testing.T, d *device, _ *Env) { d.write = deviceFailing(syscall.EDQUOT) }, "full"},
		"read only":   {func(_ *testing.T, d *device, _ *Env) { d.write = deviceFailing(syscall.EACCES) }, "unwritable"},
		"broken disk": {func(_ *testing.T, d *device, _ *Env) { d.write = deviceFailing(syscall.EIO) }, "unusable"},
		"exposed":     {func(t *testing.T, _ *device, env *Env) { deviceChmod(t, env.Dir, 0o755) }, "exposed"},
		"exposed key": {func(t *testing.T, _ *device, env *Env) { devicePut(t, env.Dir, "identity.key", 0o644) }, "exposed"},
		"damaged":     {func(t *testing.T, _ *device, env *Env) { devicePut(t, env.Dir, "a.cbor.corrupt-1", 0o600) }, "damaged"},
		"low": {func(_ *testing.T, d *device, _ *Env) {
			d.free = func(string) (uint64, error) { return 1 << 20, nil }
		}, "low"},
		"locked": {func(_ *testing.T, d *device, env *Env) {
			env.OpenErr = errDeviceNone
			d.locked = func(string) bool { return true }
		}, "locked"},
		"not opened": {func(_ *testing.T, _ *device, env *Env) { env.OpenErr = errDeviceNone }, "unopened"},
		"no key":     {func(_ *testing.T, _ *device, env *Env) { env.OpenErr = fmt.Errorf("x: %w", identity.ErrKeyFile) }, "unusable"},
		"the port is": {func(_ *testing.T, d *device, env *Env) {
			env.OpenErr, env.Port, d.bind = errDeviceNone, 5, func(uint16, bool) error { return syscall.EADDRINUSE }
		}, "ok"},
		"the port is the reason": {func(_ *testing.T, _ *device, env *Env) { env.OpenErr = syscall.EADDRINUSE }, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), deviceEnv()
			env.Dir = filepath.Join(t.TempDir(), "state")
			if err := os.Mkdir(env.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			test.change(t, d, env)
			deviceExpect(t, d.stateCheck(), env, test.want)
		})
	}
}

// TestDeviceDamaged holds that the fix of damaged files ends what is found.
func TestDeviceDamaged(t *testing.T) {
	d, env := testDevice(), deviceEnv()
	env.Dir = filepath.Join(t.TempDir(), "state")
	if err := os.MkdirAll(filepath.Join(env.Dir, "peers"), 0o700); err != nil {
		t.Fatal(err)
	}
	names := []string{"a.cbor.corrupt-1", filepath.Join("peers", "b.cbor.corrupt-2")}
	for _, name := range names {
		devicePut(t, env.Dir, name, 0o600)
	}
	a := deviceExpect(t, d.stateCheck(), env, "damaged")
	if !strings.HasSuffix(a.Fix, "delete what was set aside in "+env.Dir+": "+strings.Join(names, ", ")+".") {
		t.Errorf("the fix is %q", a.Fix)
	}
	for _, name := range names {
		if err := os.Remove(filepath.Join(env.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	deviceExpect(t, d.stateCheck(), env, "ok")
}

func devicePut(t *testing.T, dir, name string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("x"), mode); err != nil {
		t.Fatal(err)
	}
	deviceChmod(t, path, mode) // whatever the umask
	return path
}

func deviceChmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func deviceFailing(err error) func(string) error {
	return func(string) error { return &fs.PathError{Op: "write", Path: "x", Err: err} }
}

func TestDeviceHolder(t *testing.T) {
	d := testDevice()
	lock := devicePut(t, t.TempDir(), "lock", 0o600)
	inode := deviceInode(lock)
	if inode == 0 {
		t.Skip("files have no inodes here")
	}
	line := "1: POSIX  ADVISORY  WRITE 12 00:1f:1 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 08:01:" + deviceNumber(inode) + " 0 EOF\n"
	d.read = deviceFiles(map[string]string{"/proc/locks": line, "/proc/4711/comm": "kith\n"})
	if got := d.holder(lock); len(got) != 1 || !strings.Contains(got[0], "process 4711 kith") {
		t.Errorf("the holder is %q", got)
	}
}

func TestDeviceLimits(t *testing.T) {
	for name, test := range map[string]struct {
		open, most uint64
		err        error
		want       string
	}{"enough": {20, 1024, nil, "ok"}, "few": {20, 64, nil, "few"}, "used": {1000, 1024, nil, "used"}, "no limit": {0, 0, errDeviceNone, "nothing"}} {
		t.Run(name, func(t *testing.T) {
			d := testDevice()
			d.limits = func() (uint64, uint64, error) { return test.open, test.most, test.err }
			deviceExpect(t, d.filesCheck(), deviceEnv(), test.want)
		})
	}
	open, most, err := deviceLimits()
	if err == nil && (most == 0 || open > most) {
		t.Errorf("%d of %d files", open, most)
	}
}

const deviceProcUDP = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  123: 00000000:C738 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 98765 2 0000000000000000 42
  124: 00000000:6B63 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 98766 2 0000000000000000 0
`

func TestDeviceBuffers(t *testing.T) {
	d, env := testDevice(), deviceEnv()
	d.read, env.Port = deviceFiles(map[string]string{"/proc/net/udp": deviceProcUDP}), 0xc738
	if a := deviceExpect(t, d.buffersCheck(), env, "ok"); len(a.Evidence) != 2 || !strings.Contains(a.Evidence[1], "dropped 42 packets") {
		t.Errorf("evidence %q", a.Evidence)
	}
	d.buffer = func() (int, error) { return 32 << 10, nil }
	deviceExpect(t, d.buffersCheck(), env, "small")
	d.buffer = func() (int, error) { return 0, errDeviceNone }
	deviceExpect(t, d.buffersCheck(), env, "nothing")
	if size, err := deviceBuffer(); err == nil && size <= 0 {
		t.Errorf("the system's buffer has %d bytes", size)
	}
}

func TestDeviceOffload(t *testing.T) {
	for want, f := range map[string]func() (bool, bool, error){
		"ok":      func() (bool, bool, error) { return false, false, nil },
		"nothing": func() (bool, bool, error) { return false, false, errDeviceNone },
	} {
		d := testDevice()
		d.offload = f
		deviceExpect(t, d.offloadCheck(), deviceEnv(), want)
	}
}

func TestDeviceProxy(t *testing.T) {
	d := testDevice()
	deviceExpect(t, d.proxyCheck(), deviceEnv(), "nothing")
	d.getenv = func(name string) string {
		return map[string]string{"https_proxy": "http://user:secret@proxy:3128"}[name]
	}
	if a := deviceExpect(t, d.proxyCheck(), deviceEnv(), "set"); strings.Contains(strings.Join(a.Evidence, " "), "secret") {
		t.Errorf("it tells the password: %q", a.Evidence)
	}
}

func TestDeviceInterfaces(t *testing.T) {
	d := testDevice()
	deviceExpect(t, d.interfacesCheck(), deviceEnv(), "ok")
	none := deviceEnv()
	none.Interfaces = func() ([]netmon.Interface, error) {
		return []netmon.Interface{{Name: "lo", Up: true, Loopback: true}}, nil
	}
	deviceExpect(t, d.interfacesCheck(), none, "none")
	unknown := deviceEnv()
	unknown.Interfaces = func() ([]netmon.Interface, error) { return nil, errDeviceNone }
	for _, c := range []Check{d.interfacesCheck(), d.addressesCheck(), d.decoysCheck(), d.containersCheck(), d.mtuCheck(), d.vpnCheck()} {
		deviceExpect(t, c, unknown, "unclear")
	}
}

func TestDeviceAddresses(t *testing.T) {
	d := testDevice()
	deviceExpect(t, d.addressesCheck(), deviceEnv(), "ok")
	deviceExpect(t, d.addressesCheck(), deviceEnv(deviceIface("eth0", "fe80::1/64", "2001:db8::1/64")), "ok")
	deviceExpect(t, d.addressesCheck(), deviceEnv(deviceIface("eth0", "fe80::1/64", "169.254.3.4/16")), "linklocal")
	deviceExpect(t, d.addressesCheck(), deviceEnv(deviceIface("eth0", "fe80::1/64"), deviceIface("docker0", "172.17.0.1/16")), "linklocal")
}

func TestDeviceDecoys(t *testing.T) {
	d := testDevice()
	real, decoys := deviceIface("eth0", "192.168.1.20/24"), []netmon.Interface{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		decoys = append(decoys, deviceIface("dummy"+name, "10.9."+deviceNumber(uint64(name[0]))+".1/24"))
	}
	run := func(list ...netmon.Interface) (string, Answer) {
		env := deviceEnv(list...)
		env.Remember(factOutbound, []netip.Addr{testSelf4})
		return deviceWord(t, d.decoysCheck(), env)
	}
	if got, a := run(append(decoys, real)...); got != "many" || !strings.Contains(a.Cause, "192.168.1.20 on eth0") {
		t.Errorf("%s: %q", got, a.Cause)
	}
	if got, _ := run(real, deviceIface("wlan0", "192.168.7.3/24"), deviceIface("docker0", "172.17.0.1/16"), deviceIface("virbr0", "192.168.122.1/24")); got != "ok" {
		t.Errorf("a laptop with two networks: %s", got)
	}
	deviceExpect(t, d.decoysCheck(), deviceEnv(), "unclear") // no route is known
}

func TestDeviceContainers(t *testing.T) {
	d := testDevice()
	deviceExpect(t, d.containersCheck(), deviceEnv(), "nothing")
	deviceExpect(t, d.containersCheck(), deviceEnv(deviceIface("eth0", "192.168.1.20/24"), deviceIface("docker0", "172.17.0.1/16")), "ok")
	deviceExpect(t, d.containersCheck(), deviceEnv(deviceIface("eth0", "172.17.3.20/24"), deviceIface("docker0", "172.17.0.1/16")), "overlap")
	// Two real networks with the same addresses are none of it.
	deviceExpect(t, d.containersCheck(), deviceEnv(deviceIface("eth0", "192.168.1.20/24"), deviceIface("wlan0", "192.168.1.21/24")), "nothing")
}

func TestDeviceMTU(t *testing.T) {
	for want, mtu := range map[string]int{"ok": 1500, "small": 1420, "tiny": 1000, "unclear": 0} {
		i := deviceIface("eth0", "192.168.1.20/24")
		i.MTU = mtu
		env := deviceEnv(i)
		env.Remember(factOutbound, []netip.Addr{testSelf4})
		deviceExpect(t, testDevice().mtuCheck(), env, want)
	}
}

func TestDevicePorts(t *testing.T) {
	taken := func(which uint16) func(uint16, bool) error {
		return func(port uint16, _ bool) error {
			if port == which {
				return &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
			}
			return nil
		}
	}
	d, env := testDevice(), deviceEnv()
	deviceExpect(t, d.portsCheck(), env, "ok")
	d.bind = taken(27491)
	deviceExpect(t, d.portsCheck(), env, "lan")
	env.Media = []Medium{{Name: "mqtt"}}
	deviceExpect(t, d.portsCheck(), env, "ok") // it is not used
	env.Media = []Medium{{Name: "mqtt"}, {Name: "lan"}}
	deviceExpect(t, d.portsCheck(), env, "lan")
	d.bind = func(uint16, bool) error { return errDeviceNone }
	deviceExpect(t, d.portsCheck(), env, "unclear")
	d.bind, env.Port = taken(5555), 5555
	deviceExpect(t, d.portsCheck(), env, "ok") // the node has it itself
	env.OpenErr = errDeviceNone
	if a := deviceExpect(t, d.portsCheck(), env, "tunnel"); !strings.Contains(a.Cause, "5555") {
		t.Errorf("cause %q", a.Cause)
	}
	if got := parseUDPOwners([]byte(deviceProcUDP), 27491); !slices.Equal(got, []string{"98766"}) {
		t.Errorf("sockets %q", got)
	}
}

// TestDeviceBind: a port that another socket has for itself is taken, one that is shared is not.
func TestDeviceBind(t *testing.T) {
	conn, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if err := deviceBind(port, false); !deviceTaken(err) {
		t.Errorf("binding a taken port: %v", err)
	}
	if err := deviceBind(0, true); err != nil {
		t.Error(err)
	}
}

func deviceNumber(n uint64) string { return strconv.FormatUint(n, 10) }
