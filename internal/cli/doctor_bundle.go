package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/control"
)

// A bundleFile is a new file for a report of a bug, which is there only if it is whole.
type bundleFile struct {
	f    *os.File
	kept bool
}

// newBundleFile makes the file, before anything is looked at: nobody else can read it,
// and nothing that is there already is written over or followed.
func newBundleFile(path string) (*bundleFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, usage(path+" is there already", "name a file that is not, or remove it")
	case err != nil:
		return nil, usage("the bundle cannot be written: "+err.Error(), "choose a file in a folder that this user may write to")
	}
	return &bundleFile{f: f}, nil
}

// drop closes the file, and removes it if it is not whole.
func (b *bundleFile) drop() {
	_ = b.f.Close() // of one that is whole: again
	if !b.kept {
		_ = os.Remove(b.f.Name()) // there is nothing in it
	}
}

// writeBundle writes a report with pseudonyms; alone says that it was made without a node.
func (e *env) writeBundle(ctx context.Context, to *bundleFile, report doctor.Report, alone bool) error {
	p, err := e.pseudonyms(ctx, alone)
	if err != nil {
		return fmt.Errorf("bundle: what is to be replaced in it cannot be found out: %w", err)
	}
	raw, err := doctor.Bundle(p, kith.Version, report)
	if err != nil {
		return err
	}
	if _, err = to.f.WriteString(harmless(raw)); err == nil {
		err = to.f.Close()
	}
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	to.kept = true
	fmt.Fprintf(e.err, "Written to %s, with addresses, names and keys replaced.\nLook through it before you send it.\n", clean(to.f.Name()))
	return nil
}

// pseudonyms know what this device's node, its settings and its user are called, and all
// that they name.
func (e *env) pseudonyms(ctx context.Context, alone bool) (*doctor.Pseudonyms, error) {
	set, cfg, err := e.settled()
	if err != nil {
		return nil, err
	}
	all := append(set.private(), cfg.DoctorEnv().Names()...)
	if name, err := os.Hostname(); err == nil {
		all = append(all, doctor.Name{Text: name, Kind: "device"})
	}
	if u, err := user.Current(); err == nil {
		all = append(all, doctor.Name{Text: u.HomeDir, Kind: "folder"}, doctor.Name{Text: u.Username, Kind: "user"}, doctor.Name{Text: u.Name, Kind: "user"})
	}
	if alone { // no node could be opened, and the report names no device
		return replacing(all), nil
	}
	r, err := e.do(ctx, control.Request{Op: control.OpDoctor, Doctor: &control.DoctorRequest{Names: true}})
	if err != nil {
		return nil, err
	}
	if len(r.Names) == 0 { // it has one at least
		return nil, &control.Error{Kind: control.KindOther, Text: "the daemon does not say what devices are called", Hint: "it may be of another version: restart it with kith down and kith up"}
	}
	all = append(all, r.Names...)
	return replacing(all), nil
}

func replacing(all []doctor.Name) *doctor.Pseudonyms {
	p := new(doctor.Pseudonyms)
	for _, n := range all {
		p.Name(n.Text, n.Kind)
	}
	return p
}

// private is what of the settings tells who somebody is.
func (s settings) private() (out []doctor.Name) {
	secret := func(text string) {
		if len(text) > 3 { // shorter ones are words
			out = append(out, doctor.Name{Text: text, Kind: "secret"})
		}
	}
	out = append(out, doctor.Name{Text: s.Name, Kind: "device"}, doctor.Name{Text: s.Inbox, Kind: "folder"})
	for _, b := range s.MQTT {
		out = append(append(out, doctor.ServerNames(b.URL)...), doctor.Name{Text: b.User, Kind: "user"}, doctor.Name{Text: b.CAFile, Kind: "folder"})
		secret(b.Password)
	}
	for _, t := range s.TURN {
		secret(t.Password)
		secret(t.Secret)
	}
	for _, list := range [][]string{s.DHT, s.Waku} {
		for _, at := range list {
			out = append(out, doctor.ServerNames(at)...)
		}
	}
	for _, h := range s.Hubs {
		if a, err := hubaddr.Parse(h); err == nil {
			out = append(out, doctor.ServerNames(a.Host)...)
		}
	}
	return out
}
