package cli

import (
	"bufio"
	"os"
	"testing"
)

// TestLinesLeavePassword: who reads a code by lines and then asks for a password on the
// same terminal gets the password, which the reader of lines must not take before.
func TestLinesLeavePassword(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	in := newLines(r)
	for _, want := range []string{"code", "name"} { // a pipe as a terminal: each line comes alone
		if _, err := w.WriteString("\n" + want + "\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := in.next(t.Context()); err != nil || line != want {
			t.Fatalf("read %q (%v), want %q", line, err, want)
		}
		if _, err := w.WriteString("secret\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "secret\n" {
			t.Fatalf("after %q read %q (%v), want the password", want, line, err)
		}
	}
}
