package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/hub"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/control"
)

// hubFlags are the flags of kith hub that are not fields of hub.Config as they
// stand.
type hubFlags struct {
	cfg        hub.Config
	altIP      string
	relayIP    string
	relayPorts string
	dht        string
	dhtOthers  string
	mailQuota  byteSize
	mailClient byteSize
	json       bool
	systemd    bool
}

func (e *env) hubCommand() *cobra.Command {
	f := hubFlags{mailQuota: mail.DefaultMaxBytes, mailClient: mail.DefaultPerDepositor}
	cmd := &cobra.Command{
		Use:   "hub",
		Short: "Run a server of your own that devices meet at and connect through",
		Long: `Run a hub: devices that have its address meet at it, ask it how the internet sees
them, and connect through it where there is no direct way. It never has their keys.
Everything is on one port for TCP and UDP, 443 by default, so that it can be
reached from networks that let only the web through. The next UDP port answers
questions about NATs, and a third one is a way into the distributed hash table.
With --waku it is also a node of a Waku network, which is open to everybody.
With --mail it keeps sealed letters for devices that are away.

Whoever has the address may use the hub. It is printed at the start and by kith
hub address. Where ports below 1024 need a right: kith hub --systemd prints a
unit that grants it and nothing else.
` + exitHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.systemd {
				return e.hubUnit(cmd)
			}
			for _, name := range []string{"mail-quota", "mail-per-client", "mail-days"} {
				if !f.cfg.Mail && cmd.Flags().Changed(name) {
					return usage("--mail-quota, --mail-per-client and --mail-days are of use with --mail only", "kith hub --mail …")
				}
			}
			if min(f.mailQuota, f.mailClient) < mail.MaxBlob {
				return usage("--mail-quota and --mail-per-client are 64KiB at least, which is one long letter", "kith help hub")
			}
			if f.cfg.MailDays < 1 {
				return usage("--mail-days is 1 at least", "kith help hub")
			}
			return e.hub(cmd.Context(), &f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.cfg.Listen, "listen", hub.DefaultListen, "`address` and port for TCP and UDP")
	fl.StringVar(&f.cfg.Host, "host", "", "`name` or IP address that devices use (default: as last time, or this machine's)")
	fl.StringVar(&f.dht, "dht", string(hub.DHTMainline), "be a node of the distributed hash table: mainline, private or off")
	fl.Uint16Var(&f.cfg.DHTPort, "dht-port", hubaddr.DHTPort, "its UDP `port`; devices look for it at this one")
	fl.StringVar(&f.dhtOthers, "dht-bootstrap", "", "other nodes of it, `HOST:PORT`, separated by commas")
	fl.BoolVar(&f.cfg.Waku, "waku", false, "be a node of a Waku network, at a TCP port of its own and the main one")
	fl.Uint16Var(&f.cfg.WakuPort, "waku-port", hub.DefaultWakuPort, "its own TCP `port` for that (0: any)")
	fl.StringArrayVar(&f.cfg.WakuPeers, "waku-peer", nil, "another node that it exchanges messages with, a `MULTIADDR`; may be given up to 8 times")
	fl.BoolVar(&f.cfg.Mail, "mail", false, "keep sealed letters for devices that are away")
	fl.Var(&f.mailQuota, "mail-quota", "for that, disk space at most, a `size`")
	fl.Var(&f.mailClient, "mail-per-client", "of it, for letters from one address at most, a `size`")
	fl.IntVar(&f.cfg.MailDays, "mail-days", mail.Days, "for how many `days` they are kept")
	fl.IntVar(&f.cfg.AltPort, "alt-port", 0, "second UDP `port` (default: the next one; -1: none)")
	fl.StringVar(&f.altIP, "alt-ip", "", "second IP `address` of this machine, to tell devices more about their NAT")
	fl.StringVar(&f.relayIP, "relay-ip", "", "public IP `address` that relayed packets come from (default: that of --host)")
	fl.StringVar(&f.relayPorts, "relay-ports", fmt.Sprintf("%d-%d", hub.DefaultRelayMin, hub.DefaultRelayMax), "UDP ports `from-to` for relayed packets")
	fl.BoolVar(&f.cfg.AllowPrivate, "allow-private", false, "relay into private networks too: only for closed networks")
	fl.StringVar(&f.cfg.CertFile, "tls-cert", "", "certificate `file` in PEM (default: one of its own)")
	fl.StringVar(&f.cfg.KeyFile, "tls-key", "", "key `file` of the certificate in PEM")
	fl.IntVar(&f.cfg.Bandwidth, "bandwidth", 0, "`bytes` a second that one client may relay each way (default: no limit)")
	fl.IntVar(&f.cfg.MaxConns, "max-conns", hub.DefaultMaxConns, "TCP connections at most")
	fl.IntVar(&f.cfg.MaxConnsPerIP, "max-conns-per-ip", hub.DefaultMaxConnsPerIP, "TCP connections of one address at most")
	fl.IntVar(&f.cfg.MaxAllocations, "max-relays", hub.DefaultMaxAllocations, "relayed addresses at most")
	fl.IntVar(&f.cfg.AllocationsPerClient, "max-relays-per-client", hub.DefaultAllocationsPerClient, "relayed addresses of one client at most")
	fl.IntVar(&f.cfg.AllocationsPerIP, "max-relays-per-ip", hub.DefaultAllocationsPerIP, "relayed addresses of one address at most")
	fl.StringVar(&f.cfg.Metrics, "metrics", "", "`address` and port for Prometheus, such as 127.0.0.1:9443 (default: none)")
	fl.BoolVar(&f.json, "json", false, "print what listens as JSON")
	fl.BoolVar(&f.systemd, "systemd", false, "print a systemd unit that runs the hub with these flags, and do no more")
	cmd.AddCommand(e.hubAddressCommand())
	return cmd
}

func (e *env) hubAddressCommand() *cobra.Command {
	var host string
	var secrets bool
	cmd := &cobra.Command{
		Use: "address", Short: "Print the hub's address, which lets devices use it", Args: noArgs,
		Long: `Print the address of the hub of this state directory, as it ran last. With --secrets,
print the passwords that devices derive from it, for other servers (MQTT brokers,
coturn) that are to take over a part of its work.
` + exitHelp,
		RunE: func(*cobra.Command, []string) error {
			dir, err := e.hubDir()
			if err != nil {
				return err
			}
			a, err := hub.LastAddress(dir, host)
			if err != nil {
				return hubError(err)
			}
			if secrets {
				_, err = fmt.Fprintf(e.out, "mqtt-user %s\nmqtt-password %s\nturn-secret %s\n", hubaddr.MQTTUser, a.MQTTPassword(), a.TURNSecret())
				return err
			}
			_, err = fmt.Fprintln(e.out, a.Text())
			return err
		},
	}
	cmd.Flags().BoolVar(&secrets, "secrets", false, "print the passwords that devices derive from the address")
	cmd.Flags().StringVar(&host, "host", "", "another `name` or IP address for it")
	return cmd
}

// hubDir is where the hub keeps its state: apart from a device's, as it is not
// one.
func (e *env) hubDir() (string, error) {
	dir, err := e.dir()
	return filepath.Join(dir, "hub"), err
}

// config turns flags into a hub's configuration.
func (f *hubFlags) config() (cfg hub.Config, err error) {
	cfg = f.cfg
	for _, a := range []struct {
		flag, text string
		to         *netip.Addr
	}{{"--alt-ip", f.altIP, &cfg.AltIP}, {"--relay-ip", f.relayIP, &cfg.RelayIP}} {
		if a.text == "" {
			continue
		}
		if *a.to, err = netip.ParseAddr(a.text); err != nil {
			return cfg, usage(fmt.Sprintf("%s: %q is not an IP address", a.flag, a.text), "")
		}
	}
	if cfg.DHT, err = hub.ParseDHTMode(f.dht); err != nil {
		return cfg, usage(fmt.Sprintf("--dht: %q is none of mainline, private and off", f.dht), "")
	}
	if f.dhtOthers != "" {
		cfg.DHTBootstrap = strings.Split(f.dhtOthers, ",")
	}
	if len(cfg.WakuPeers) > 0 && !cfg.Waku {
		return cfg, usage("--waku-peer is of use with --waku only", "")
	}
	cfg.MailQuota, cfg.MailPerClient = int64(f.mailQuota), int64(f.mailClient)
	from, to, ok := strings.Cut(f.relayPorts, "-")
	first, err1 := strconv.ParseUint(from, 10, 16)
	last, err2 := strconv.ParseUint(to, 10, 16)
	if !ok || err1 != nil || err2 != nil || first == 0 || last < first {
		return cfg, usage(fmt.Sprintf("--relay-ports: %q is not a range of ports", f.relayPorts), "such as 49152-65535")
	}
	cfg.RelayMin, cfg.RelayMax = uint16(first), uint16(last)
	return cfg, nil
}

// hub runs a hub until the context ends.
func (e *env) hub(ctx context.Context, f *hubFlags) error {
	cfg, err := f.config()
	if err != nil {
		return err
	}
	if cfg.Dir, err = e.hubDir(); err != nil {
		return err
	}
	cfg.Logger = e.logger()
	h, err := hub.Open(ctx, cfg)
	if err != nil {
		return hubError(err)
	}
	if err := e.hubHello(h, cfg, f.json); err != nil {
		return errors.Join(err, h.Close())
	}
	return h.Serve(ctx)
}

// hubHello says what listens where.
func (e *env) hubHello(h *hub.Hub, cfg hub.Config, asJSON bool) error {
	a := h.Address()
	wakuAddr, wakuPort := h.WakuAddress()
	relays := make([]string, 0, 2)
	for _, ip := range h.RelayIPs() {
		relays = append(relays, ip.String())
	}
	if asJSON {
		return e.printJSON(struct {
			Event      string   `json:"event"`
			Address    string   `json:"address"`
			Host       string   `json:"host"`
			Port       uint16   `json:"port"`
			AltPort    uint16   `json:"alt_port,omitempty"`
			RelayIPs   []string `json:"relay_ips"`
			RelayPorts string   `json:"relay_ports"`
			Metrics    string   `json:"metrics,omitempty"`
			DHTPort    uint16   `json:"dht_port,omitempty"`
			Waku       string   `json:"waku,omitempty"` // a multiaddr
			WakuPort   uint16   `json:"waku_port,omitempty"`
			Mail       bool     `json:"mail,omitempty"`
		}{"hub", a.Text(), a.Host, a.Port, a.AltPort, relays, fmt.Sprintf("%d-%d", cfg.RelayMin, cfg.RelayMax), h.MetricsAddr(), h.DHTAddr().Port(), wakuAddr, wakuPort, cfg.Mail})
	}
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s "+format+"\n", append([]any{name}, args...)...)
	}
	fmt.Fprintf(&b, "kith hub %s is up\n", kith.Version)
	line("address", "%s", a.Text())
	line("", "whoever has it may use this hub: hand it on like a key")
	line(fmt.Sprintf("TCP %d", a.Port), "MQTT, also over WebSocket, and TURN; plain or in TLS")
	line(fmt.Sprintf("UDP %d", a.Port), "STUN and TURN")
	if a.AltPort != 0 {
		line(fmt.Sprintf("UDP %d", a.AltPort), "STUN")
	}
	if d := h.DHTAddr(); d.IsValid() {
		line(fmt.Sprintf("UDP %d", d.Port()), "DHT (%s)", cfg.DHT)
	} else if cfg.DHT != hub.DHTOff {
		line("note", "no DHT: UDP port %d is taken (--dht-port, --dht off)", cfg.DHTPort)
	}
	if wakuAddr != "" {
		line(fmt.Sprintf("TCP %d", wakuPort), "Waku; also at TCP %d, there over WebSocket too", a.Port)
		line("waku", "%s", wakuAddr)
	}
	line("relays", "from %s, UDP ports %d-%d", strings.Join(relays, " and "), cfg.RelayMin, cfg.RelayMax)
	if st, ok := h.MailStats(); ok {
		line("mail", "%s kept, %s of %s, for %d days", letters(st.Letters), size(uint64(st.Bytes)), size(uint64(st.MaxBytes)), cfg.MailDays)
	}
	if m := h.MetricsAddr(); m != "" {
		line("metrics", "http://%s/metrics", m)
	}
	private := func(ip netip.Addr) bool { return ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() }
	if ip, err := netip.ParseAddr(a.Host); err == nil && private(ip) {
		line("note", "%s is private: name what devices elsewhere can reach with --host", ip)
	} else if ips := h.RelayIPs(); len(ips) > 0 && private(ips[0]) {
		line("note", "%s is private: name the public address that relayed packets come from with --relay-ip", ips[0])
	}
	_, err := fmt.Fprint(e.out, b.String())
	return err
}

// hubError adds what a person can do.
func hubError(err error) error {
	told := func(kind control.Kind, hint string) error {
		return &control.Error{Kind: kind, Text: err.Error(), Hint: hint}
	}
	switch {
	case errors.Is(err, hub.ErrListen) && errors.Is(err, fs.ErrPermission):
		return told(control.KindOther, "ports below 1024 need a right: kith hub --systemd grants it, or choose another port with --listen :8443")
	case errors.Is(err, hub.ErrListen) && errors.Is(err, syscall.EADDRINUSE):
		return told(control.KindOther, "another program, perhaps another hub, has the port: choose another with --listen, --alt-port or --waku-port")
	case errors.Is(err, hub.ErrListen):
		return told(control.KindOther, "choose an address of this machine with --listen")
	case errors.Is(err, hub.ErrConfig), errors.Is(err, hubaddr.ErrAddress):
		return told(control.KindUsage, "kith help hub explains the flags")
	case errors.Is(err, fs.ErrNotExist):
		return &control.Error{Kind: control.KindNotFound, Text: "no hub has run with this state directory", Hint: "start it once with kith hub, or name its directory with --home"}
	}
	return err
}

// hubUnit prints a unit that may open low ports, write its state, use the network
// and nothing else.
func (e *env) hubUnit(cmd *cobra.Command) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if target, err := filepath.EvalSymlinks(exe); err == nil {
		exe = target
	}
	args := []string{systemdQuote(exe), "hub", "--home", "%S/kith"}
	for _, name := range []string{
		"listen", "host", "alt-port", "alt-ip", "relay-ip", "relay-ports", "allow-private", "tls-cert", "tls-key", "bandwidth",
		"max-conns", "max-conns-per-ip", "max-relays", "max-relays-per-client", "max-relays-per-ip", "metrics",
		"dht", "dht-port", "dht-bootstrap", "waku", "waku-port", "waku-peer", "mail", "mail-quota", "mail-per-client", "mail-days",
	} {
		fl := cmd.Flags().Lookup(name)
		if !fl.Changed {
			continue
		}
		values := []string{fl.Value.String()}
		if many, ok := fl.Value.(interface{ GetSlice() []string }); ok {
			values = many.GetSlice()
		}
		for _, v := range values {
			args = append(args, systemdQuote("--"+name+"="+v))
		}
	}
	files := strconv.Itoa(2 * (hub.DefaultMaxConns + hub.DefaultMaxAllocations))
	_, err = fmt.Fprintf(e.out, systemdUnit, strings.Join(args, " "), files)
	return err
}

// systemdQuote quotes an argument for ExecStart (systemd.service(5), systemd.syntax(7)).
func systemdQuote(s string) string {
	s = strings.NewReplacer("%", "%%", "$", "$$", `\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
	if strings.ContainsAny(s, " \t'\"\\;") {
		return `"` + s + `"`
	}
	return s
}

const systemdUnit = `# kith hub --systemd | sudo tee /etc/systemd/system/kith-hub.service
# sudo systemctl daemon-reload && sudo systemctl enable --now kith-hub
# sudo journalctl -u kith-hub    shows the address
[Unit]
Description=kith hub
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=%s
Restart=on-failure
RestartSec=2
DynamicUser=yes
StateDirectory=kith
StateDirectoryMode=0700
UMask=0077
LimitNOFILE=%s
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
`
