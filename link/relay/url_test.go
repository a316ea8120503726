package relay

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for text, want := range map[string]server{
		"turn:relay.example.org":                 {"relay.example.org", 3478, overUDP},
		"turn:relay.example.org?transport=udp":   {"relay.example.org", 3478, overUDP},
		"turn:relay.example.org?transport=tcp":   {"relay.example.org", 3478, overTCP},
		"TURN:192.0.2.1:80?transport=tcp":        {"192.0.2.1", 80, overTCP},
		"turns:relay.example.org":                {"relay.example.org", 443, overTLS},
		"turns:relay.example.org:5349":           {"relay.example.org", 5349, overTLS},
		"turns:relay.example.org?transport=tcp":  {"relay.example.org", 443, overTLS},
		"turn:[2001:db8::1]":                     {"2001:db8::1", 3478, overUDP},
		"turns:[2001:db8::1]:8443?transport=tcp": {"2001:db8::1", 8443, overTLS},
		"turn:[fe80::1%eth0]:1":                  {"fe80::1%eth0", 1, overUDP},
		"turn:my_box":                            {"my_box", 3478, overUDP},
	} {
		if got, err := parseURL(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "turn", "turn:", "turns:", "stun:relay", "https://relay", "turn://relay", "turn:relay:", "turn:relay:0",
		"turn:relay:65536", "turn:relay:+80", "turn:relay:80:80", "turn:2001:db8::1", "turn:[2001:db8::1", "turn:[192.0.2.1]",
		"turn:[2001:db8::1]80", "turn:[]", "turn:[2001:db8::1]:", "turn:relay?", "turn:relay?transport=", "turn:relay?transport=sctp",
		"turn:relay?x=udp", "turns:relay?transport=udp", "turn:user:secret@relay", "turn:re lay", "turn:relay/path",
		"turn:" + strings.Repeat("a", 254), "turn:" + strings.Repeat("a", maxURL),
	} {
		if got, err := parseURL(text); !errors.Is(err, ErrURL) {
			t.Errorf("%q: %+v, %v", text, got, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error tells it: %v", text, err)
		}
	}
}

// FuzzParseURL: what is accepted is usable, and means the same when it is written
// again in full.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{
		"turn:relay.example.org", "turns:[2001:db8::1]:8443?transport=tcp", "turn:192.0.2.1:80?transport=udp",
		"turn:[fe80::1%eth0]:1", "turn:a@b", "turns::", "turn:[::]:0", "TURNS:x?transport=tcp",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseURL(text)
		if err != nil {
			if !errors.Is(err, ErrURL) || len(err.Error()) > 300 {
				t.Fatal(err)
			}
			return
		}
		if s.host == "" || s.port == 0 || len(s.host) > maxURL {
			t.Fatalf("%+v", s)
		}
		if _, err := netip.ParseAddr(s.host); err != nil && strings.ContainsAny(s.host, ":[]@/? ") {
			t.Fatalf("host %q", s.host)
		}
		full := [...]string{"turn:", "turn:", "turns:"}[s.via] + s.String()
		if s.via == overTCP {
			full += "?transport=tcp"
		}
		if again, err := parseURL(full); err != nil || again != s {
			t.Fatalf("%q is %+v, but %q is %+v: %v", text, s, full, again, err)
		}
	})
}
