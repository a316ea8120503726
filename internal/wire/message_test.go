package wire

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"
)

func TestMessageOpensUnderItsKeyAndDataOnly(t *testing.T) {
	key, ad, plain := make([]byte, 32), []byte("ad"), []byte("plain")
	sealed, err := SealMessage(key, ad, plain, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenMessage(key, ad, sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("got %q, %v", got, err)
	}
	for name, c := range map[string]struct{ key, ad, sealed []byte }{
		"another key":           {bytes.Repeat([]byte{1}, 32), ad, sealed},
		"a short key":           {key[:31], ad, sealed},
		"other data":            {key, []byte("da"), sealed},
		"without its end":       {key, ad, sealed[:len(sealed)-1]},
		"less than a nonce":     {key, ad, sealed[:23]},
		"a nonce, nothing else": {key, ad, sealed[:24]},
	} {
		if _, err := OpenMessage(c.key, c.ad, c.sealed); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := SealMessage(key, ad, plain, bytes.NewReader(nil)); err == nil {
		t.Error("sealed without randomness")
	}
}
