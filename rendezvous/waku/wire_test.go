package waku

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/kithproject/kith/rendezvous"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMessageHash has the vectors of 14/WAKU2-MESSAGE.
func TestMessageHash(t *testing.T) {
	payload := "010203045445535405060708"
	for name, c := range map[string]struct{ payload, meta, want string }{
		"12 bytes of meta": {payload, "73757065722d736563726574", "64cce733fed134e83da02b02c6f689814872b1a0ac97ea56b76095c3c72bfe05"},
		"64 bytes of meta": {
			payload,
			"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f",
			"7158b6498753313368b9af8f6e0a0a05104f68f972981da42a43bc53fb0c1b27",
		},
		"no meta":    {payload, "", "a2554498b31f5bcdfcbf7fa58ad1c2d45f0254f3f8110a85588ec3cf10720fd8"},
		"no payload": {"", "73757065722d736563726574", "483ea950cb63f9b9d6926b262bb36194d3f40a0463ce8446228350bd44e96de4"},
	} {
		m := message{payload: unhex(t, c.payload), contentTopic: "/waku/2/default-content/proto", timestamp: 0x175789bfa23f8400, hasTime: true}
		if c.meta != "" {
			m.meta = unhex(t, c.meta)
		}
		if h := m.hash("/waku/2/default-waku/proto"); hex.EncodeToString(h[:]) != c.want {
			t.Errorf("%s: %x, want %s", name, h, c.want)
		}
	}
}

// TestAutoshard has the vector of RELAY-SHARDING, and what is no content topic.
func TestAutoshard(t *testing.T) {
	for topic, want := range map[string]uint16{"/myapp/1/mytopic/cbor": 0, "/0/myapp/1/mytopic/cbor": 0, "/0/myapp/1/other/proto": 0} {
		if got, err := autoshard(topic, 8); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", topic, got, err, want)
		}
	}
	// 0x…2d4928 of the specification's hash modulo other numbers.
	for shards, want := range map[uint16]uint16{1: 0, 2: 0, 16: 8, 256: 0x28, 1024: 0x128} {
		if got, err := autoshard("/myapp/1/mytopic/cbor", shards); err != nil || got != want {
			t.Errorf("of %d shards: %d, %v, want %d", shards, got, err, want)
		}
	}
	for _, bad := range []string{"", "/", "myapp/1/a/b", "/myapp/1/a", "/1/myapp/1/a/b", "/myapp//a/b", "/a/b/c/d/e/f/g", "/x/1/" + strings.Repeat("a", 300) + "/proto"} {
		if _, err := autoshard(bad, 8); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestNetwork(t *testing.T) {
	own := Network{}.withDefaults()
	auto := Network{Cluster: 1, Shards: 8}
	static := Network{Cluster: 16, Shard: 32}
	for _, c := range []struct {
		n      Network
		pubsub string
		want   bool
	}{
		{own, "/waku/2/rs/19305/0", true}, {own, "/waku/2/rs/19305/1", false}, {own, "/waku/2/rs/1/0", false},
		{auto, "/waku/2/rs/1/0", true}, {auto, "/waku/2/rs/1/7", true}, {auto, "/waku/2/rs/1/8", false}, {auto, "/waku/2/rs/1/00", false},
		{static, "/waku/2/rs/16/32", true}, {static, "/waku/2/rs/16/33", false}, {static, "/waku/2/rs/16/", false},
		{own, "/waku/2/default-waku/proto", false}, {auto, "/waku/2/rs/1/+1", false},
	} {
		if c.n.has(c.pubsub) != c.want {
			t.Errorf("%+v has %s: not %v", c.n, c.pubsub, c.want)
		}
	}
	for _, bad := range []Network{{Shards: 1025}, {Shard: 1024}, {Shards: 2, Shard: 1}} {
		if err := bad.check(); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v, want ErrConfig", bad, err)
		}
	}
}

// TestContentTopic holds the name that a topic has on Waku, and that it is not
// the topic.
func TestContentTopic(t *testing.T) {
	topic := rendezvous.Topic{1, 2, 3}
	name := contentTopic(topic)
	if want := "/kith/1/9b5e0d2a81c4c7ead2b215a82c28bc531ad84508/proto"; name != want {
		t.Errorf("name %s, want %s", name, want)
	}
	if strings.Contains(name, hex.EncodeToString(topic[:4])) || name == contentTopic(rendezvous.Topic{1, 2, 4}) {
		t.Errorf("name %s tells the topic", name)
	}
}

// TestEncodings holds every message as bytes that were put together by hand from
// the .proto files of the specifications, and reads them back.
func TestEncodings(t *testing.T) {
	m := &message{payload: []byte{1, 2}, contentTopic: "/a/1/b/c", version: 2, timestamp: -1, hasTime: true, meta: []byte{9}, proof: []byte{8}, ephemeral: true}
	const wantMessage = "0a020102 12082f612f312f622f63 1802 5001 5a0109 aa010108 f80101"
	encoded := m.append(nil)
	sub := filterRequest{id: "r", kind: filterSubscribe, pubsub: "p", topics: []string{"t", "u"}}
	push := pushRequest{id: "r", pubsub: "p", msg: []byte{1}}
	query := storeRequest{
		id: "r", includeData: true, pubsub: "p", topics: []string{"t"}, start: 1, hasStart: true, end: -2, hasEnd: true,
		hashes: []hash{{7}}, cursor: []byte{6}, forward: true, limit: 5,
	}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"WakuMessage":             {encoded, wantMessage},
		"FilterSubscribeRequest":  {sub.append(nil), "0a0172 1001 520170 5a0174 5a0175"},
		"FilterSubscribeResponse": {(&response{id: "r", status: 404, desc: "no"}).append(nil), "0a0172 509403 5a026e6f"},
		"MessagePush":             {appendFilterPush(nil, "p", m), "0a" + fmt.Sprintf("%02x", len(encoded)) + wantMessage + "120170"},
		"LightPushRequest":        {push.append3(nil), "0a0172 a2010170 aa010101"},
		"LightPushResponse":       {appendPushResponse3(nil, &response{id: "r", status: 200, peers: 3}), "0a0172 50c801 6003"},
		"PushRPC request":         {push.append2(nil), "0a0172 1206 0a0170 120101"},
		"PushRPC response":        {appendPushResponse2(nil, &response{id: "r", status: 200}), "0a0172 1a06 0801 12024f4b"},
		"StoreQueryRequest": {
			query.append(nil),
			"0a0172 1001 520170 5a0174 6002 6803 a20120 07" + strings.Repeat("00", 31) + " 9a030106 a00301 a80305",
		},
		"WakuMessageKeyValue": {appendStoreItem(nil, hash{7}, "p", []byte{1}), "a20128 0a2007" + strings.Repeat("00", 31) + "120101 1a0170"},
		"WakuMetadataRequest": {(&metadata{cluster: 16, hasCluster: true, shards: []uint16{1, 300}}).append(nil), "0810 1001 10ac02"},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s: %x, want %x", name, c.got, want)
		}
	}
	back := func(name string, got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read back as %+v, %v", name, got, err)
		}
	}
	gotMessage, err := parseMessage(encoded)
	back("WakuMessage", gotMessage, m, err)
	gotSub, err := parseFilterRequest(sub.append(nil))
	back("FilterSubscribeRequest", gotSub, &sub, err)
	got3, err := parsePush3(push.append3(nil))
	back("LightPushRequest", got3, &push, err)
	got2, err := parsePush2(push.append2(nil))
	back("PushRPC", got2, &push, err)
	gotQuery, err := parseStoreRequest(query.append(nil))
	back("StoreQueryRequest", gotQuery, &query, err)
	packed, err := parseMetadata(unhex(t, "0810 1203 01ac02"))
	back("packed shards", packed, &metadata{cluster: 16, hasCluster: true, shards: []uint16{1, 300}}, err)
	no, err := parsePushResponse2(unhex(t, "0a0172 1a04 12026e6f"))
	back("PushRPC response", no, &response{id: "r", status: statusBad, desc: "no"}, err)
}

func TestDelimited(t *testing.T) {
	r := bufio.NewReader(bytes.NewReader(appendDelimited(appendDelimited(nil, []byte("one")), make([]byte, 200))))
	if b, err := readDelimited(r, 100); err != nil || string(b) != "one" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := readDelimited(r, 100); !errors.Is(err, errTooLarge) {
		t.Errorf("200 bytes: %v, want errTooLarge", err)
	}
	// A length that is not kept to takes no memory that it does not deserve.
	if _, err := readDelimited(bufio.NewReader(bytes.NewReader([]byte{5, 1})), 100); err == nil {
		t.Error("a message that ends early was read")
	}
}

func TestAddresses(t *testing.T) {
	const id = "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
	for text, network := range map[string]string{
		"/dns4/host.example/tcp/60000" + id: "tcp4", "/ip4/192.0.2.1/tcp/1": "tcp4", "/ip6/2001:db8::1/tcp/1" + id: "tcp6",
		"/dns/h/tcp/1": "tcp", "/dns6/h/tcp/1": "tcp6", "/ip4/192.0.2.1/tcp/1/ws" + id: "", "/dns4/h/tcp/443/wss" + id: "", "/dns4/h/tcp/443/tls/ws": "",
	} {
		a, err := parseAddress(text)
		if err != nil || a.network != network || (a.peer != "") != strings.HasSuffix(text, id) {
			t.Errorf("%s: %+v, %v", text, a, err)
		}
		if err := CheckAddress(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, bad := range []string{
		"", "/", "host:1", "/ip4/192.0.2.1", "/ip4/192.0.2.1/udp/1", "/ip4/192.0.2.1/udp/1/quic-v1", "/dnsaddr/h", "/ip4/192.0.2.1/tcp/1/p2p/x",
		"/ip4/192.0.2.1/tcp/1/http", "/ip4/192.0.2.1/tcp/1" + id + "/p2p-circuit" + id, "/ip4/1.2.3.4/tcp/1\n", "/dns4/" + strings.Repeat("a", 600) + "/tcp/1",
	} {
		if _, err := New(Config{Nodes: []string{bad}}); !errors.Is(err, ErrConfig) {
			t.Errorf("%q: %v, want ErrConfig", bad, err)
		}
	}
	if _, err := New(Config{}); !errors.Is(err, ErrConfig) {
		t.Errorf("no nodes: %v, want ErrConfig", err)
	}
}

// FuzzParsers reads anything as every message, and holds that what was read and
// written is read the same again.
func FuzzParsers(f *testing.F) {
	m := &message{payload: []byte{1}, contentTopic: "/a/1/b/c", timestamp: 5, hasTime: true}
	f.Add(m.append(nil))
	f.Add(appendFilterPush(nil, "p", m))
	f.Add((&filterRequest{id: "r", kind: 1, pubsub: "p", topics: []string{"t"}}).append(nil))
	f.Add((&pushRequest{id: "r", pubsub: "p", msg: m.append(nil)}).append2(nil))
	f.Add((&pushRequest{id: "r", pubsub: "p", msg: m.append(nil)}).append3(nil))
	f.Add((&storeRequest{id: "r", pubsub: "p", topics: []string{"t"}, hashes: []hash{{1}}, cursor: []byte{1}}).append(nil))
	f.Add(appendStoreItem((&response{id: "r", status: 200}).append(nil), hash{}, "p", m.append(nil)))
	f.Add([]byte{8, 16, 18, 3, 1, 172, 2})
	f.Add(appendText(nil, 3, protoPush2))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMessage(b); err == nil {
			again, err := parseMessage(m.append(nil))
			if err != nil || again.hash("p") != m.hash("p") {
				t.Errorf("a message changes its hash: %v", err)
			}
		}
		if r, err := parseFilterRequest(b); err == nil && len(r.topics) > maxList {
			t.Error("too many topics")
		}
		if r, err := parseStoreRequest(b); err == nil {
			if again, err := parseStoreRequest(r.append(nil)); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("a store request changes: %+v, %+v, %v", r, again, err)
			}
		}
		if r, err := parseMetadata(b); err == nil && len(r.shards) > maxShards {
			t.Error("too many shards")
		}
		_, _, _ = parseFilterPush(b)
		_, _ = parseIdentify(b)
		_, _ = parsePush2(b)
		_, _ = parsePush3(b)
		_, _ = parseResponse(b)
		_, _ = parsePushResponse2(b)
		_, _ = parseStoreResponse(b)
		_, _ = readAnswer(bufio.NewReader(bytes.NewReader(b)), protoStore, 1000)
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"/ip4/192.0.2.1/tcp/1", "/dns4/h/tcp/443/wss/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN", "/ip6/::1/tcp/1/ws"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAddress(s)
		if err == nil && (a.host == "" || a.raw == nil) {
			t.Errorf("%q was taken as %+v", s, a)
		}
	})
}

func FuzzContentTopic(f *testing.F) {
	f.Add("/myapp/1/mytopic/cbor", uint16(8))
	f.Add("/0/myapp/1/mytopic/cbor", uint16(1024))
	f.Fuzz(func(t *testing.T, s string, shards uint16) {
		n := Network{Cluster: 1, Shards: shards%maxShards + 1}
		p, err := n.pubsub(s)
		if err == nil && !n.has(p) {
			t.Errorf("%q is on %s, which the network has not", s, p)
		}
		n.has(s)
	})
}
