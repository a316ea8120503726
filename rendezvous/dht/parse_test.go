package dht

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anacrolix/dht/v2/krpc"
	"github.com/anacrolix/torrent/bencode"

	"github.com/kithproject/kith/rendezvous"
)

func seedMessages() [][]byte {
	k := derive(rendezvous.Topic{1})
	it := k.items(0, 5, frame(1))[0]
	seq := int64(7)
	self, tid := id{1}, []byte("abcd")
	out := [][]byte{
		[]byte("d1:q13:announce_peer1:t1:a1:y1:qe"), // ends other programs
		[]byte("d2:ip1:x1:t1:a1:y1:re"),
		[]byte("d1:rd2:id20:01234567890123456789e1:t4:abcd1:y1:re"),
		[]byte("d1:t4:abcd1:y1:q1:q3:put1:ad2:id20:012345678901234567895:token1:x3:seqi1e4:salt0:1:v0:ee"),
		[]byte(strings.Repeat("l", 1000)), []byte("d" + strings.Repeat("1:ad", 500)),
		[]byte("d1:eli203e5:helloe1:t4:abcd1:y1:ee"), []byte("d9999999999999999999:"), []byte("di1e1:ae"),
		encodeError(tid, errSeq, "old"),
	}
	for _, q := range []query{
		{method: "ping"}, {method: "find_node", target: id{2}}, {method: "get", target: id{3}, seq: &seq},
		{method: "get_peers", target: id{3}}, {method: "announce_peer", target: id{3}, token: []byte("t")},
		{method: "put", token: []byte("t"), item: it}, {method: "put", token: []byte("t"), item: &item{value: []byte("3:abc")}},
	} {
		out = append(out, q.encode(self, tid, true), q.encode(self, tid, false))
	}
	r := message{id: self, tid: tid, token: []byte("tok"), hasSeq: true, item: *it, peers: []netip.AddrPort{netip.MustParseAddrPort("1.2.3.4:5")},
		nodes: []contact{{id{9}, netip.MustParseAddrPort("1.2.3.4:5")}, {id{8}, netip.MustParseAddrPort("[2001:db8::1]:5")}}}
	return append(out, r.encodeReply(netip.MustParseAddrPort("9.8.7.6:5")))
}

// FuzzParse holds that any datagram is parsed or refused, that what is parsed is
// bounded, and that a node lives on whatever it is asked.
func FuzzParse(f *testing.F) {
	for _, b := range seedMessages() {
		f.Add(b)
	}
	now := time.Unix(1_700_000_000, 0)
	from := netip.MustParseAddrPort("192.0.2.7:6881")
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if len(m.nodes) > 2*maxContact || len(m.peers) > maxPeers || len(m.item.value) > maxValue || len(m.token) > maxToken || len(m.tid) > maxTID {
			t.Fatal("no bounds")
		}
		s, tab := newStore(), newTable(id{7})
		tab.heard(now, contact{id{8}, from})
		m.token = s.token(now, from.Addr(), 0) // or nothing is ever put
		reply := s.answer(now, &m, from, tab)
		if len(reply) > 1500 {
			t.Fatalf("a reply of %d bytes", len(reply))
		}
		if m.kind == 'q' && reply != nil {
			if r, err := parse(reply); err != nil || r.kind == 'q' || !bytes.Equal(r.tid, m.tid) {
				t.Fatalf("a reply that we would not read: %q, %v", reply, err)
			}
		}
	})
}

// FuzzDatagram holds that a datagram or item that this topic's keys did not make
// never opens.
func FuzzDatagram(f *testing.F) {
	k := derive(rendezvous.Topic{1})
	good := k.datagram(0, frame(1))
	it := k.items(0, 5, frame(1))[0]
	f.Add(good, it.value, it.sig[:], int64(5))
	f.Add(k.datagram(0, nil), []byte("670:"), []byte{}, int64(-1))
	f.Add(good[:100], appendBytes(nil, make([]byte, 670)), make([]byte, 64), int64(maxSeq))
	f.Fuzz(func(t *testing.T, b, value, sig []byte, seq int64) {
		if got, ok := k.openDatagram(1, b); ok {
			t.Fatalf("a datagram of %d bytes opened", len(got))
		}
		x := item{value: value, seq: seq}
		copy(x.sig[:], sig)
		if half, err := k.open(0, 0, &x); err == nil && !(seq == 5 && bytes.Equal(value, it.value)) {
			t.Fatalf("an item opened: %x", half[:4])
		}
	})
}

func FuzzNodes(f *testing.F) {
	f.Add(formatNodes([]contact{{id{1}, netip.MustParseAddrPort("1.2.3.4:5")}, {id{2}, netip.MustParseAddrPort("[2001:db8::1]:6")}}))
	f.Add([]byte(nodesHeader + "\nzz 1.2.3.4:5\n\n0102 1.2.3.4:5\n"))
	f.Add([]byte(nodesHeader + "\n" + strings.Repeat("00", 20) + " 0.0.0.0:0\n" + strings.Repeat("x", 70_000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseNodes(b)
		if len(got) > maxNodes {
			t.Fatal("too many")
		}
		again := parseNodes(formatNodes(got))
		if len(again) != len(got) {
			t.Fatalf("%d nodes became %d", len(got), len(again))
		}
		for _, c := range got {
			if !usable(c.addr) {
				t.Fatalf("unusable %v", c.addr)
			}
		}
	})
}

// TestOtherImplementation holds that what we send is read by another program, and
// means the same there.
func TestOtherImplementation(t *testing.T) {
	k := derive(rendezvous.Topic{1})
	it := k.items(0, 5, frame(1))[0]
	q := query{method: "put", token: []byte("tok"), item: it}
	var m krpc.Msg
	if err := bencode.Unmarshal(q.encode(id{1}, []byte("abcd"), true), &m); err != nil {
		t.Fatal(err)
	}
	value, err := bencode.Marshal(m.A.V)
	if m.Q != "put" || m.T != "abcd" || !m.ReadOnly || m.A.ID != (krpc.ID{1}) || m.A.Token != "tok" || *m.A.Seq != 5 ||
		m.A.K != it.key || m.A.Sig != it.sig || !bytes.Equal(m.A.Salt, it.salt) || err != nil || !bytes.Equal(value, it.value) {
		t.Errorf("put: %+v", m)
	}
	r := message{id: id{1}, tid: []byte("abcd"), token: []byte("tok"), hasSeq: true, item: *it,
		nodes: []contact{{id{9}, netip.MustParseAddrPort("1.2.3.4:5")}}}
	m = krpc.Msg{}
	if err := bencode.Unmarshal(r.encodeReply(netip.MustParseAddrPort("9.8.7.6:5")), &m); err != nil {
		t.Fatal(err)
	}
	if m.R == nil || m.R.ID != (krpc.ID{1}) || *m.R.Token != "tok" || *m.R.Seq != 5 || len(m.R.Nodes) != 1 || m.R.Nodes[0].Addr.String() != "1.2.3.4:5" ||
		m.IP.String() != "9.8.7.6:5" || !bytes.Equal(m.R.V, it.value) {
		t.Errorf("reply: %+v", m)
	}
}

func TestNodesFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "nodes")
	n := startNet(t, 12, 0)
	e := n.device(t, func(c *Config) { c.NodesFile = name })
	await(t, "nodes", func() bool { return e.Stats().Good >= 4 })
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("nodes file: %v, %v", info, err)
	}
	e = n.device(t, func(c *Config) { c.NodesFile, c.Bootstrap = name, nil }) // the file alone
	await(t, "a node of the file", func() bool { return e.Health().Ready })
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "missing", "nodes")
	e = n.device(t, func(c *Config) { c.NodesFile = bad })
	await(t, "nodes", func() bool { return e.Health().Ready })
	if err := e.Close(); err == nil {
		t.Error("no error though the file cannot be written")
	}
}
