package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/control"
)

// turnServer is one relay of the settings.
type turnServer struct {
	URL      string `json:"url"`
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
	Secret   string `json:"secret,omitempty"`
}

// reach fills what a node needs to be reached from outside.
func (s settings) reach(cfg *kith.Config) error {
	for _, text := range s.Hubs {
		a, err := hubaddr.Parse(text)
		if err != nil {
			return usage("the settings name a hub that cannot be read", "kith config hub --remove all, then give its address again")
		}
		cfg.Hubs = append(cfg.Hubs, a)
	}
	cfg.STUN = s.STUN
	if !s.NoWaku {
		cfg.Waku, cfg.WakuNetwork = s.Waku, s.wakuNetwork()
	}
	for _, t := range s.TURN {
		cfg.TURN = append(cfg.TURN, kith.TURNServer{URL: t.URL, User: t.User, Password: t.Password, Secret: t.Secret})
	}
	cfg.Relay, cfg.NoPortMapping, cfg.Lazy, cfg.NoLanes = kith.RelayPolicy(s.Relay), s.NoPortMapping, s.Lazy, s.NoLanes
	cfg.NoStrangers = s.NoStrangers
	return nil
}

func (e *env) hubSettingCommand() *cobra.Command {
	var remove string
	cmd := &cobra.Command{
		Use:   "hub [ADDRESS]",
		Short: "Meet at a hub, and be reached through it",
		Long: `Use a hub: a server of yours or a friend's that runs kith hub. Devices meet
there, learn how they look from outside, and fall back on it as a relay. It sees
sealed messages and WireGuard packets, never what is in them.

ADDRESS is what kith hub printed: kith-hub:HOST#SECRET. Whoever has it may use the
hub. Without ADDRESS it is read from the terminal or standard input, which keeps
it out of the shell's history. Several hubs are all used at once; another address of
the same host takes the place of the one before.
` + exitHelp,
		Example: "  kith config hub kith-hub:hub.example#abc…\n  kith config hub --remove hub.example",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remove != "" {
				return e.configure(cmd.Context(), func(s *settings) error { return s.removeHub(remove) })
			}
			text, err := e.hubText(cmd.Context(), args)
			if err != nil {
				return err
			}
			a, err := hubaddr.Parse(text)
			if err != nil {
				return usage("that is not a hub's address", "it begins with kith-hub: and is printed by kith hub address")
			}
			err = e.change(func(s *settings) error {
				s.Hubs = slices.DeleteFunc(s.Hubs, func(old string) bool { return sameHub(old, a.Host) })
				s.Hubs = append(s.Hubs, a.Text())
				return nil
			})
			if err != nil {
				return err
			}
			return e.useHub(cmd.Context(), a)
		},
	}
	cmd.Flags().StringVar(&remove, "remove", "", "forget the hub at `HOST`, or all")
	return cmd
}

// useHub has a running kith up use a hub from now on.
func (e *env) useHub(ctx context.Context, a hubaddr.Address) error {
	dir, err := e.dir()
	if err != nil {
		return err
	}
	c, err := control.Connect(ctx, dir)
	if errors.Is(err, control.ErrNoDaemon) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := c.Do(ctx, control.Request{Op: control.OpUseHub, Hub: a.Text()}); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "kith up uses the hub %s from now on.\n", a.Host)
	return nil
}

func (e *env) hubText(ctx context.Context, args []string) (string, error) {
	if len(args) == 1 && args[0] != "-" {
		return args[0], nil
	}
	if e.onTerminal() {
		fmt.Fprint(e.err, "Hub's address: ")
	}
	text, err := newLines(e.in).next(ctx)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSpace(text), nil
}

// keepHub writes the hub of a code that led to a pair into the settings, unless
// there is a hub already: the other device is met there.
func (e *env) keepHub(hints []string, quiet bool) error {
	a, ok := hubaddr.FromHints(hints)
	if !ok {
		return nil
	}
	kept := false
	err := e.change(func(s *settings) error {
		if len(s.Hubs) == 0 {
			s.Hubs, kept = []string{a.Text()}, true
		}
		return nil
	})
	if kept && !quiet {
		fmt.Fprintf(e.out, "The code named the hub %s: it is used from now on (kith config hub --remove %s ends that).\n", a.Host, a.Host)
	}
	return err
}

func sameHub(text, host string) bool {
	a, err := hubaddr.Parse(text)
	return err == nil && a.Host == host
}

func (s *settings) removeHub(host string) error {
	if host == "all" {
		s.Hubs = nil
		return nil
	}
	before := len(s.Hubs)
	s.Hubs = slices.DeleteFunc(s.Hubs, func(text string) bool { return sameHub(text, strings.ToLower(host)) })
	if len(s.Hubs) == before {
		return usage(fmt.Sprintf("no hub at %q is set", host), "kith config shows them")
	}
	return nil
}

func (e *env) stunCommand() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use:     "stun HOST:PORT",
		Short:   "Also ask this STUN server how this device looks from outside",
		Example: "  kith config stun stun.example:3478",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if host, port, err := net.SplitHostPort(args[0]); err != nil || host == "" || port == "" {
				return usage(fmt.Sprintf("%q is not HOST:PORT", args[0]), "for example stun.example:3478")
			}
			return e.configure(cmd.Context(), func(s *settings) error {
				s.STUN = slices.DeleteFunc(s.STUN, func(old string) bool { return old == args[0] })
				if !remove {
					s.STUN = append(s.STUN, args[0])
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "forget it")
	return cmd
}

func (e *env) turnCommand() *cobra.Command {
	var (
		user, file     string
		secret, remove bool
	)
	cmd := &cobra.Command{
		Use:   "turn URL",
		Short: "Also use this TURN server as a relay",
		Long: `Use a TURN server such as coturn: turn:host, turn:host?transport=tcp or turns:host.
The password, or with --secret the shared secret of time-limited credentials, is
asked for, or read from --password-file.
` + exitHelp,
		Example: "  kith config turn turns:turn.example:5349 --user anna",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !strings.HasPrefix(args[0], "turn:") && !strings.HasPrefix(args[0], "turns:") {
				return usage(fmt.Sprintf("%q is not a TURN server's URL", args[0]), "for example turns:turn.example:5349")
			}
			t := turnServer{URL: args[0], User: user}
			if !remove {
				word, err := e.readPassword(cmd.Context(), file)
				if err != nil {
					return err
				}
				if secret {
					t.Secret = word
				} else {
					t.Password = word
				}
			}
			return e.configure(cmd.Context(), func(s *settings) error {
				s.TURN = slices.DeleteFunc(s.TURN, func(old turnServer) bool { return old.URL == t.URL })
				if !remove {
					s.TURN = append(s.TURN, t)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "user `NAME`")
	cmd.Flags().StringVar(&file, "password-file", "", "`FILE` with the password in its first line; - is standard input")
	cmd.Flags().BoolVar(&secret, "secret", false, "what is read is the server's shared secret")
	cmd.Flags().BoolVar(&remove, "remove", false, "forget it")
	return cmd
}

// hideSecrets replaces what must not be shown.
func (s *settings) hideSecrets() {
	for i := range s.MQTT {
		if s.MQTT[i].Password != "" {
			s.MQTT[i].Password = "(set)"
		}
	}
	for i := range s.TURN {
		if s.TURN[i].Password != "" {
			s.TURN[i].Password = "(set)"
		}
		if s.TURN[i].Secret != "" {
			s.TURN[i].Secret = "(set)"
		}
	}
	for i, text := range s.Hubs {
		if a, err := hubaddr.Parse(text); err == nil {
			s.Hubs[i] = a.String()
		}
	}
}

func relaySetting(s *settings, v string) error {
	p, err := kith.ParseRelayPolicy(v)
	if err != nil {
		return usage(fmt.Sprintf("%q is no relay policy", v), "auto, never and always are")
	}
	s.Relay = string(p)
	return nil
}
