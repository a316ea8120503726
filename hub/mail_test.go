package hub

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/hub/hubaddr"
)

// mailConn logs in to a hub's mail from a loopback address.
func mailConn(t testing.TB, h *Hub, from string, login []byte) net.Conn {
	t.Helper()
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, Config: h.Address().TLSConfig()}
	conn, err := d.DialContext(t.Context(), "tcp", h.hostPort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write(login); err != nil {
		t.Fatal(err)
	}
	return conn
}

func mailClient(t testing.TB, h *Hub, from string) *mail.Client {
	t.Helper()
	c, err := mail.NewClient(t.Context(), mailConn(t, h, from, h.Address().MailLogin()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// sealedLetter returns a letter for the box of a token.
func sealedLetter(t testing.TB, token [32]byte, text string) []byte {
	t.Helper()
	blob, err := mail.Seal(rand.Reader, token, mail.BoxOf(token), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// TestMail leaves letters of two depositors at a hub, which is started again, and takes
// them.
func TestMail(t *testing.T) {
	var log syncBuffer
	dir := t.TempDir()
	change := func(c *Config) {
		c.Dir, c.Mail, c.MailPerClient, c.MailQuota = dir, true, 3*4096, 5*4096
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	}
	h := open(t, change)
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	one, two := [32]byte{1}, [32]byte{2}
	a, b := mailClient(t, h, "127.0.0.1"), mailClient(t, h, "127.0.0.2")
	if a.KeptFor() != 7*24*time.Hour {
		t.Errorf("kept for %v", a.KeptFor())
	}
	for i := range 3 {
		if err := a.Put(ctx, mail.BoxOf(one), sealedLetter(t, one, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Put(ctx, mail.BoxOf(one), sealedLetter(t, one, "x")); !errors.Is(err, mail.ErrShare) {
		t.Errorf("more than the share of one: %v", err)
	}
	for range 2 {
		if err := b.Put(ctx, mail.BoxOf(two), sealedLetter(t, two, "y")); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Put(ctx, mail.BoxOf(two), sealedLetter(t, two, "z")); !errors.Is(err, mail.ErrFull) || errors.Is(err, mail.ErrShare) {
		t.Errorf("more than there is room: %v", err)
	}
	for name, want := range map[string]float64{
		"kith_hub_mail_letters": 5, "kith_hub_mail_boxes": 2, "kith_hub_mail_depositors": 2, "kith_hub_mail_bytes": 5 * 4096,
		"kith_hub_mail_clients": 2, "kith_hub_mail_put_total": 5, "kith_hub_mail_refused_total": 2,
	} {
		if got := metric(h, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-a.Ended():
	case <-ctx.Done():
		t.Fatal("the connection stays after the hub was closed")
	}

	h = open(t, change)
	reader := mailClient(t, h, "127.0.0.3")
	if err := reader.Watch(ctx, [][32]byte{one, two}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-reader.News():
	case <-ctx.Done():
		t.Fatal("no news of what waits")
	}
	items, err := reader.Take(ctx, [][32]byte{one})
	if err != nil || len(items) != 3 {
		t.Fatalf("took %d, %v", len(items), err)
	}
	for i, it := range items {
		body, err := mail.Open(one, it.Box, it.Blob)
		if err != nil || string(body) != strconv.Itoa(i) {
			t.Errorf("letter %d: %q, %v", i, body, err)
		}
		if err := reader.Done(ctx, one, [][mail.IDSize]byte{it.ID}); err != nil {
			t.Fatal(err)
		}
	}
	if err := mailClient(t, h, "127.0.0.1").Put(ctx, mail.BoxOf(one), sealedLetter(t, one, "x")); err != nil {
		t.Errorf("after room was made: %v", err)
	}
	if got := metric(h, "kith_hub_mail_done_total"); got != 3 {
		t.Errorf("done %v", got)
	}
	var metrics bytes.Buffer
	h.WriteMetrics(&metrics)
	for what, text := range map[string]string{"log": log.String(), "metrics": metrics.String()} {
		for _, secret := range []string{mail.BoxOf(one).String(), "127.0.0.1 ", string(h.Address().MailLogin()[4:])} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s has %q", what, secret)
			}
		}
	}
	if !strings.Contains(log.String(), "mail store opened") {
		t.Errorf("log:\n%s", log.String())
	}
}

// TestMailLogin holds who is not let in, and how that looks.
func TestMailLogin(t *testing.T) {
	on, off := open(t, func(c *Config) { c.Mail = true }), open(t, nil)
	wrong := append([]byte(hubaddr.MailPreface), bytes.Repeat([]byte("0"), hubaddr.MailLoginSize-len(hubaddr.MailPreface))...)
	for _, c := range []struct {
		name  string
		h     *Hub
		login []byte
		want  error
	}{
		{"a wrong password", on, wrong, mail.ErrLogin},
		{"another hub's password", on, off.Address().MailLogin(), mail.ErrLogin},
		{"a hub that keeps no mail", off, off.Address().MailLogin(), mail.ErrOff},
	} {
		if _, err := mail.NewClient(t.Context(), mailConn(t, c.h, "127.0.0.1", c.login)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	plain, err := net.Dial("tcp", on.hostPort())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Write(on.Address().MailLogin()); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(plain); len(got) > 0 {
		t.Errorf("without TLS it says %q", got)
	}
	if got := metric(on, `kith_hub_drops_total{reason="mail_plain"}`); got != 1 {
		t.Errorf("counted %v", got)
	}
	if got := metric(on, `kith_hub_drops_total{reason="mail_password"}`); got != 2 {
		t.Errorf("wrong passwords counted: %v", got)
	}
}

// TestMailConfig holds what cannot be asked for.
func TestMailConfig(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.MailDays = -1 }, func(c *Config) { c.MailDays = 1000 },
		func(c *Config) { c.MailQuota = -1 }, func(c *Config) { c.MailPerClient = -1 },
	} {
		cfg := Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Mail: true}
		change(&cfg)
		if h, err := Open(t.Context(), cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v, %v", cfg, h, err)
		}
	}
}
