package doctor

import (
	"slices"
	"strings"
	"testing"
)

// TestCutOff: of a device that hears nobody no other one is accused of silence, and what is
// wrong with a device that is there is told.
func TestCutOff(t *testing.T) {
	no := func(name string) Result {
		code, finding, _ := strings.Cut(name, "/")
		return Result{Code: Code(code), State: No, Finding: finding, Severity: Limit}
	}
	for _, here := range []string{
		"device.interfaces/none", "device.addresses/linklocal", "device.routes/none", "device.gateway/silent", "device.portal/login", "device.outside/nothing",
		"device.firewall/out", "device.firewall/answers", "device.vpn/captures",
	} {
		results := []Result{no(here), no("peers.known/ended"), no("peers.heard/gone"), no("relays.tcp/hub-silent"), no("meeting.broker/silent"), no("peers.candidates/relay")}
		explain(Table(), results)
		if got, want := codes(causes(&Env{}, results)), []string{here, "peers.known/ended"}; !slices.Equal(got, want) {
			t.Errorf("%s: causes %q, want %q", here, got, want)
		}
	}
}
