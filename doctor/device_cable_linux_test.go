package doctor

import (
	"strings"
	"testing"

	"github.com/kithproject/kith/internal/nettest"
)

// TestDeviceCable takes the cable out of a host that keeps its address, and has containers.
func TestDeviceCable(t *testing.T) {
	h := nettest.New(t).Host("desk")
	pair := func(name, far string) {
		h.IP("link", "add", name, "type", "veth", "peer", "name", far)
		h.IP("link", "set", name, "up")
		h.IP("link", "set", far, "up")
	}
	pair("eth0", "cable")
	pair("docker0", "vethbox")
	h.Addr("eth0", "192.168.1.20/24")
	h.Addr("docker0", "172.17.0.1/16")
	h.Route("default", "via", "192.168.1.1")
	look := func(want string) {
		t.Helper()
		// The system takes up to a second to notice.
		for strings.Contains(h.Output(t.Context(), "ip", "-o", "link", "show", "eth0"), "NO-CARRIER") != (want == "none") {
			if t.Context().Err() != nil {
				t.Fatal("the system never noticed")
			}
		}
		h.Do(func() { deviceExpect(t, systemDevice().interfacesCheck(), new(Env), want) })
	}
	look("ok")
	h.IP("link", "set", "cable", "down")
	look("none")
	h.IP("link", "set", "cable", "up")
	look("ok")
}
