package doctor

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
)

const (
	fewFiles    = 256      // open files that are too few for a busy device, a count
	smallBuffer = 64 << 10 // bytes
)

func (d *device) filesCheck() Check {
	return Check{
		Code: "device.files", Asks: "May this process open enough files?",
		Findings: []Finding{
			{ID: "used", Severity: Limit, Cause: "Nearly all files that kith may open are open, so that new connections will fail.", Fix: "Raise the limit (ulimit -n, or LimitNOFILE= of the service) and start kith again."},
			{ID: "few", Severity: Limit, Cause: "Kith may open so few files that many connections at once will fail.", Fix: "Raise the limit (ulimit -n 4096, or LimitNOFILE= of the service) and start kith again."},
		},
		Run: func(context.Context, *Env, string) Answer {
			open, most, err := d.limits()
			if err != nil {
				return Nothing(err.Error())
			}
			line := fmt.Sprintf("%d of %d files are open", open, most)
			switch {
			case open > most/10*9:
				return Fails("used", line)
			case most < fewFiles:
				return Fails("few", line)
			}
			return OK(line)
		},
	}
}

func (d *device) buffersCheck() Check {
	return Check{
		Code: "device.buffers", Asks: "Are the buffers of UDP sockets large enough?",
		Findings: []Finding{
			{ID: "small", Severity: Limit, Cause: "The system gives UDP sockets very small buffers, so that packets get lost at speed.", Fix: "Raise them: sudo sysctl -w net.core.rmem_default=212992 net.core.rmem_max=4194304."},
		},
		Run: func(_ context.Context, env *Env, _ string) Answer {
			size, err := d.buffer()
			if err != nil {
				return Nothing(err.Error())
			}
			evidence := []string{fmt.Sprintf("%d KiB to receive", size>>10)}
			if raw, err := d.read("/proc/net/udp"); err == nil && env.OpenErr == nil {
				if drops, ok := parseDrops(raw, env.Port); ok {
					evidence = append(evidence, fmt.Sprintf("port %d has dropped %d packets since it was opened", env.Port, drops))
				}
			}
			if size < smallBuffer {
				return Fails("small", evidence...)
			}
			return OK(evidence...)
		},
	}
}

// parseDrops finds in a /proc/net/udp how many packets a port's socket had no room for.
func parseDrops(raw []byte, port uint16) (uint64, bool) {
	if port == 0 {
		return 0, false
	}
	want := fmt.Sprintf(":%04X", port)
	for line := range bytes.Lines(raw) {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ref pointer drops
		f := strings.Fields(string(line))
		if len(f) == 13 && strings.HasSuffix(f[1], want) {
			n, err := strconv.ParseUint(f[12], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

func (d *device) offloadCheck() Check {
	return Check{
		Code: "device.offload", Asks: "Does the system send and receive many packets at once (GSO, GRO)?",
		Tells: "it tells whether the system takes and gives many packets at once (GSO, GRO), which saves work.",
		Run: func(context.Context, *Env, string) Answer {
			gso, gro, err := d.offload()
			switch {
			case err != nil:
				return Nothing(err.Error())
			case !gso:
				return OK("one by one, which is slower at high speed alone (no GSO)")
			case !gro:
				return OK("GSO, no GRO")
			}
			return OK("GSO and GRO")
		},
	}
}

// proxyNames are the variables that name proxies.
var proxyNames = []string{"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"} //nolint:gochecknoglobals // a table

// proxies are those that programs are told to use by the environment.
func (d *device) proxies() (set []string) {
	for _, name := range proxyNames {
		if d.getenv(name) != "" {
			set = append(set, name+" is set") // its value may have a password
		}
	}
	return set
}

func (d *device) proxyCheck() Check {
	return Check{
		Code: "device.proxy", Asks: "Does kith's environment name no proxy that programs are to use?",
		Findings: []Finding{
			{ID: "set", Severity: Note, Cause: "Programs are told to use a proxy, which kith does not use.", Fix: "If connections to hubs fail, let this device reach them without the proxy."},
		},
		Run: func(context.Context, *Env, string) Answer {
			if set := d.proxies(); len(set) > 0 {
				return Fails("set", set...)
			}
			return Nothing("no proxy is set in the environment (what a desktop has set for itself is not looked at)")
		},
	}
}
