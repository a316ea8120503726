package doctor

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/kithproject/kith/rendezvous/lan"
)

func (d *device) portsCheck() Check {
	return Check{
		Code: "device.ports", Asks: "Has no other process taken kith's ports?", Quick: true,
		RootAdds: "which process holds a port of kith",
		Findings: []Finding{
			{
				ID: "tunnel", Severity: Fault, Cause: "Another process has the UDP port that the settings give to kith.",
				Fix: "End that process, or have kith take any free port (kith config port 0), and start kith again.",
			},
			{
				ID: "lan", Severity: Limit, Cause: "Another process holds UDP port 27491 for itself, so that devices in the same network cannot be found.",
				Fix:      fmt.Sprintf("Find that process (sudo ss -ulpn 'sport = :%d'), end it, and start kith again.", lan.Port),
				Explains: []string{"meeting.lan.port/taken"},
			},
		},
		Run: d.runPorts,
	}
}

func (d *device) runPorts(_ context.Context, env *Env, _ string) Answer {
	if env.OpenErr != nil && env.Port != 0 && deviceTaken(d.bind(env.Port, false)) {
		cause := fmt.Sprintf("Another process has UDP port %d, which the settings give to kith.", env.Port)
		fix := fmt.Sprintf("End that process (sudo ss -ulpn 'sport = :%d' shows it), or have kith take any free port (kith config port 0), and start kith again.", env.Port)
		pid, lines := d.whose(env.Port)
		if pid != "" {
			fix = fmt.Sprintf("End process %s (kill %s), or have kith take any free port (kith config port 0), and start kith again.", pid, pid)
		}
		return Fails("tunnel", lines...).With(cause, fix)
	}
	if len(env.Media) > 0 && !slices.ContainsFunc(env.Media, func(m Medium) bool { return m.Name == "lan" }) {
		return OK("the LAN is not among the media to meet on")
	}
	switch err := d.bind(lan.Port, true); {
	case err == nil:
		return OK(fmt.Sprintf("UDP port %d is there to share", lan.Port))
	case deviceTaken(err):
		fix := ""
		pid, lines := d.whose(lan.Port)
		if pid != "" {
			fix = fmt.Sprintf("End process %s (kill %s), and start kith again.", pid, pid)
		}
		return Fails("lan", lines...).With("", fix)
	default:
		return Unclear(err.Error())
	}
}

// deviceBind sees whether a UDP port can be had; shared: together with others that share
// it as well.
func deviceBind(port uint16, shared bool) error {
	var cfg net.ListenConfig
	if shared {
		cfg.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			cerr := c.Control(func(fd uintptr) { err = shareDevicePort(fd) })
			return errors.Join(cerr, err)
		}
	}
	conn, err := cfg.ListenPacket(context.Background(), "udp4", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	return conn.Close()
}

// whose says which processes have a UDP port, as far as the system tells, and the number of
// the first.
func (d *device) whose(port uint16) (first string, out []string) {
	line := fmt.Sprintf("UDP port %d is taken", port)
	var inodes []string
	for _, file := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		if raw, err := d.read(file); err == nil {
			inodes = append(inodes, parseUDPOwners(raw, port)...)
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	if err != nil || len(inodes) == 0 {
		return "", []string{line}
	}
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil || !slices.Contains(inodes, strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")) {
			continue
		}
		pid := strings.Split(l, "/")[2]
		name, _ := d.read("/proc/" + pid + "/comm")
		text := fmt.Sprintf("UDP port %d is held by process %s (%s)", port, pid, plain(string(name)))
		if !slices.Contains(out, text) && len(out) < 4 {
			out = append(out, text)
			first = cmp.Or(first, pid)
		}
	}
	if len(out) == 0 {
		return "", []string{line + " by a process of another user"}
	}
	return first, out
}

// parseUDPOwners finds in a /proc/net/udp the sockets of a port, by their inodes.
func parseUDPOwners(raw []byte, port uint16) (out []string) {
	want := fmt.Sprintf(":%04X", port)
	for line := range bytes.Lines(raw) {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ref pointer drops
		f := strings.Fields(string(line))
		if len(f) == 13 && strings.HasSuffix(f[1], want) && strings.Trim(f[9], "0123456789") == "" {
			out = append(out, f[9])
		}
	}
	return out
}
