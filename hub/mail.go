package hub

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/hub/hubaddr"
)

const (
	mailDir = "mail" // in the state directory
	maxDays = 365
)

// mailbox keeps sealed letters for devices that are away, if the hub does that.
type mailbox struct {
	store *mail.Store
	srv   *mail.Server
	login [sha256.Size]byte // hash of what clients say first
}

// startMail opens the store.
func (h *Hub) startMail() error {
	if !h.cfg.Mail {
		return nil
	}
	store, err := mail.OpenStore(mail.StoreConfig{
		Dir: filepath.Join(h.cfg.Dir, mailDir), MaxBytes: h.cfg.MailQuota, PerDepositor: h.cfg.MailPerClient,
		Keep: time.Duration(h.cfg.MailDays) * 24 * time.Hour, Logger: h.log,
	})
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	h.mail = &mailbox{
		store: store, login: sha256.Sum256(h.addr.MailLogin()),
		srv: mail.NewServer(mail.ServerConfig{Store: store, ConnsPerDepositor: h.cfg.MaxConnsPerIP, Logger: h.log}),
	}
	h.mux.mail = h.mail
	h.m.set.RegisterMetricsWriter(func(w io.Writer) { writeMail(w, h.mail.store.Stats(), h.mail.srv.Clients()) })
	return nil
}

// close ends the connections, and then the store.
func (b *mailbox) close() error { return errors.Join(b.srv.Close(), b.store.Close()) }

// serveMail speaks with a client of the mail until it goes. It has to say the password
// first, inside TLS: tokens in the clear would be anybody's.
func (x *mux) serveMail(c *stream) {
	defer c.Close()
	if _, ok := c.Conn.(*tls.Conn); !ok {
		x.m.drop("mail_plain")
		return
	}
	var login [hubaddr.MailLoginSize]byte
	if _, err := io.ReadFull(c, login[:]); err != nil {
		x.m.drop("timeout")
		return
	}
	if x.mail == nil {
		x.m.drop("mail_off")
		_ = mail.Refuse(c, mail.ErrOff) // it hears nothing then
		return
	}
	got := sha256.Sum256(login[:])
	if subtle.ConstantTimeCompare(got[:], x.mail.login[:]) != 1 {
		x.m.drop("mail_password")
		_ = mail.Refuse(c, mail.ErrLogin)
		return
	}
	_ = c.SetReadDeadline(time.Time{}) // the server has its own
	switch err := x.mail.srv.Serve(c, ipKey(addrOf(c.RemoteAddr()).Addr()).String()); {
	case errors.Is(err, mail.ErrBusy):
		x.m.drop("mail_busy")
	case errors.Is(err, mail.ErrProtocol):
		x.m.drop("mail_garbage")
	}
}

// MailStats returns what the hub keeps; it reports false if it keeps no mail.
func (h *Hub) MailStats() (mail.Stats, bool) {
	if h.mail == nil {
		return mail.Stats{}, false
	}
	return h.mail.store.Stats(), true
}

// writeMail writes what the mail counts.
func writeMail(w io.Writer, s mail.Stats, clients int) {
	for _, g := range []struct {
		name  string
		value int64
	}{
		{"clients", int64(clients)}, {"letters", int64(s.Letters)}, {"boxes", int64(s.Boxes)},
		{"depositors", int64(s.Depositors)}, {"bytes", s.Bytes}, {"max_bytes", s.MaxBytes},
	} {
		metrics.WriteGaugeUint64(w, "kith_hub_mail_"+g.name, uint64(max(g.value, 0)))
	}
	for _, c := range []struct {
		name  string
		value uint64
	}{{"put", s.Put}, {"done", s.Done}, {"expired", s.Expired}, {"refused", s.Refused}, {"damaged", s.Damaged}} {
		metrics.WriteCounterUint64(w, "kith_hub_mail_"+c.name+"_total", c.value)
	}
}
