package kith

import (
	"context"
	"fmt"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/link/relay"
)

// A DiagnoseConfig says what Node.Diagnose looks at. The zero value is all that
// takes less than half a minute.
type DiagnoseConfig struct {
	// Device, if not empty, is the one paired device that it is about, by name or ID;
	// both ends look, and what is between them is measured.
	Device string
	// Force has the measurement take one kind of path: "relay", "direct" or "lan".
	Force string
	// Slow also makes checks that take long; Quick makes a few alone, for two seconds, which
	// ask servers of the settings alone.
	Slow, Quick bool
	// Only, if not empty, names the groups and checks that are wanted.
	Only []string
	// Events gets each result as it is known (doctor.Config.Events).
	Events func(doctor.Result)
}

// Diagnose looks for what is in the way between this device and others, and
// returns all that it found (package doctor). Connections go on meanwhile. It errs
// if the Device fits none, and for a Force that is no kind of path.
func (n *Node) Diagnose(ctx context.Context, cfg DiagnoseConfig) (doctor.Report, error) {
	env, err := n.doctorEnv(cfg)
	if err != nil {
		return doctor.Report{}, err
	}
	return doctor.Run(ctx, doctor.Config{
		Table: doctor.Table(), Env: env, Slow: cfg.Slow, Quick: cfg.Quick, Only: cfg.Only, Events: cfg.Events,
	}), nil
}

// doctorEnv is what checks may look at.
func (n *Node) doctorEnv(cfg DiagnoseConfig) (env *doctor.Env, err error) {
	env = n.cfg.DoctorEnv()
	env.Port, env.Force = n.socket.Port(), cfg.Force
	env.Behaviour = n.socket.NAT
	if cfg.Quick {
		env.NTP = nil
	}
	env.Interfaces = n.mon.Interfaces
	env.Relaying = n.reach.relays.names
	n.reach.mu.Lock()
	env.Hubs = append(env.Hubs[:0:0], n.reach.hubs...)
	n.reach.mu.Unlock()
	for _, ex := range n.media.Members() {
		env.Media = append(env.Media, doctor.MediumOf(ex, env.Hubs))
	}
	switch cfg.Force {
	case "", "relay", "direct", "lan":
	default:
		return nil, fmt.Errorf("kith: %q is no kind of path: relay, direct and lan are", cfg.Force)
	}
	env.Peers, err = n.doctorPeers(cfg.Device)
	return env, err
}

// DoctorEnv is what package doctor can look at with these settings and without a
// node, such as where none can be opened.
func (c Config) DoctorEnv() *doctor.Env {
	env := &doctor.Env{
		Dir: c.Dir, Root: isRoot(), Port: c.Port, Hubs: c.Hubs, STUN: c.STUN, Relay: string(c.Relay), NoPortMapping: c.NoPortMapping,
		Strangers: !c.NoStrangers, Loopback: c.Loopback,
		NTP: doctor.DefaultNTP(), Pacer: doctor.NewPacer(), Logger: c.Logger,
	}
	for _, t := range c.TURN {
		env.TURN = append(env.TURN, t.config())
	}
	return env
}

// config is a TURN server as a relay's client takes it.
func (t TURNServer) config() relay.Config {
	cfg := relay.Config{URL: t.URL, User: t.User, Password: t.Password}
	if t.Secret != "" {
		cfg.Secret = []byte(t.Secret)
	}
	return cfg
}
