package link

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// nodeAnswer is what a node says to a ping.
func nodeAnswer(tx string, ip string) string {
	return "d2:ip" + ip + "1:rd2:id20:mnopqrstuvwxyz123456e1:t12:" + tx + "1:v4:LT\x01\x021:y1:re"
}

func TestNodeAnswers(t *testing.T) {
	const tx = "abcdefghijkl"
	good := nodeAnswer(tx, "6:\xcb\x00\x71\x07\x1a\xe1")
	for name, c := range map[string]struct {
		raw  string
		want string
	}{
		"IPv4":            {good, "203.0.113.7:6881"},
		"IPv6":            {nodeAnswer(tx, "18:\x20\x01\x0d\xb8"+strings.Repeat("\x00", 11)+"\x07\x1a\xe1"), "[2001:db8::7]:6881"},
		"IPv4 in IPv6":    {nodeAnswer(tx, "18:"+strings.Repeat("\x00", 10)+"\xff\xff\xcb\x00\x71\x07\x1a\xe1"), "203.0.113.7:6881"},
		"lists, numbers":  {"d2:ip6:\xcb\x00\x71\x07\x1a\xe11:rd6:valuesl3:abci-7ee2:xxdee1:t12:" + tx + "1:y1:re", "203.0.113.7:6881"},
		"no address":      {"d1:rd2:id20:mnopqrstuvwxyz123456e1:t12:" + tx + "1:y1:re", ""},
		"an error":        {strings.Replace(good, "1:y1:r", "1:y1:e", 1), ""},
		"a question":      {strings.Replace(good, "1:y1:r", "1:y1:q", 1), ""},
		"port 0":          {nodeAnswer(tx, "6:\xcb\x00\x71\x07\x00\x00"), ""},
		"loopback":        {nodeAnswer(tx, "6:\x7f\x00\x00\x01\x1a\xe1"), ""},
		"multicast":       {nodeAnswer(tx, "6:\xe0\x00\x00\x01\x1a\xe1"), ""},
		"short address":   {nodeAnswer(tx, "5:\xcb\x00\x71\x07\x1a"), ""},
		"transaction":     {strings.Replace(good, "12:"+tx, "2:ab", 1), ""},
		"cut":             {good[:len(good)-4] + "e", ""},
		"more behind":     {good + "e", ""},
		"length too long": {strings.Replace(good, "12:"+tx, "999:"+tx, 1), ""},
		"a deep one":      {"d1:a" + strings.Repeat("l", 200) + strings.Repeat("e", 200) + good[1:], ""},
		"long":            {strings.Replace(good, "4:LT\x01\x02", "600:"+strings.Repeat("x", 600), 1), ""},
	} {
		a, ok := parseNodeAnswer([]byte(c.raw))
		if !ok {
			a.mapped = netip.AddrPort{}
		}
		if got := a.mapped; c.want == "" && ok || c.want != "" && got.String() != c.want {
			t.Errorf("%s: %v %v, want %q", name, got, ok, c.want)
		}
		if ok && string(a.tx[:]) != tx {
			t.Errorf("%s: transaction %q", name, a.tx)
		}
	}
}

func TestPingNode(t *testing.T) {
	raw, tx, err := pingNode()
	if err != nil || !isKRPC(raw) || !bytes.Contains(raw, tx[:]) {
		t.Fatalf("%q, %v", raw, err)
	}
	if n, ok := valueSize(raw, 0); !ok || n != len(raw) {
		t.Errorf("%q is not one value", raw)
	}
	if isWireGuard(raw) || isSTUN(raw) || isProbe(raw) {
		t.Errorf("%q can be taken for something else", raw)
	}
	again, _, err := pingNode()
	if err != nil || bytes.Equal(raw, again) {
		t.Error("two pings are the same")
	}
}

func FuzzNodeAnswer(f *testing.F) {
	f.Add([]byte(nodeAnswer("abcdefghijkl", "6:\xcb\x00\x71\x07\x1a\xe1")))
	f.Add([]byte("d1:ad2:id20:mnopqrstuvwxyz123456e1:q4:ping1:t2:aa1:y1:qe"))
	f.Add([]byte("dlllleeee"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if a, ok := parseNodeAnswer(raw); ok && (!a.mapped.IsValid() || a.mapped.Port() == 0) {
			t.Errorf("address %v", a.mapped)
		}
	})
}
