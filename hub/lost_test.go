package hub

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// rawTURN is a client of the relay that says what it is told to.
type rawTURN struct {
	net.Conn
	user, password string
	nonce          stun.Nonce
}

func dialRaw(t testing.TB, h *Hub, via, user, password string) *rawTURN {
	t.Helper()
	network := "tcp"
	if via == "udp" {
		network = "udp"
	}
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), network, h.hostPort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &rawTURN{Conn: conn, user: user, password: password}
}

// read returns the next packet or frame, or nil where there is none for d.
func (c *rawTURN) read(t testing.TB, d time.Duration) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(d))
	buf := make([]byte, 2048)
	var n int
	var err error
	if c.RemoteAddr() == nil || c.RemoteAddr().Network() == "udp" {
		n, err = c.Read(buf)
	} else if n, err = io.ReadFull(c.Conn, buf[:stunHeader]); err == nil {
		n += int(binary.BigEndian.Uint16(buf[2:]))
		_, err = io.ReadFull(c.Conn, buf[stunHeader:n])
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// once sends a request, signed if there is a nonce, and returns the answer.
func (c *rawTURN) once(t testing.TB, method stun.Method, attrs ...stun.Setter) *stun.Message {
	t.Helper()
	set := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attrs...)
	if c.nonce != nil {
		set = append(set, stun.NewUsername(c.user), stun.NewRealm(turnRealm), c.nonce, stun.NewLongTermIntegrity(c.user, turnRealm, c.password))
	}
	req, err := stun.Build(set...)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 { // UDP: a packet may be lost
		if _, err := c.Write(req.Raw); err != nil {
			t.Fatal(err)
		}
		for raw := c.read(t, time.Second); raw != nil; raw = c.read(t, time.Second) {
			m := &stun.Message{Raw: raw}
			if m.Decode() == nil && m.TransactionID == req.TransactionID {
				return m
			}
		}
	}
	t.Fatalf("no answer to %v", method)
	return nil
}

// ask is once, again with the nonce that the answer brings.
func (c *rawTURN) ask(t testing.TB, method stun.Method, attrs ...stun.Setter) *stun.Message {
	t.Helper()
	m := c.once(t, method, attrs...)
	if code := errorOf(m); code == stun.CodeUnauthorized || code == stun.CodeStaleNonce {
		if err := c.nonce.GetFrom(m); err != nil {
			t.Fatal(err)
		}
		m = c.once(t, method, attrs...)
	}
	return m
}

func errorOf(m *stun.Message) stun.ErrorCode {
	var code stun.ErrorCodeAttribute
	if code.GetFrom(m) != nil {
		return 0
	}
	return code.Code
}

var wantUDP = stun.RawAttribute{Type: stun.AttrRequestedTransport, Length: 4, Value: []byte{17, 0, 0, 0}}

func peerAttr(addr net.Addr) stun.Setter { return peerAddress(addrOf(addr)) }

type peerAddress netip.AddrPort

func (p peerAddress) AddTo(m *stun.Message) error {
	ap := netip.AddrPort(p)
	return stun.XORMappedAddress{IP: ap.Addr().AsSlice(), Port: int(ap.Port())}.AddToAs(m, stun.AttrXORPeerAddress)
}

func channelAttr(n uint16) stun.Setter {
	return stun.RawAttribute{Type: stun.AttrChannelNumber, Length: 4, Value: []byte{byte(n >> 8), byte(n), 0, 0}}
}

// TestUnknownAllocation holds that a signed request for an allocation that there
// is not is answered at once, and so that the client can trust it.
func TestUnknownAllocation(t *testing.T) {
	h := open(t, nil)
	peer := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}
	for _, via := range []string{"udp", "tcp"} {
		for method, attrs := range map[stun.Method][]stun.Setter{
			stun.MethodRefresh:          nil,
			stun.MethodCreatePermission: {peerAttr(peer)},
			stun.MethodChannelBind:      {channelAttr(0x4000), peerAttr(peer)},
		} {
			t.Run(via+" "+method.String(), func(t *testing.T) {
				user, password := turnUser(h, "desk", time.Hour)
				c := dialRaw(t, h, via, user, password)
				start := time.Now()
				m := c.ask(t, method, attrs...)
				if took := time.Since(start); took > time.Second {
					t.Errorf("it took %v", took)
				}
				if errorOf(m) != stun.CodeAllocMismatch || m.Type != stun.NewType(method, stun.ClassErrorResponse) {
					t.Fatalf("%v", m)
				}
				if err := stun.NewLongTermIntegrity(user, turnRealm, password).Check(m); err != nil {
					t.Errorf("integrity: %v", err)
				}
				if err := stun.Fingerprint.Check(m); err != nil {
					t.Errorf("fingerprint: %v", err)
				}
				// With an allocation that is another's.
				if m := c.ask(t, stun.MethodAllocate, wantUDP); m.Type.Class != stun.ClassSuccessResponse {
					t.Fatalf("allocate: %v", m)
				}
				other := *c
				other.user, other.password = turnUser(h, "other", time.Hour)
				if m := other.ask(t, method, attrs...); errorOf(m) != stun.CodeWrongCredentials {
					t.Errorf("another's allocation: %v", m)
				}
				// One's own is another matter.
				if m := c.ask(t, stun.MethodRefresh); m.Type.Class != stun.ClassSuccessResponse {
					t.Errorf("refresh: %v", m)
				}
			})
		}
	}
	// Without the right signature nobody is told anything about allocations.
	c := dialRaw(t, h, "udp", strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)+":desk", "guessed")
	if m := c.ask(t, stun.MethodRefresh); errorOf(m) != stun.CodeBadRequest {
		t.Errorf("a guess: %v", m)
	}
}

// TestRestart holds that a client that had an allocation before the hub was
// started again is told so in two round trips, the first of them for the nonce,
// and that a packet of data brings it to ask.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	h := open(t, func(c *Config) { c.Dir = dir })
	a := h.Address()
	user, password := turnUser(h, "desk", time.Hour)
	c := dialRaw(t, h, "udp", user, password)
	if m := c.ask(t, stun.MethodAllocate, wantUDP); m.Type.Class != stun.ClassSuccessResponse {
		t.Fatal(m)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	isHint(t, c.read(t, testLimit)) // the hub's farewell
	open(t, func(c *Config) {
		c.Dir, c.Listen, c.AltPort = dir, "127.0.0.1:"+strconv.Itoa(int(a.Port)), int(a.AltPort)
	})
	if _, err := c.Write(channelData(0x4000, make([]byte, 148))); err != nil {
		t.Fatal(err)
	}
	isHint(t, c.read(t, testLimit))
	m := c.once(t, stun.MethodRefresh)
	if errorOf(m) != stun.CodeStaleNonce || c.nonce.GetFrom(m) != nil {
		t.Fatalf("with the old nonce: %v", m)
	}
	if m = c.once(t, stun.MethodRefresh); errorOf(m) != stun.CodeAllocMismatch {
		t.Fatalf("with the new nonce: %v", m)
	}
	if m = c.once(t, stun.MethodAllocate, wantUDP); m.Type.Class != stun.ClassSuccessResponse {
		t.Fatalf("the same client again: %v", m)
	}
}

func channelData(number uint16, payload []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, number)
	return append(binary.BigEndian.AppendUint16(out, uint16(len(payload))), payload...)
}

// isHint checks the hub's word that there is no allocation.
func isHint(t testing.TB, raw []byte) {
	t.Helper()
	m := &stun.Message{Raw: raw}
	if err := m.Decode(); err != nil || m.Type != stun.NewType(stun.MethodRefresh, stun.ClassErrorResponse) ||
		errorOf(m) != stun.CodeAllocMismatch || m.TransactionID != [stun.TransactionIDSize]byte{} || stun.Fingerprint.Check(m) != nil {
		t.Fatalf("%x: %v", raw, err)
	}
}

// TestUnknownData holds that senders of data without an allocation are told, with
// fewer bytes than they sent and not often.
func TestUnknownData(t *testing.T) {
	h := open(t, nil)
	c := dialRaw(t, h, "udp", "", "")
	send, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), stun.RawAttribute{Type: stun.AttrData, Length: 32, Value: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string][]byte{"channel": channelData(0x4000, make([]byte, 32)), "indication": send.Raw} {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		hint := c.read(t, testLimit)
		isHint(t, hint)
		if len(hint) > len(p) {
			t.Errorf("%s: %d bytes for %d", name, len(hint), len(p))
		}
	}
	for range 500 {
		if _, err := c.Write(channelData(0x4000, make([]byte, 31))); err != nil { // a byte too short for an answer
			t.Fatal(err)
		}
		if _, err := c.Write(channelData(0x4000, make([]byte, 32))); err != nil {
			t.Fatal(err)
		}
	}
	if m := c.once(t, stun.MethodBinding); m.Type != stun.BindingSuccess { // all before it was handled
		t.Error(m)
	}
	if got := metric(h, `kith_hub_drops_total{reason="allocation"}`); got < 500 {
		t.Errorf("%v packets counted", got)
	}
	start := time.Now()
	told := 0
	for raw := c.read(t, 100*time.Millisecond); raw != nil; raw = c.read(t, 100*time.Millisecond) {
		isHint(t, raw)
		told++
	}
	if most := bindingBurst + bindingRate*(1+time.Since(start).Seconds()); float64(told) > most {
		t.Errorf("told %d times", told)
	}
}

// TestFarewell holds that clients of the relay hear that the hub stops.
func TestFarewell(t *testing.T) {
	h := open(t, nil)
	clients := make(map[string]*rawTURN)
	for _, via := range []string{"udp", "tcp"} {
		user, password := turnUser(h, "desk", time.Hour)
		clients[via] = dialRaw(t, h, via, user, password)
		if m := clients[via].ask(t, stun.MethodAllocate, wantUDP); m.Type.Class != stun.ClassSuccessResponse {
			t.Fatal(m)
		}
	}
	start := time.Now()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	isHint(t, clients["udp"].read(t, testLimit))
	_ = clients["tcp"].SetReadDeadline(time.Now().Add(testLimit))
	if n, err := clients["tcp"].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("TCP: %d bytes, %v", n, err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestClocks relays for clients whose clocks are wrong: kith's make their
// credentials for twelve hours from what they take for now.
func TestClocks(t *testing.T) {
	h := open(t, nil)
	peer := udpConn(t, "127.0.0.1:0")
	for name, off := range map[string]time.Duration{
		"right": 0, "two days behind": -48 * time.Hour, "two days ahead": 48 * time.Hour, "a week behind": -7 * 24 * time.Hour, "years ahead": 10 * 365 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			user, password := turnUser(h, "desk", off+12*time.Hour)
			exchange(t, allocate(t, turnDial(t, h, "udp", user, password)), peer.LocalAddr(), peer, []byte(name))
		})
	}
}

// TestClientName is the table of users.
func TestClientName(t *testing.T) {
	now := time.Unix(2e9, 0)
	at := func(d time.Duration) string { return strconv.FormatInt(now.Add(d).Unix(), 10) }
	for user, want := range map[string]string{
		at(time.Hour) + ":desk": "desk", at(-clockSlack+time.Second) + ":desk": "desk", at(time.Hour) + ":a:b": "a:b",
		"4102444800:desk": "desk", strconv.FormatInt(math.MaxInt64, 10) + ":x": "x",
		at(-clockSlack) + ":desk": "", "0:desk": "", "-1:desk": "", "+" + at(time.Hour) + ":desk": "", at(time.Hour): "", at(time.Hour) + ":": "",
		":desk": "", "soon:desk": "", "99999999999999999999:desk": "", at(time.Hour) + ":" + strings.Repeat("x", maxTURNUser): "",
	} {
		if got, ok := clientName(user, now); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v, want %q", user, got, ok, want)
		}
	}
}

// FuzzSigned holds that the walk over attributes ends, and finds what the library
// finds.
func FuzzSigned(f *testing.F) {
	m, err := stun.Build(stun.TransactionID, stun.BindingRequest, stun.NewUsername("abc"), stun.NewShortTermIntegrity("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Raw)
	f.Add(m.Raw[:stunHeader])
	f.Add([]byte("\x00\x01\x00\x04\x21\x12\xa4\x42aaaaaaaaaaaa\x00\x08\xff\xff"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := signed(raw)
		m := &stun.Message{Raw: bytes.Clone(raw)}
		if m.Decode() == nil && len(m.Raw) == stunHeader+int(m.Length) && m.Contains(stun.AttrMessageIntegrity) && !got {
			t.Errorf("%x", raw)
		}
	})
}
