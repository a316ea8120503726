package doctor

import (
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// A housing is what kith runs in, if that has a network of its own behind its machine's.
type housing struct {
	name, fix string
	nets      []netip.Prefix // that such networks are given where nobody says otherwise
}

func inContainer() housing {
	return housing{
		name: "a container",
		fix:  "Give the container the network of its machine (network_mode: host in Docker Compose, --network host for docker run and podman run).",
		nets: prefixes("172.16.0.0/12", "10.88.0.0/16"), // Docker, Podman
	}
}

func inWSL() housing {
	return housing{
		name: "WSL",
		fix:  "Write networkingMode=mirrored below [wsl2] into the file .wslconfig of the Windows user, and restart WSL with wsl --shutdown.",
		nets: prefixes("172.16.0.0/12"),
	}
}

func inVM() housing {
	return housing{
		name: "a virtual machine",
		fix:  "Set the network of the virtual machine to bridged in place of NAT.",
		nets: prefixes("10.0.2.0/24", "192.168.122.0/24"), // VirtualBox and QEMU, libvirt
	}
}

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// housed returns what kith runs in, if this device's address is of its own network.
func housed(env *Env, own netip.Addr) (housing, bool) {
	i, _ := interfaceOf(env, own)
	h := once(env, "housing", func() housing { return housingOf(os.DirFS("/"), os.Getenv, i.Name) })
	return h, slices.ContainsFunc(h.nets, func(p netip.Prefix) bool { return p.Contains(own) })
}

// housingOf reads what a system says of that, as Linux and its containers do.
func housingOf(root fs.FS, getenv func(string) string, iface string) housing {
	has := func(name string) bool {
		_, err := fs.Stat(root, name)
		return err == nil
	}
	text := func(name string) string {
		b, _ := fs.ReadFile(root, name) // of the kernel, some bytes long
		return strings.TrimSpace(string(b))
	}
	switch {
	case has(".dockerenv"), has("run/.containerenv"), getenv("container") != "":
		to, err := fs.ReadLink(root, "sys/class/net/"+iface)
		if err == nil && strings.Contains(to, "/virtual/") { // or it has the machine's network
			return inContainer()
		}
	case strings.Contains(strings.ToLower(text("proc/sys/kernel/osrelease")), "microsoft"):
		return inWSL()
	case slices.Contains([]string{"QEMU", "innotek GmbH"}, text("sys/class/dmi/id/sys_vendor")): // the second is VirtualBox
		return inVM()
	}
	return housing{}
}
