package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/control"
)

// hubMail connects to the mail of the hub whose address is in a file.
func hubMail(ctx context.Context, ts *testscript.TestScript, file string) *mail.Client {
	a, err := hubaddr.Parse(ts.ReadFile(file))
	ts.Check(err)
	d := tls.Dialer{Config: a.TLSConfig()}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port))))
	ts.Check(err)
	_, err = conn.Write(a.MailLogin())
	ts.Check(err)
	c, err := mail.NewClient(ctx, conn)
	ts.Check(err)
	return c
}

// lettersAtHub: letters leave HUB PID FILE leaves letters at a hub until it is killed,
// which is after fifty, and writes the names of those that were acknowledged to a file.
// letters check HUB FILE holds that these are there, whole.
func lettersAtHub(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), scriptWait)
	defer cancel()
	token := [32]byte{1}
	switch {
	case !neg && len(args) == 4 && args[0] == "leave":
		pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[2])))
		ts.Check(err)
		hub, err := os.FindProcess(pid)
		ts.Check(err)
		var mu sync.Mutex
		var acked []string
		var n atomic.Int32
		var wg sync.WaitGroup
		for range 4 {
			c := hubMail(ctx, ts, args[1])
			wg.Go(func() {
				defer c.Close()
				for {
					blob, err := mail.Seal(rand.Reader, token, mail.BoxOf(token), []byte("x"))
					if err != nil || c.Put(ctx, mail.BoxOf(token), blob) != nil {
						return
					}
					id := mail.IDOf(blob)
					mu.Lock()
					acked = append(acked, string(id[:]))
					mu.Unlock()
					if n.Add(1) == 50 {
						_ = hub.Kill()
					}
				}
			})
		}
		wg.Wait()
		ts.Logf("%d letters were acknowledged", len(acked))
		ts.Check(os.WriteFile(ts.MkAbs(args[3]), []byte(strings.Join(acked, "")), 0o600))
	case !neg && len(args) == 3 && args[0] == "check":
		c := hubMail(ctx, ts, args[1])
		defer c.Close()
		items, err := c.Take(ctx, [][32]byte{token})
		ts.Check(err)
		got := make(map[string]bool)
		for _, it := range items {
			if _, err := mail.Open(token, it.Box, it.Blob); err != nil {
				ts.Fatalf("a letter does not open: %v", err)
			}
			got[string(it.ID[:])] = true
		}
		want := ts.ReadFile(args[2])
		if len(want) < 50*mail.IDSize {
			ts.Fatalf("only %d letters were acknowledged", len(want)/mail.IDSize)
		}
		for ; want != ""; want = want[mail.IDSize:] {
			if !got[want[:mail.IDSize]] {
				ts.Fatalf("an acknowledged letter is lost: %x of %d", want[:mail.IDSize], len(got))
			}
		}
	default:
		ts.Fatalf("usage: letters leave HUB PID FILE, letters check HUB FILE")
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"1GiB": 1 << 30, "500MB": 500e6, "4096": 4096, "64K": 64 << 10, "1T": 1 << 40, "10B": 10} {
		var b byteSize
		if err := b.Set(text); err != nil || int64(b) != want {
			t.Errorf("%s is %d, %v", text, b, err)
		}
		if err := b.Set(b.String()); err != nil || int64(b) != want {
			t.Errorf("%s comes back as %d, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "GiB", "1 GiB", "1XB", "1e9", "9999999999999TiB", "99999999999999999999", "1BiB"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("%q is %d", text, n)
		}
	}
}

// TestShowMail holds what a person reads of keepers; what a keeper says is cleaned.
func TestShowMail(t *testing.T) {
	var b strings.Builder
	showMail(&b, nil)
	showMail(&b, &control.Mail{Keepers: []mail.PlaceStatus{
		{Name: "hub x:443", Ready: true, Sent: &mail.Count{Letters: 1}, Waiting: &mail.Count{Letters: 2}},
		{Name: "hub y:443", Off: true, Error: mail.ErrOff.Error()},
		{Name: "phone", Device: [32]byte{1}, Off: true},
		{Name: "shelf", Device: [32]byte{2}, Error: errors.New("gone\nfor good").Error()},
		{Name: "tv", Device: [32]byte{3}},
		{Name: "pc", Device: [32]byte{4}, Ready: true},
		{Name: "nas", Device: [32]byte{5}, Ready: true, Error: mail.ErrShare.Error(), Sent: &mail.Count{}, Waiting: &mail.Count{}},
	}, Kept: &mail.Stats{Letters: 3, Bytes: 12288, MaxBytes: 1e9}})
	want := `  mail at hub x:443      1 letter of this device, 2 letters for it
  mail at hub y:443      keeps no mail (kith hub --mail)
  mail at shelf          not there: gone for good
  mail at tv             connecting
  mail at pc             does not say what it has
  mail at nas            0 letters of this device, 0 letters for it; the last was not taken: the keeper has no room left for letters of this device
  keeps for others       3 letters, 12.3 kB of 1.0 GB
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
