package netif

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// resolvectlTimeout bounds a call of systemd's command.
	resolvectlTimeout = 10 * time.Second
	// lookEvery is how often it is seen whether another program has written the file, and
	// maxRetakes how often it is then made ours again, in number: two that insist must
	// not go on for ever.
	lookEvery  = 5 * time.Second
	maxRetakes = 50
)

// NamesConfig says which names the machine asks for where.
type NamesConfig struct {
	Interface string
	// Server answers names in Domains; with /etc/resolv.conf it is asked for all names.
	Server  netip.Addr
	Domains []string
	// Guard is the command that calls Guard, with the file's and the run's names added;
	// without one, nothing is brought back after a kill before the next start.
	Guard []string
	// File is ResolvConf if it is empty.
	File   string
	Logger *slog.Logger // nil: discard
}

// Names are what the machine was told of names. Close takes it back.
type Names struct {
	cfg  NamesConfig
	how  string
	conf *resolvConf // nil: systemd-resolved does it

	guard    *exec.Cmd
	lifeline io.Closer // the guard works when it ends

	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards upstream
	upstream Upstream
}

// SetNames tells the machine. It errs if it cannot be told; nothing is changed then.
func SetNames(ctx context.Context, cfg NamesConfig) (*Names, error) {
	if cfg.File == "" {
		cfg.File = ResolvConf
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Names{cfg: cfg, cancel: func() {}}
	if usesResolved(cfg.File) {
		err := tellResolved(ctx, cfg)
		if err == nil {
			n.how = "systemd-resolved"
			return n, nil
		}
		cfg.Logger.Info("systemd-resolved does not take names", "err", err)
		forgetResolved(ctx, cfg) // what it took: it is asked for all other names, and must not ask us
	}
	n.how, n.conf = cfg.File, newResolvConf(cfg.File, cfg.Interface)
	if err := n.startGuard(); err != nil {
		return nil, err
	}
	if err := n.take(); err != nil {
		n.endGuard()
		return nil, err
	}
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n.cancel = cancel
	n.wg.Go(func() { n.watch(watch) })
	return n, nil
}

// How says by what names are asked for: "systemd-resolved" or a file.
func (n *Names) How() string { return n.how }

// Forwards reports whether the server is asked for all names, and has to ask others.
func (n *Names) Forwards() bool { return n.conf != nil }

// Ask asks the servers that the machine had before. It errs if none answers.
func (n *Names) Ask(ctx context.Context, query []byte, stream bool) ([]byte, error) {
	n.mu.Lock()
	up := n.upstream
	n.mu.Unlock()
	return up.Ask(ctx, query, stream)
}

func (n *Names) take() error {
	former, err := n.conf.take(n.cfg.Server)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.upstream.Servers = servers(former)
	n.mu.Unlock()
	return nil
}

// watch makes the file ours again when a program, as one that manages networks, has
// written another.
func (n *Names) watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for range maxRetakes {
		for ours := true; ours; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			raw, err := readBounded(n.conf.path)
			_, ours = markOf(raw)
			ours = ours || err != nil
		}
		if err := n.take(); err != nil {
			n.cfg.Logger.Warn("names are not asked for here any more", "file", n.conf.path, "err", err)
			return
		}
		n.cfg.Logger.Info("another program wrote the file; it is ours again", "file", n.conf.path)
	}
	n.cfg.Logger.Warn("another program writes the file again and again; it is not looked at any more", "file", n.conf.path)
}

// Close takes back what the machine was told. It errs if the file cannot be brought
// back, or was changed by hand.
func (n *Names) Close() error {
	n.cancel()
	n.wg.Wait()
	if n.conf == nil {
		return nil
	}
	defer n.endGuard()
	if err := restore(n.conf.path, n.conf.run); err != nil {
		return err
	}
	raw, err := readBounded(n.conf.path)
	if _, ours := markOf(raw); err != nil || ours {
		return nil //nolint:nilerr // then it cannot be told whose it is
	}
	if names(raw, n.cfg.Server) {
		return fmt.Errorf("%w: %s", ErrEdited, n.conf.path)
	}
	_ = os.Remove(n.conf.kept()) // what another program wrote is newer
	return nil
}

func (n *Names) endGuard() {
	if n.lifeline != nil {
		n.lifeline.Close()
		_ = n.guard.Wait() // it has nothing to say
	}
}

// startGuard starts the process that brings the file back if this one cannot.
func (n *Names) startGuard() error {
	if len(n.cfg.Guard) == 0 {
		return nil
	}
	cmd := exec.Command(n.cfg.Guard[0], append(n.cfg.Guard[1:], n.conf.path, n.conf.run)...) //nolint:noctx // it is to outlive this process
	cmd.Dir = "/"
	cmd.SysProcAttr = ownSession()
	line, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("netif: start the guard of %s: %w", n.conf.path, err)
	}
	n.guard, n.lifeline = cmd, line
	return nil
}

// Guard waits until line ends, which is when the process that holds its other end does,
// and brings a file back if it is still that of a run. It errs if it cannot.
func Guard(line io.Reader, path, run string) error {
	_, _ = io.Copy(io.Discard, line) // an error is an end, too
	return restore(path, run)
}

// usesResolved reports whether this machine's programs ask systemd-resolved.
func usesResolved(file string) bool {
	if _, err := exec.LookPath("resolvectl"); err != nil {
		return false
	}
	if to, err := filepath.EvalSymlinks(file); err == nil && strings.HasPrefix(to, "/run/systemd/resolve/stub-") {
		return true
	}
	raw, err := readBounded(file)
	if err != nil {
		return false
	}
	all := servers(raw)
	for _, s := range all {
		if a := s.Addr().String(); a != "127.0.0.53" && a != "127.0.0.54" {
			return false
		}
	}
	return len(all) > 0
}

// forgetResolved takes back what tellResolved may have told before it failed.
func forgetResolved(ctx context.Context, cfg NamesConfig) {
	ctx, cancel := context.WithTimeout(ctx, resolvectlTimeout)
	defer cancel()
	if err := exec.CommandContext(ctx, "resolvectl", "revert", cfg.Interface).Run(); err != nil {
		cfg.Logger.Debug("systemd-resolved not reverted", "err", err)
	}
}

// tellResolved has systemd-resolved ask the server for the domains, and not for others.
func tellResolved(ctx context.Context, cfg NamesConfig) error {
	ctx, cancel := context.WithTimeout(ctx, resolvectlTimeout)
	defer cancel()
	domains := []string{"domain", cfg.Interface}
	for _, d := range cfg.Domains {
		domains = append(domains, "~"+d)
	}
	for _, args := range [][]string{
		{"dns", cfg.Interface, cfg.Server.String()}, domains,
		{"default-route", cfg.Interface, "no"}, {"dnssec", cfg.Interface, "no"}, // nobody signs these names
	} {
		cmd := exec.CommandContext(ctx, "resolvectl", args...)
		cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("netif: resolvectl %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
