package doctor

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestDevicePortsFix: the fix names the process that is to be ended, or the command that
// shows it.
func TestDevicePortsFix(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux says whose a port is")
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	for _, known := range []bool{true, false} {
		d, env := systemDevice(), deviceEnv()
		d.read = func(path string) ([]byte, error) { // the first thread may be left in another test's namespace
			return deviceRead(strings.Replace(path, "/proc/net/", "/proc/thread-self/net/", 1))
		}
		want := fmt.Sprintf("kill %d)", os.Getpid())
		if !known {
			d.read = deviceFiles(nil)
			want = fmt.Sprintf("sudo ss -ulpn 'sport = :%d'", port)
		}
		env.OpenErr, env.Port = errDeviceNone, port
		a := deviceExpect(t, d.portsCheck(), env, "tunnel")
		if !strings.Contains(a.Fix, want) || !strings.Contains(a.Fix, "kith config port 0") {
			t.Errorf("known %v: %q, %q", known, a.Fix, a.Evidence)
		}
	}
}

// TestDevicePortsOnce: that the LAN's port is taken is one cause, whoever finds it.
func TestDevicePortsOnce(t *testing.T) {
	var table []Check
	for _, c := range Table() {
		finding := map[Code]string{"device.ports": "lan", "meeting.lan.port": "taken"}[c.Code]
		if finding == "" {
			continue
		}
		c.Needs, c.Subjects = nil, nil
		c.Run = func(context.Context, *Env, string) Answer { return Fails(finding) }
		table = append(table, c)
	}
	r := Run(t.Context(), Config{Table: table, Env: new(Env)})
	if got := codes(r.Causes); !slices.Equal(got, []string{"device.ports/lan"}) {
		t.Errorf("causes %q", got)
	}
}

// TestDeviceOrder: what only makes it slower comes after what stops it.
func TestDeviceOrder(t *testing.T) {
	var got []Code
	for _, c := range testDevice().checks() {
		got = append(got, c.Code)
	}
	want := []Code{"device.mtu", "device.files", "device.buffers", "device.offload"}
	if tail := got[max(0, len(got)-len(want)):]; !slices.Equal(tail, want) {
		t.Errorf("the last are %q", tail)
	}
}
