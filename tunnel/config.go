package tunnel

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	wg "golang.zx2c4.com/wireguard/device"

	"github.com/kithproject/kith/identity"
)

// A setting is text of WireGuard's configuration protocol. It holds keys: it is
// wiped after use and never part of an error.
type setting struct{ b []byte }

// newSetting has room for all settings made here, so that growing leaves no copy
// of a key behind.
func newSetting() *setting { return &setting{make([]byte, 0, 512)} }

func (s *setting) text(name, value string) *setting {
	s.b = append(append(append(append(s.b, name...), '='), value...), '\n')
	return s
}

func (s *setting) number(name string, value int) *setting {
	return s.text(name, strconv.Itoa(value))
}

func (s *setting) key(name string, value [32]byte) *setting {
	s.b = append(append(s.b, name...), '=')
	s.b = append(hex.AppendEncode(s.b, value[:]), '\n')
	return s
}

// configure tells WireGuard.
func (t *Tunnel) configure(s *setting) error {
	defer clear(s.b)
	err := t.device.IpcSetOperation(bytes.NewReader(s.b))
	if err == nil {
		return nil
	}
	var ipc *wg.IPCError
	if errors.As(err, &ipc) {
		return fmt.Errorf("tunnel: WireGuard refuses the configuration (code %d)", ipc.ErrorCode())
	}
	return errors.New("tunnel: WireGuard refuses the configuration")
}

// Stats returns what WireGuard counts for a device; it reports false for one that
// was not added.
func (t *Tunnel) Stats(id identity.DeviceID) (PeerStats, bool) {
	p, err := t.peer(id)
	if err != nil {
		return PeerStats{}, false
	}
	// WireGuard writes all it has to say in one call.
	s := statsReader{key: hex.EncodeToString(p.WireGuard[:])}
	if err := t.device.IpcGetOperation(&s); err != nil {
		return PeerStats{}, false
	}
	return s.stats, s.found
}

// A statsReader takes the counters of one peer out of WireGuard's configuration
// without a copy of the keys in it.
type statsReader struct {
	key   string
	stats PeerStats
	found bool
}

// Write reads a whole configuration.
func (s *statsReader) Write(text []byte) (int, error) {
	s.stats, s.found = parseStats(bytes.NewReader(text), s.key)
	return len(text), nil
}

// parseStats reads the section of one public key from WireGuard's configuration
// protocol.
func parseStats(r io.Reader, key string) (PeerStats, bool) {
	var st PeerStats
	var sec, nsec int64
	found, here := false, false
	space := make([]byte, 0, 4<<10)
	defer clear(space[:cap(space)]) // it holds keys
	lines := bufio.NewScanner(r)
	lines.Buffer(space, cap(space))
	for lines.Scan() {
		name, value, _ := bytes.Cut(lines.Bytes(), []byte("="))
		if string(name) == "public_key" {
			here = string(value) == key
			found = found || here
		}
		if !here {
			continue
		}
		switch string(name) {
		case "last_handshake_time_sec":
			sec = counter[int64](value, sec)
		case "last_handshake_time_nsec":
			nsec = counter[int64](value, nsec)
		case "rx_bytes":
			st.RxBytes = counter(value, st.RxBytes)
		case "tx_bytes":
			st.TxBytes = counter(value, st.TxBytes)
		}
	}
	if sec != 0 || nsec != 0 {
		st.LastHandshake = time.Unix(sec, nsec)
	}
	return st, found
}

// counter reads a number, or keeps the old one if there is none.
func counter[N int64 | uint64](text []byte, old N) N {
	n, err := strconv.ParseUint(string(text), 10, 63)
	if err != nil {
		return old
	}
	return N(n)
}
