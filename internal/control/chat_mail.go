package control

import (
	"context"

	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/app/mail"
)

// chatMail is the daemon's mail as chat wants it.
type chatMail struct{ mail.Mail }

// Fetch returns the letters for this device. It errs as mail.Mail does.
func (m chatMail) Fetch(ctx context.Context) ([]chat.Letter, error) {
	letters, err := m.Mail.Fetch(ctx)
	out := make([]chat.Letter, 0, len(letters))
	for _, l := range letters {
		out = append(out, chat.Letter{From: l.From, Body: l.Body, Done: l.Done})
	}
	return out, err
}

// carryMail has chat fetch what arrives, and leave what it could not before.
func (s *Server) carryMail() {
	arrived := make(chan struct{}, 1)
	s.wg.Go(func() {
		for {
			select {
			case <-s.ctx.Done():
				return
			case <-arrived:
			}
			if err := s.chat.FetchMail(s.ctx); err != nil && s.ctx.Err() == nil {
				s.log.Debug("mail not fetched", "err", err)
			}
		}
	})
	s.HandleMail(func() {
		select {
		case arrived <- struct{}{}:
		default: // it is about to be fetched
		}
	}, s.chat.MailReady)
}
