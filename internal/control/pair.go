package control

import (
	"context"
	"fmt"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
)

// pair runs an offer or a join: the client sees each step and answers the
// question for the check number. A client that goes away cancels.
func (s *Server) pair(st *stream, req Request) (Reply, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	in := inputs(ctx, st)
	var notes *notes
	if req.Offline {
		notes = newNotes(ctx)
		defer notes.close()
	}
	p, err := s.begin(ctx, req, notes.exchange())
	if err != nil {
		return Reply{}, err
	}
	defer p.Close()
	if req.Op == OpOffer {
		c := p.Code()
		offer := Offer{Words: c.Words(), Number: c.Number(), URI: c.URI(), Expiry: c.Expiry()}
		if st.send(Reply{Offer: &offer}) != nil {
			return Reply{}, errTaken
		}
	}
	looking := time.NewTicker(mediaEvery)
	defer looking.Stop()
	if req.Offline {
		looking.Stop()
	}
	for {
		select {
		case n := <-notes.out():
			if st.send(Reply{Note: &n}) != nil {
				return Reply{}, errTaken
			}
		case <-looking.C:
			if st.send(Reply{Pair: &PairStep{Kind: "media", Media: p.Media()}}) != nil {
				return Reply{}, errTaken
			}
		case ev, ok := <-p.Events():
			if !ok {
				return s.outcome(ctx, st, p)
			}
			looking.Stop() // somebody is there
			found := step(ev)
			found.Media = p.Media()
			if st.send(Reply{Pair: found}) != nil {
				return Reply{}, errTaken
			}
			if ev.Kind == pairing.EventPaired || ev.Kind == pairing.EventFailed {
				if n, ok := notes.last(ctx, p); ok && st.send(Reply{Note: &n}) != nil {
					return Reply{}, errTaken
				}
				return s.outcome(ctx, st, p)
			}
		case i, ok := <-in:
			if !ok {
				return Reply{}, errTaken
			}
			if i.Cancel {
				p.Cancel()
			}
			if err := notes.give(i.Note); err != nil {
				if st.send(Reply{Pair: &PairStep{Kind: "wrong-note", Reason: err.Error()}}) != nil {
					return Reply{}, errTaken
				}
			}
			if i.Accept == nil {
				continue
			}
			if err := p.Accept(*i.Accept); err != nil {
				if st.send(Reply{Pair: &PairStep{Kind: "wrong-check", Reason: err.Error()}}) != nil {
					return Reply{}, errTaken
				}
			}
		case <-s.ctx.Done():
			return Reply{}, &Error{Kind: KindOther, Text: "the daemon is stopping"}
		}
	}
}

// mediaEvery is how often a client hears how the media do while nobody is found.
const mediaEvery = 500 * time.Millisecond

func (s *Server) begin(ctx context.Context, req Request, only rendezvous.Exchange) (*kith.Pairing, error) {
	if req.Op == OpJoin {
		c, err := code.Parse(req.Code, time.Now())
		if err != nil {
			return nil, err
		}
		cfg := kith.JoinConfig{AutoAccept: req.Yes, Patience: req.Wait, Exchange: only, Endpoints: req.Endpoints, Hidden: req.Hidden}
		if only != nil {
			cfg.Lifetime, cfg.Patience = code.MaxLifetime, code.MaxLifetime
		}
		return s.node.Join(ctx, c, cfg)
	}
	method := map[string]code.Method{"": code.MethodWords, "words": code.MethodWords, "qr": code.MethodQR, "number": code.MethodNumber}[req.Method]
	if method == 0 {
		return nil, &Error{Kind: KindUsage, Text: fmt.Sprintf("%q is not a form of code", req.Method), Hint: "words, qr or number"}
	}
	if only != nil && req.Lifetime == 0 {
		req.Lifetime = code.MaxLifetime
		if method == code.MethodNumber {
			req.Lifetime = code.MaxNumberLifetime
		}
	}
	return s.node.Offer(ctx, kith.OfferConfig{
		Method: method, Lifetime: req.Lifetime, AutoAccept: req.Yes, Exchange: only, Endpoints: req.Endpoints, Hidden: req.Hidden,
	})
}

// outcome tells the client the result as soon as it is durable on both sides, and
// ends a little later, as the other side may still need this side's last message.
func (s *Server) outcome(ctx context.Context, st *stream, p *kith.Pairing) (Reply, error) {
	d, err := p.Wait(ctx)
	if err != nil {
		return Reply{}, err
	}
	if st.send(Reply{Device: &d}) != nil {
		return Reply{}, errTaken
	}
	settle, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	p.Settle(settle)
	return Reply{Device: &d}, nil
}

// settleTime is how long a command that pairs without a daemon stays to see the
// other side finish, too.
const settleTime = 3 * time.Second

func step(ev kith.PairEvent) *PairStep {
	st := &PairStep{
		Kind: ev.Kind.String(), Check: ev.Check, Choices: ev.Choices, Ask: ev.Ask, Name: ev.Name, OS: ev.OS,
	}
	if !ev.Peer.IsZero() {
		st.ID = ev.Peer.String()
	}
	if ev.Kind == pairing.EventFailed {
		st.Reason = ev.Reason.String()
	}
	return st
}

// explainPair says what a failed pairing means and what to do.
func explainPair(e *kith.PairError) *Error {
	out := &Error{Kind: KindRefused}
	switch e.Reason {
	case pairing.WrongCheck:
		out.Text, out.Hint = "wrong check number, three times", "the two devices may not be talking to each other: start again with a new code"
	case pairing.Expired:
		out.Kind, out.Text, out.Hint = KindNotFound, "the code has expired", "make a new one with kith pair"
	case pairing.CodeUsed:
		out.Kind, out.Text = KindNotFound, "the code has been used by another device already"
		out.Hint = "if that device is not yours, answer no on the device that shows the code; then make a new one with kith pair"
	case pairing.NobodyThere:
		out.Kind, out.Text = KindNotFound, "nobody with this code was found"
		out.Hint = "is kith pair still waiting on the other device, on the same network or broker, with this very code? For a number, both clocks must show the right day"
	case pairing.Refused:
		out.Text, out.Hint = "the other side said no", "start again with a new code"
	case pairing.Cancelled:
		out.Text = "cancelled"
	case pairing.WrongDevice:
		out.Text, out.Hint = "the device that answered is not the one that made the QR code", "somebody else may have seen the code: make a new one"
	case pairing.Self:
		out.Text, out.Hint = "the code was made by this very device", "enter it on the other one"
	case pairing.TooOften:
		out.Text, out.Hint = "the code was tried too often", "somebody else may have it: make a new one with kith pair"
	case pairing.StoreFailed:
		out.Kind, out.Text, out.Hint = KindOther, "the pair could not be saved", "free disk space and check that the state directory can be written"
	default:
		out.Kind, out.Text = KindOther, e.Error()
	}
	if e.Err != nil {
		out.Text += ": " + e.Err.Error()
	}
	return suspecting(out, e.Cause)
}
