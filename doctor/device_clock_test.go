package doctor

import (
	"context"
	"encoding/binary"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
)

func TestDeviceClock(t *testing.T) {
	hub := deviceHub(t, func(http.ResponseWriter, *http.Request) {}) // net/http says the date
	ntp := deviceUDPServer(t, "127.0.0.1:0", func(b []byte) []byte { return ntpAnswer(b, time.Now()) })
	lost := deviceUDPServer(t, "127.0.0.1:0", func([]byte) []byte { return nil })
	wrong := deviceUDPServer(t, "127.0.0.1:0", func(b []byte) []byte { return ntpAnswer(b, time.Now().Add(100*24*time.Hour)) })
	other := hub
	other.Pin[0] ^= 1
	for name, test := range map[string]struct {
		hubs []hubaddr.Address
		ntp  []netip.AddrPort
		off  time.Duration
		want string
	}{
		"right by the hub":               {[]hubaddr.Address{hub}, nil, 0, "ok"},
		"two days ahead by the hub":      {[]hubaddr.Address{hub}, nil, 48 * time.Hour, "wrong"},
		"two days behind by the hub":     {[]hubaddr.Address{hub}, nil, -48 * time.Hour, "wrong"},
		"an hour":                        {[]hubaddr.Address{hub}, nil, time.Hour, "off"},
		"right by NTP":                   {nil, []netip.AddrPort{ntp}, 0, "ok"},
		"two days by NTP":                {nil, []netip.AddrPort{ntp, lost}, 48 * time.Hour, "wrong"},
		"NTP lies, the hub does not":     {[]hubaddr.Address{hub}, []netip.AddrPort{wrong}, 0, "ok"},
		"nobody answers":                 {nil, []netip.AddrPort{lost}, 48 * time.Hour, "unclear"},
		"nobody to ask":                  {nil, nil, 48 * time.Hour, "unclear"},
		"somebody who is no hub of ours": {[]hubaddr.Address{other}, nil, 48 * time.Hour, "unclear"},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), deviceEnv()
			d.ask = deviceAskUDP
			env.Hubs = test.hubs
			for _, s := range test.ntp {
				env.NTP = append(env.NTP, s.String())
			}
			env.Strangers = true
			env.Now = func() time.Time { return time.Now().Round(0).Add(test.off) }
			deviceExpect(t, d.clockCheck(), env, test.want)
		})
	}
	// Strangers are asked only if they may be, and if no hub tells the time.
	for want, test := range map[string]struct {
		hub, strangers bool
	}{"ok": {true, true}, "unclear": {false, false}} {
		d, env := testDevice(), deviceEnv()
		d.ask = func(context.Context, *Env, netip.AddrPort, []byte, deviceAsk) deviceAnswer {
			t.Error("a stranger is asked")
			return deviceAnswer{}
		}
		env.NTP, env.Strangers = []string{ntp.String()}, test.strangers
		if test.hub {
			env.Hubs = []hubaddr.Address{hub}
		}
		deviceExpect(t, d.clockCheck(), env, want)
	}
}

// ntpAnswer is what a server of network time says whose clock is at now.
func ntpAnswer(req []byte, now time.Time) []byte {
	out := make([]byte, ntpSize)
	out[0], out[1] = 4<<3|4, 2
	copy(out[24:], req[40:48])
	for _, at := range []int{32, 40} {
		binary.BigEndian.PutUint32(out[at:], uint32(now.Unix()+2208988800))
	}
	return out
}

func TestDeviceNTP(t *testing.T) {
	req := make([]byte, ntpSize)
	copy(req[40:], "12345678")
	asked := [8]byte([]byte("12345678"))
	now := time.Now().Truncate(time.Second)
	good := ntpAnswer(req, now)
	if got, ok := parseNTP(good, asked); !ok || !got.sent.Equal(now) {
		t.Errorf("%v, want %v", got, now)
	}
	if got, ok := parseNTP(ntpAnswer(req, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)), asked); !ok || got.sent.Year() != 2040 {
		t.Errorf("after 2036: %v", got.sent)
	}
	for name, change := range map[string]func([]byte){
		"another question": func(b []byte) { b[24] ^= 1 }, "a client": func(b []byte) { b[0] = 4<<3 | 3 },
		"not set": func(b []byte) { b[0] |= 3 << 6 }, "a kiss of death": func(b []byte) { b[1] = 0 }, "backwards": func(b []byte) { b[43]-- },
	} {
		b := slices.Clone(good)
		change(b)
		if _, ok := parseNTP(b, asked); ok {
			t.Errorf("it takes %s", name)
		}
	}
}

// TestQuickAsksNoStrangers: a run that nobody has asked for asks no stranger, whatever the
// settings say.
func TestQuickAsksNoStrangers(t *testing.T) {
	for _, quick := range []bool{false, true} {
		asked := false
		table := []Check{{Code: "device.x", Asks: "?", Quick: true, Run: func(_ context.Context, env *Env, _ string) Answer {
			asked = env.Strangers
			return OK()
		}}}
		Run(t.Context(), Config{Table: table, Env: strangersEnv(), Quick: quick})
		if asked == quick {
			t.Errorf("quick %v: strangers may be asked: %v", quick, asked)
		}
	}
}
