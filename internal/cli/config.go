package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kithproject/kith/internal/control"
	"github.com/kithproject/kith/rendezvous"
)

// settings is the file config.json of a state directory.
type settings struct {
	Name     string   `json:"name,omitempty"`
	Port     uint16   `json:"port,omitempty"` // UDP port number of the tunnel
	NoLAN    bool     `json:"no_lan,omitempty"`
	NoDHT    bool     `json:"no_dht,omitempty"`
	NoMQTT   bool     `json:"no_mqtt,omitempty"` // the brokers are kept, and left alone
	DHT      []string `json:"dht,omitempty"`     // host:port of nodes of a private table
	Loopback bool     `json:"loopback,omitempty"`
	Inbox    string   `json:"inbox,omitempty"` // folder for files that others send; absolute
	MQTT     []broker `json:"mqtt,omitempty"`

	NoWaku      bool     `json:"no_waku,omitempty"` // the nodes are kept, and left alone
	Waku        []string `json:"waku,omitempty"`    // multiaddrs
	WakuCluster uint16   `json:"waku_cluster,omitempty"`
	WakuShards  uint16   `json:"waku_shards,omitempty"`
	WakuShard   uint16   `json:"waku_shard,omitempty"`

	Hubs          []string     `json:"hubs,omitempty"` // whole addresses, with their secrets
	STUN          []string     `json:"stun,omitempty"` // host:port
	TURN          []turnServer `json:"turn,omitempty"`
	Relay         string       `json:"relay,omitempty"` // a kith.RelayPolicy
	NoLanes       bool         `json:"no_lanes,omitempty"`
	NoPortMapping bool         `json:"no_port_mapping,omitempty"`
	NoStrangers   bool         `json:"no_strangers,omitempty"`
	Lazy          bool         `json:"lazy,omitempty"`
	Mail          bool         `json:"mail,omitempty"` // sealed letters are kept for paired devices
}

// broker is one MQTT broker to meet at.
type broker struct {
	URL      string `json:"url"` // without user and password
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
	CAFile   string `json:"ca_file,omitempty"`
}

// maxSettings is the largest config.json that is read, in bytes.
const maxSettings = 64 << 10

func loadSettings(dir string) (settings, error) {
	path := filepath.Join(dir, "config.json")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return settings{}, nil
	}
	if err != nil {
		return settings{}, fmt.Errorf("settings: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err != nil {
		return settings{}, fmt.Errorf("settings: %w", err)
	}
	if len(raw) > maxSettings {
		return settings{}, usage(fmt.Sprintf("%s is larger than %d bytes", path, maxSettings), "move it aside and set what you need with kith config")
	}
	var s settings
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return settings{}, usage(fmt.Sprintf("%s cannot be read: %v", path, err), "correct it, or move it aside and set what you need with kith config")
	}
	return s, nil
}

// save writes the settings so that a crash leaves the old or the new ones.
func (s settings) save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	f, err := os.CreateTemp(dir, "config-*.tmp") // mode 0600
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // not there if all went well
	_, err = f.Write(append(raw, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, "config.json"))
	}
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

// exchanges makes the media that the settings name.
func (s settings) exchanges(log *slog.Logger) ([]rendezvous.Exchange, error) {
	var out []rendezvous.Exchange
	if s.NoMQTT {
		return nil, nil
	}
	for _, b := range s.MQTT {
		ex, err := b.open(log)
		if err != nil {
			for _, made := range out {
				made.Close()
			}
			return nil, err
		}
		out = append(out, ex)
	}
	return out, nil
}

func (e *env) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show or change this device's settings",
		Long: `Show or change this device's settings. A running kith up uses them after its next
start; a new hub at once.
` + exitHelp,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return e.showConfig() },
	}
	cmd.AddCommand(
		e.settingCommand("name NAME", "What other devices call this one", func(s *settings, v string) error {
			s.Name = v
			return nil
		}),
		e.settingCommand("port PORT", "The tunnel's UDP port (0: any)", func(s *settings, v string) error {
			port, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				return usage(fmt.Sprintf("%q is not a port", v), "a port is a number from 0 to 65535")
			}
			s.Port = uint16(port)
			return nil
		}),
		e.settingCommand("inbox FOLDER", "Where files go that other devices send", func(s *settings, v string) error {
			abs, err := filepath.Abs(v)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(abs, 0o700); err != nil {
				return usage(fmt.Sprintf("%s cannot be made: %v", v, err), "choose a folder that this user may write to")
			}
			s.Inbox = abs
			return nil
		}),
		e.settingCommand("loopback on|off", "Whether two nodes on this machine may meet", func(s *settings, v string) error {
			return onOff(v, func(on bool) { s.Loopback = on })
		}),
		e.settingCommand("relay auto|never|always", "When data may go through a relay", relaySetting),
		e.settingCommand("lazy on|off", "Whether connections sleep, without keepalives, while they carry nothing", func(s *settings, v string) error {
			return onOff(v, func(on bool) { s.Lazy = on })
		}),
		e.settingCommand("mail on|off", "Whether to keep sealed letters that paired devices leave for others", func(s *settings, v string) error {
			return onOff(v, func(on bool) { s.Mail = on })
		}),
		e.settingCommand("portmap on|off", "Whether to ask the router for a port (PCP, NAT-PMP, UPnP)", func(s *settings, v string) error {
			return onOff(v, func(on bool) { s.NoPortMapping = !on })
		}),
		e.settingCommand("strangers on|off", "Whether kith doctor may ask servers of network time and example.com", func(s *settings, v string) error {
			return onOff(v, func(on bool) { s.NoStrangers = !on })
		}),
		e.settingCommand("lanes on|off", "Whether what is large may leave the tunnel for a direct TLS connection", func(s *settings, v string) error {
			return onOff(v, func(on bool) { s.NoLanes = !on })
		}),
		e.rendezvousCommand(), e.dhtCommand(), e.mqttCommand(), e.wakuCommand(), e.hubSettingCommand(), e.stunCommand(), e.turnCommand(),
	)
	return cmd
}

func onOff(v string, set func(bool)) error {
	switch v {
	case "on":
		set(true)
	case "off":
		set(false)
	default:
		return usage(fmt.Sprintf("%q is neither on nor off", v), "say on, or off")
	}
	return nil
}

func (e *env) settingCommand(use, short string, set func(*settings, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.configure(cmd.Context(), func(s *settings) error { return set(s, args[0]) })
		},
	}
}

// configure changes the settings for a person, who is told when they count.
func (e *env) configure(ctx context.Context, set func(*settings) error) error {
	if err := e.change(set); err != nil {
		return err
	}
	dir, err := e.dir()
	if err != nil {
		return err
	}
	if _, err := control.Connect(ctx, dir); err == nil {
		fmt.Fprintln(e.err, "kith up is running: it uses this after its next start.")
	}
	return nil
}

// change changes the settings on disk.
func (e *env) change(set func(*settings) error) error {
	dir, err := e.dir()
	if err != nil {
		return err
	}
	s, err := loadSettings(dir)
	if err != nil {
		return err
	}
	if err := set(&s); err != nil {
		return err
	}
	return s.save(dir)
}

func (e *env) showConfig() error {
	dir, err := e.dir()
	if err != nil {
		return err
	}
	s, err := loadSettings(dir)
	if err != nil {
		return err
	}
	s.hideSecrets()
	enc := json.NewEncoder(e.out)
	enc.SetIndent("", "  ")
	return enc.Encode(s)
}

func (e *env) mqttCommand() *cobra.Command {
	var user, passwordFile, caFile string
	var remove bool
	cmd := &cobra.Command{
		Use:   "mqtt URL",
		Short: "Also meet at an MQTT broker",
		Long: `Also meet at an MQTT 5 broker: mqtt://host, mqtts://host, ws://host/path or
wss://host/path. It sees that somebody meets, never who or what. The password is
asked for, or read from --password-file; it is kept in the state directory.
` + exitHelp,
		Example: "  kith config mqtt mqtts://broker.example:8883 --user anna\n  kith config mqtt --remove mqtts://broker.example:8883",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remove {
				return e.configure(cmd.Context(), func(s *settings) error { return s.removeBroker(args[0]) })
			}
			b, err := e.readBroker(cmd.Context(), args[0], user, passwordFile, caFile)
			if err != nil {
				return err
			}
			return e.configure(cmd.Context(), func(s *settings) error {
				_ = s.removeBroker(b.URL)
				s.MQTT = append(s.MQTT, b)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "user `name` at the broker")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "read the password from the first line of a `file` (- for standard input)")
	cmd.Flags().StringVar(&caFile, "ca", "", "trust the certificate authority in a PEM `file` instead of the system's")
	cmd.Flags().BoolVar(&remove, "remove", false, "no longer meet there")
	return cmd
}

func (s *settings) removeBroker(address string) error {
	for i, b := range s.MQTT {
		if b.URL == address {
			s.MQTT = append(s.MQTT[:i:i], s.MQTT[i+1:]...)
			return nil
		}
	}
	return usage(address+" is not among the brokers", "kith config shows them")
}

func (e *env) readBroker(ctx context.Context, address, user, passwordFile, caFile string) (broker, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return broker{}, usage("that is not a broker's URL", "for example mqtts://broker.example:8883")
	}
	if u.User != nil {
		return broker{}, usage("a user or password does not belong in the URL: other users of this machine can see it", "use --user and --password-file")
	}
	b := broker{URL: address, User: user}
	if caFile != "" {
		if b.CAFile, err = filepath.Abs(caFile); err != nil {
			return broker{}, err
		}
	}
	if user != "" || passwordFile != "" {
		if b.Password, err = e.readPassword(ctx, passwordFile); err != nil {
			return broker{}, err
		}
	}
	ex, err := b.open(nil) // names what cannot be used before it is saved
	if err != nil {
		return broker{}, err
	}
	return b, ex.Close()
}

func (e *env) readPassword(ctx context.Context, file string) (string, error) {
	switch {
	case file == "" && e.onTerminal():
		fmt.Fprint(e.err, "Password: ")
		raw, err := term.ReadPassword(int(e.in.Fd()))
		fmt.Fprintln(e.err)
		return string(raw), err
	case file == "" || file == "-":
		text, err := newLines(e.in).next(ctx)
		if errors.Is(err, io.EOF) {
			return "", usage("no password was given", "use --password-file, or type it when asked")
		}
		return strings.TrimRight(text, "\r\n"), err
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", usage("cannot read the password: "+err.Error(), "")
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	return strings.TrimRight(first, "\r"), nil
}
