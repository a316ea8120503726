package mail

import (
	"bytes"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/internal/durable"
)

// TestCloseOfAPacedClient holds that Close and End do not wait for a client that has to
// wait itself since it asks too fast.
func TestCloseOfAPacedClient(t *testing.T) {
	for name, end := range map[string]func(*Server){
		"Close": func(s *Server) { _ = s.Close() },
		"End":   func(s *Server) { s.End("a"); s.wg.Wait() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s := NewServer(ServerConfig{Store: openTest(t, StoreConfig{Dir: dir})})
				near, far := net.Pipe()
				served := make(chan error, 1)
				go func() { served <- s.Serve(far, "a") }()
				go func() { _, _ = io.Copy(io.Discard, near) }()
				synctest.Wait()
				s.mu.Lock()
				s.accounts["a"].tokens = -10 * opBurst
				s.mu.Unlock()
				if _, err := near.Write(frame{kind: fTake, id: 1, body: joinTake(0, [][32]byte{{1}})}.append(nil)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				began := time.Now()
				end(s)
				<-served
				if took := time.Since(began); took > 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// TestNoNamesInLogs holds that what the disk says to a request does not get names of files
// into logs: they tell boxes and depositors.
func TestNoNamesInLogs(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	s := openTest(t, StoreConfig{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	box := BoxOf(token(1))
	blob := letter(t, 1, "one")
	if err := s.Put("anna", box, blob); err != nil {
		t.Fatal(err)
	}
	e := s.boxes[box][IDOf(blob)]
	file := filepath.Join(dir, e.fileName())
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.restamp(e, 1)
	// What is no file can be neither read nor removed.
	if err := os.MkdirAll(filepath.Join(file, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if items, _, err := s.Take([][32]byte{token(1)}, 1, MaxBlob); err != nil || len(items) > 0 {
		t.Fatalf("took %d, %v", len(items), err)
	}
	if err := s.Done(token(1), [][IDSize]byte{IDOf(blob)}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	err := s.Put("anna", box, letter(t, 1, "two"))
	if err == nil {
		t.Fatal("kept without a directory")
	}
	got := log.String() + err.Error()
	for _, part := range []string{"letter not renamed", "letter not read", "letter not removed", "letter not written"} {
		if !strings.Contains(got, part) {
			t.Errorf("did not happen: %s", part)
		}
	}
	owner := ownerOf("anna")
	for _, secret := range []string{hex.EncodeToString(box[:]), hex.EncodeToString(owner[:]), durable.TmpSuffix, dir} {
		if strings.Contains(got, secret) {
			t.Errorf("%s is in\n%s", secret, got)
		}
	}
}
