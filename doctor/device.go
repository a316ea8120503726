package doctor

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/portmap"
)

// Facts that checks of the device remember for others.
const (
	factOutbound  = "device.outbound"  // this device's addresses towards the internet, IPv4 before IPv6 ([]netip.Addr)
	factVPN       = "device.vpn"       // the VPN's interface that they lead into (string)
	factQuiet     = "device.quiet"     // nothing was heard from beyond the router (bool)
	factWitnesses = "device.witnesses" // what hosts of the internet said that are no servers of kith's ([]deviceKnock)
)

const (
	maxSystemFile = 1 << 20 // bytes of a file of the system that are looked at
)

// A device is where the checks of the device get the system's facts from; tests give
// others.
type device struct {
	read     func(path string) ([]byte, error)
	getenv   func(name string) string
	command  func(ctx context.Context, name string, args ...string) ([]byte, error)
	outbound func(to netip.Addr) (netip.Addr, error)
	gateway  func(six bool) (netip.Addr, bool)
	ask      func(ctx context.Context, env *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer
	dial     func(ctx context.Context, env *Env, to netip.AddrPort) error
	limits   func() (open, most uint64, err error)
	buffer   func() (int, error) // bytes
	offload  func() (gso, gro bool, err error)
	free     func(dir string) (uint64, error) // bytes
	write    func(dir string) error
	locked   func(path string) bool
	bind     func(port uint16, shared bool) error
	dnsPort  uint16
	ntpPort  uint16
	webPort  uint16
	baits    []string // URLs at addresses that nobody has
}

// systemDevice asks the system.
func systemDevice() *device {
	return &device{
		read: deviceRead, getenv: os.Getenv, command: deviceCommand, outbound: localFor, gateway: deviceGateway,
		ask: deviceAskUDP, dial: deviceDial, limits: deviceLimits, buffer: deviceBuffer, offload: deviceOffload, free: deviceFree,
		write: deviceWrite, locked: deviceLocked, bind: deviceBind, dnsPort: 53, ntpPort: 123, webPort: 80, baits: deviceBaits(),
	}
}

// deviceChecks are the checks of the group.
func deviceChecks() []Check { return systemDevice().checks() }

func (d *device) checks() []Check {
	return []Check{
		d.stateCheck(), d.interfacesCheck(), d.addressesCheck(), d.routesCheck(), d.decoysCheck(), d.containersCheck(), d.vpnCheck(),
		d.firewallCheck(), d.portsCheck(), d.proxyCheck(), d.gatewayCheck(), d.portalCheck(), d.outsideCheck(), d.dnsCheck(), d.clockCheck(),
		d.ipv6Check(), d.pmtuCheck(),
		// What only makes it slower comes last.
		d.mtuCheck(), d.filesCheck(), d.buffersCheck(), d.offloadCheck(),
	}
}

func deviceRead(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSystemFile))
}

// deviceCommand runs a command of the system that only shows something. As it may run with
// the rights of root, the user's path does not say where the command is.
func deviceCommand(ctx context.Context, name string, args ...string) ([]byte, error) {
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/", "/run/current-system/sw/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return deviceRun(exec.CommandContext(ctx, path, args...))
		}
	}
	return nil, fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

func deviceRun(cmd *exec.Cmd) ([]byte, error) {
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(out, 4*maxSystemFile))
	_, _ = io.Copy(io.Discard, out)
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	return raw, err
}

// localFor is our address towards another one. Nothing is sent. It errs if there is no way.
func localFor(to netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return udpAddr(conn.LocalAddr()).Addr().WithZone(""), nil
}

func deviceGateway(six bool) (netip.Addr, bool) {
	if six {
		gw, _, ok := portmap.DefaultGateway6()
		return gw, ok
	}
	gw, _, ok := portmap.DefaultGateway()
	return gw, ok
}

// deviceDial connects to an address. It is not probeTCP, which is once for a run: this ends when
// somebody else has answered, and then says nothing of the address.
func deviceDial(ctx context.Context, env *Env, to netip.AddrPort) error {
	return connectTCP(ctx, env, to.Addr().String(), to.Port(), nil).Err
}

func (e *Env) gateway() (gw, self netip.Addr, ok bool) {
	if e.Gateway == nil {
		return portmap.DefaultGateway()
	}
	return e.Gateway()
}

func (e *Env) allInterfaces() ([]netmon.Interface, error) {
	if e.Interfaces == nil {
		return netmon.Interfaces()
	}
	return e.Interfaces()
}

// interfaces lists the interfaces that are up, without loopback unless it counts.
func (e *Env) interfaces() ([]netmon.Interface, error) {
	all, err := e.allInterfaces()
	if err != nil {
		return nil, err
	}
	out := all[:0:0]
	for _, i := range all {
		if i.Up && (!i.Loopback || e.Loopback) {
			out = append(out, i)
		}
	}
	return out, nil
}

// now is the time of the wall clock.
func (e *Env) now() time.Time {
	if e.Now != nil {
		return e.Now()
	}
	return time.Now().Round(0)
}
