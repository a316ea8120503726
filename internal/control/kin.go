package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/registry"
)

// The operations of introductions, own devices and new pairs.
const (
	OpIntroduce     = "introduce"     // Device to Peer; replies until both sides are done, or Wait
	OpIntroductions = "introductions" // made here and by others
	OpIntroAccept   = "intro-accept"  // by Number
	OpIntroDecline  = "intro-decline" // by Number
	OpIntroForget   = "intro-forget"  // lets a removed Device be introduced again
	OpOwn           = "own"           // Device is this user's own; Off: it is not
	OpVerify        = "verify"        // without Name its number; with it, compare
	OpRecent        = "recent"        // new pairs of the last 24 hours
	OpUndo          = "undo"          // one of them, by KinRequest.ID
)

// A KinRequest is what those operations need besides Request.Device and Number.
type KinRequest struct {
	Peer    string `json:"peer,omitempty"`    // introduce: the other device
	Off     bool   `json:"off,omitempty"`     // own
	ID      string `json:"id,omitempty"`      // undo: an ID or its first digits, or DEVICE:ID; no DEVICE before the colon is this one
	Vouched string `json:"vouched,omitempty"` // unpair: what becomes of devices that it introduced: keep (default) or remove
	Digits  string `json:"digits,omitempty"`  // verify: the number on the other device's screen
}

// A KinReply is what they answer.
type KinReply struct {
	Given    []kin.Given    `json:"given,omitzero"`
	Received []Introduction `json:"received,omitzero"`
	Removed  []Removed      `json:"removed,omitzero"`
	Begun    bool           `json:"begun,omitempty"`  // introduce: it was not under way before
	Number   string         `json:"number,omitempty"` // verify: twelve digits
	New      []kith.NewPair `json:"new,omitzero"`
	Undone   bool           `json:"undone,omitempty"`
	Vouched  []string       `json:"vouched,omitempty"` // unpair: names of devices that it introduced and that stay or went
	Dropped  bool           `json:"dropped,omitempty"` // unpair: they went
}

// An Introduction is one that another device makes to this one.
type Introduction struct {
	kin.Received
	From string `json:"from"` // what this device calls the introducer
}

// A Removed device does not come back by an introduction.
type Removed struct {
	ID   identity.DeviceID `json:"id"`
	Name string            `json:"name"`
}

// kin answers those operations.
func (s *Server) kin(ctx context.Context, st *stream, req Request) (Reply, error) {
	more := KinRequest{}
	if req.Kin != nil {
		more = *req.Kin
	}
	switch req.Op {
	case OpIntroduce:
		return s.introduce(ctx, st, req.Device, more.Peer)
	case OpIntroductions:
		return Reply{Kin: s.introductions()}, nil
	case OpIntroAccept, OpIntroDecline:
		decide := s.node.AcceptIntroduction
		if req.Op == OpIntroDecline {
			decide = s.node.DeclineIntroduction
		}
		r, err := decide(req.Number)
		if err != nil {
			return Reply{}, explainKin(err)
		}
		return Reply{Kin: &KinReply{Received: []Introduction{s.introduction(r)}}}, nil
	case OpIntroForget:
		id, err := s.node.Forget(req.Device)
		if errors.Is(err, registry.ErrNotFound) {
			return Reply{}, &Error{Kind: KindNotFound, Text: "no removed device is called " + clip(req.Device), Hint: "kith introductions --all lists them"}
		}
		if err != nil {
			return Reply{}, err
		}
		return Reply{Kin: &KinReply{Removed: []Removed{{ID: id, Name: s.node.RemovedName(id)}}}}, nil
	case OpOwn:
		d, err := s.node.SetOwn(req.Device, !more.Off)
		return Reply{Device: &d}, err
	case OpVerify:
		return s.verify(req.Device, more.Digits)
	case OpRecent:
		return Reply{Kin: &KinReply{New: s.node.Recent()}}, nil
	case OpUndo:
		return s.undo(ctx, more.ID)
	}
	return Reply{}, &Error{Kind: KindUsage, Text: "no such operation"}
}

// introduce begins, and tells the client how each side does until both are done or ctx
// ends. The introduction goes on by itself.
func (s *Server) introduce(ctx context.Context, st *stream, one, two string) (Reply, error) {
	changes, end := s.node.WatchIntroductions()
	defer end()
	g, begun, err := s.node.Introduce(one, two)
	if err != nil {
		return Reply{}, explainKin(err)
	}
	for last := ""; ; {
		g = s.named(s.given(g))
		reply := Reply{Kin: &KinReply{Given: []kin.Given{g}, Begun: begun}}
		if g.Over() {
			return reply, nil
		}
		if now := g.Ends[0].State.String() + g.Ends[1].State.String(); now != last {
			last = now
			if st.send(reply) != nil {
				return Reply{}, errTaken
			}
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return reply, nil
		}
	}
}

// given is an introduction of this device as it is by now.
func (s *Server) given(g kin.Given) kin.Given {
	all, _ := s.node.Introductions()
	for _, now := range all {
		if now.ID == g.ID {
			return now
		}
	}
	return g
}

// named gives both ends the names they have by now.
func (s *Server) named(g kin.Given) kin.Given {
	for i := range g.Ends {
		if d, err := s.node.Device(g.Ends[i].ID.String()); err == nil {
			g.Ends[i].Name = d.Name
		}
	}
	return g
}

func (s *Server) introductions() *KinReply {
	given, received := s.node.Introductions()
	out := &KinReply{Given: []kin.Given{}, Received: []Introduction{}, Removed: []Removed{}}
	for _, g := range given {
		out.Given = append(out.Given, s.named(g))
	}
	for _, r := range received {
		out.Received = append(out.Received, s.introduction(r))
	}
	for _, id := range s.node.Removed() {
		out.Removed = append(out.Removed, Removed{ID: id, Name: s.node.RemovedName(id)})
	}
	return out
}

func (s *Server) introduction(r kin.Received) Introduction {
	from := r.By.Short()
	if d, err := s.node.Device(r.By.String()); err == nil {
		from = d.Name
	}
	return Introduction{Received: r, From: from}
}

// verify shows a pair's check number, or compares it.
func (s *Server) verify(device, digits string) (Reply, error) {
	d, number, err := s.node.CheckNumber(device)
	if digits != "" && err == nil {
		d, err = s.node.Verify(device, digits)
	}
	if err != nil {
		return Reply{}, explainKin(err)
	}
	return Reply{Device: &d, Kin: &KinReply{Number: number}}, nil
}

// namesPair reports whether a reference of KinRequest.ID fits a new pair.
func namesPair(ref string, p kith.NewPair) bool {
	on, id, cut := strings.Cut(ref, ":")
	if !cut {
		id = ref
	}
	device := p.OnID.String()
	if p.OnID.IsZero() {
		device = ""
	}
	fits := !cut || on == device || p.On != "" && strings.EqualFold(on, p.On)
	return fits && len(id) >= 4 && strings.HasPrefix(p.ID.String(), id)
}

// undo ends a new pair. A device chooses the IDs of its own, so several may fit.
func (s *Server) undo(ctx context.Context, ref string) (Reply, error) {
	fit := slices.DeleteFunc(s.node.Recent(), func(p kith.NewPair) bool { return !namesPair(ref, p) })
	switch {
	case len(fit) == 0:
		return Reply{}, &Error{Kind: KindNotFound, Text: "no new pair has the id " + clip(ref), Hint: "kith devices --new lists them"}
	case len(fit) > 1:
		var refs []string
		for _, p := range fit {
			refs = append(refs, p.On+":"+p.ID.String())
		}
		return Reply{}, &Error{Kind: KindUsage, Text: fmt.Sprintf("%d new pairs have the id %s", len(fit), clip(ref)), Hint: "name one of them: " + strings.Join(refs, ", ")}
	}
	if fit[0].OnID.IsZero() {
		s.dismiss(ctx, fit[0].Peer.String(), endUnpaired)
	}
	done, err := s.node.Undo(ctx, fit[0].OnID, fit[0].ID)
	if err != nil {
		return Reply{}, explainKin(err)
	}
	s.expose.Recheck()
	return Reply{Kin: &KinReply{New: fit, Undone: done}}, nil
}

// clip bounds what is repeated from the arguments.
func clip(text string) string {
	const most = 40
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

// unpairDevice ends the pair with a device, and with those that it introduced if that is
// asked for.
func (s *Server) unpairDevice(ctx context.Context, d kith.Device, req Request) (Reply, error) {
	vouched, err := s.node.VouchedFor(d.ID.String())
	if err != nil {
		return Reply{}, err
	}
	s.dismiss(ctx, req.Device, endUnpaired)
	told, err := s.node.Unpair(ctx, req.Device)
	s.expose.Recheck()
	if err != nil {
		return Reply{}, err
	}
	remove := req.Kin != nil && req.Kin.Vouched == "remove"
	names, err := s.unpairVouched(ctx, vouched, remove)
	return Reply{Device: &d, Told: told, Kin: &KinReply{Vouched: names, Dropped: remove}}, err
}

// unpairVouched ends the pairs with devices that a device has introduced, if that was
// asked for, and returns their names.
func (s *Server) unpairVouched(ctx context.Context, vouched []kith.Device, remove bool) (names []string, err error) {
	for _, d := range vouched {
		names = append(names, d.Name)
		if !remove {
			continue
		}
		s.dismiss(ctx, d.ID.String(), endUnpaired)
		short, cancel := context.WithTimeout(ctx, vouchedWait)
		_, one := s.node.Unpair(short, d.ID.String())
		cancel()
		err = errors.Join(err, one)
	}
	return names, err
}

// vouchedWait is how long each of them has to confirm; it is told later otherwise.
const vouchedWait = time.Second

// kinText is an error without the names of packages.
func kinText(err error) string {
	return strings.TrimPrefix(strings.TrimPrefix(err.Error(), "kith: "), "kin: ")
}

// explainKin says what an error of an introduction means.
func explainKin(err error) error {
	switch {
	case errors.Is(err, kin.ErrMay):
		return &Error{Kind: KindRefused, Text: kinText(err)}
	case errors.Is(err, kin.ErrNotFound):
		return &Error{Kind: KindNotFound, Text: kinText(err), Hint: "kith introductions lists them; kith devices --new lists new pairs"}
	case errors.Is(err, kin.ErrOver):
		return &Error{Kind: KindNotFound, Text: "it was answered, or is over", Hint: "kith introductions lists them; kith devices --new lists new pairs"}
	case errors.Is(err, kin.ErrFull):
		return &Error{Kind: KindOther, Text: kinText(err), Hint: "wait until one is over: kith introductions"}
	case errors.Is(err, kith.ErrNumber):
		return &Error{Kind: KindRefused, Text: "the numbers differ: somebody may be between the two devices", Hint: "if you read them right, end the pair with kith unpair, and pair the two by a code"}
	case errors.Is(err, kith.ErrNoNumber):
		return &Error{Kind: KindOther, Text: kinText(err), Hint: "pair the two again: kith pair"}
	}
	return err
}
