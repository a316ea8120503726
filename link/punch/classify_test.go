package punch

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestClassifyEveryKindOfRouter(t *testing.T) {
	want := map[string]Behaviour{
		"none":           {Mapping: None, Filtering: EndpointIndependent, Preserves: true},
		"firewalled":     {Mapping: None, Preserves: true},
		"full cone":      {Mapping: EndpointIndependent, Filtering: EndpointIndependent},
		"restricted":     {Mapping: EndpointIndependent, Filtering: AddressDependent},
		"easy":           {Mapping: EndpointIndependent},
		"random":         {Mapping: AddressAndPortDependent},
		"random adm":     {Mapping: AddressDependent},
		"sequential":     {Mapping: AddressAndPortDependent, Delta: 1},
		"down by two":    {Mapping: AddressAndPortDependent, Delta: -2},
		"sequential adm": {Mapping: AddressDependent, Delta: 1},
		"block 512":      {Mapping: AddressAndPortDependent},
		"block 1024":     {Mapping: AddressAndPortDependent},
	}
	blocks := map[string]int{"block 512": 512, "block 1024": 1024}
	if len(want) != len(natKinds) {
		t.Fatal("a kind of router is missing")
	}
	for _, kind := range natKinds {
		t.Run(kind, func(t *testing.T) {
			const trials = 400
			inside, outside := 0, 0
			for i := range trials {
				n := natOf(kind, publicA, rand.New(rand.NewPCG(uint64(i), 3)))
				samples := n.sample()
				got := Classify(samples)
				if got.Public != publicA || got.LastPort == 0 || got.SampledPorts == 0 {
					t.Fatalf("%+v lacks what every sample has", got)
				}
				if !got.Hard() && got.LastPort != samples[0].Mapped.Port() {
					t.Fatalf("%+v: the last port is not the main socket's, %v", got, samples[0].Mapped)
				}
				if got.Delta != 0 && got.step(1) != n.allocate() {
					t.Fatalf("%+v does not predict the next port", got)
				}
				w := want[kind]
				w.Public, w.LastPort, w.SampledPorts = got.Public, got.LastPort, got.SampledPorts
				if size := blocks[kind]; size != 0 && got.block() > 0 {
					inside++
					if !inBlock(got, n, size) {
						outside++
					}
				}
				if blocks[kind] != 0 {
					w.BlockLow, w.BlockHigh = got.BlockLow, got.BlockHigh
				}
				if got != w {
					t.Fatalf("got  %+v\nwant %+v", got, w)
				}
			}
			// Random ports can lie so that the block seems too large to be one.
			if blocks[kind] != 0 && (inside < trials*9/10 || outside > trials/20) {
				t.Errorf("block found in %d of %d, and wrong in %d", inside, trials, outside)
			}
		})
	}
}

// inBlock reports whether the block that was found holds nine tenths of what the
// router gives out, and is at most 2.2 times too large.
func inBlock(b Behaviour, n *nat, size int) bool {
	in := 0
	for range 1000 {
		if p := n.allocate(); p >= b.BlockLow && p <= b.BlockHigh {
			in++
		}
	}
	return in >= 850 && b.block()*5 <= size*11
}

func TestClassifyDoubtfulSamples(t *testing.T) {
	local := netip.MustParseAddrPort("192.168.1.2:41641")
	at := func(seconds int, server, mapped string) Sample {
		return Sample{Local: local, Server: netip.MustParseAddrPort(server), Mapped: netip.MustParseAddrPort(mapped), At: epoch.Add(time.Duration(seconds) * time.Second)}
	}
	on := func(port uint16, s Sample) Sample {
		s.Local = netip.AddrPortFrom(local.Addr(), port)
		return s
	}
	const s1, s1b, s2 = "192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478"
	for _, c := range []struct {
		name    string
		samples []Sample
		want    func(Behaviour) bool
	}{
		{"nothing", nil, func(b Behaviour) bool { return b == Behaviour{} }},
		{"one server tells nothing of the mapping", []Sample{at(0, s1, "198.51.100.7:1111")}, func(b Behaviour) bool { return b.Mapping == Unknown && b.LastPort == 1111 }},
		{"two ports of one server do not prove independence", []Sample{at(0, s1, "198.51.100.7:1111"), at(1, s1b, "198.51.100.7:1111")},
			func(b Behaviour) bool { return b.Mapping == Unknown }},
		{"two addresses do", []Sample{at(0, s1, "198.51.100.7:1111"), at(1, s2, "198.51.100.7:1111")}, func(b Behaviour) bool { return b.Mapping == EndpointIndependent }},
		{"two addresses differ, ports unknown: the worse", []Sample{at(0, s1, "198.51.100.7:1111"), at(1, s2, "198.51.100.7:2222")},
			func(b Behaviour) bool { return b.Mapping == AddressAndPortDependent }},
		{"a mapping forgotten in between is not a hard NAT", []Sample{at(0, s1, "198.51.100.7:1111"), at(60, s1, "198.51.100.7:2222"), at(61, s2, "198.51.100.7:2222")},
			func(b Behaviour) bool { return b.Mapping == EndpointIndependent && b.LastPort == 2222 }},
		{"old samples do not count", []Sample{at(0, s1, "198.51.100.7:1111"), at(200, s2, "198.51.100.7:2222")}, func(b Behaviour) bool { return b.Mapping == Unknown && b.LastPort == 2222 }},
		{"several public addresses", []Sample{at(0, s1, "198.51.100.7:1111"), at(1, s2, "198.51.100.8:1111")}, func(b Behaviour) bool { return b.Pooled && b.Hard() }},
		{"ports kept", []Sample{at(0, s1, "198.51.100.7:41641"), at(1, s2, "198.51.100.7:41641")}, func(b Behaviour) bool { return b.Preserves && b.Mapping == EndpointIndependent }},
		{"answers out of order", []Sample{
			at(0, s1, "198.51.100.7:5000"), at(1, s1b, "198.51.100.7:5001"), on(1, at(2, s1, "198.51.100.7:5003")), on(2, at(2, s1, "198.51.100.7:5002")),
			on(3, at(3, s1, "198.51.100.7:5004")), on(4, at(4, s1, "198.51.100.7:5006")),
		}, func(b Behaviour) bool { return b.Delta == 1 && b.LastPort == 5006 }},
		{"others take ports too", []Sample{at(0, s1, "198.51.100.7:5000"), at(1, s1b, "198.51.100.7:5014"), on(1, at(2, s1, "198.51.100.7:5020")), on(2, at(2, s1, "198.51.100.7:5048"))},
			func(b Behaviour) bool { return b.Delta == 2 && b.LastPort == 5048 }},
		{"two ports are no sequence", []Sample{at(0, s1, "198.51.100.7:5000"), at(1, s2, "198.51.100.7:5001")}, func(b Behaviour) bool { return b.Delta == 0 && b.block() == 0 }},
		{"IPv6 and rubbish", []Sample{at(0, s1, "[2001:db8::1]:5"), at(0, "[2001:db8::1]:5", "198.51.100.7:1"), at(0, s1, "224.0.0.1:5"), at(0, s1, "198.51.100.7:0"), {}},
			func(b Behaviour) bool { return b == Behaviour{} }},
		{"IPv4 in IPv6", []Sample{at(0, "[::ffff:192.0.2.1]:3478", "[::ffff:198.51.100.7]:1111"), at(1, s2, "198.51.100.7:1111")},
			func(b Behaviour) bool { return b.Mapping == EndpointIndependent }},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Classify(c.samples)
			if !c.want(got) {
				t.Errorf("%+v", got)
			}
			slices.Reverse(c.samples)
			if c.name != "answers out of order" && c.name != "others take ports too" && Classify(c.samples) != got {
				t.Errorf("in another order: %+v", Classify(c.samples))
			}
		})
	}
}

func TestFilteringNeedsAnUntouchedAddress(t *testing.T) {
	local := netip.MustParseAddrPort("192.168.1.2:41641")
	mapped := netip.MustParseAddrPort("198.51.100.7:1111")
	s1, s2 := netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("192.0.2.2:3478")
	asked := Sample{Local: local, Server: s2, Mapped: mapped, At: epoch}
	changed := Sample{Local: local, Server: s1, From: s2, Mapped: mapped, At: epoch.Add(time.Second)}
	if got := Classify([]Sample{changed}).Filtering; got != EndpointIndependent {
		t.Errorf("an answer from elsewhere: %v", got)
	}
	if got := Classify([]Sample{asked, changed}).Filtering; got != Unknown {
		t.Errorf("an answer from where we had sent to proves nothing, got %v", got)
	}
	changed.From = netip.AddrPortFrom(s2.Addr(), 9)
	if got := Classify([]Sample{asked, changed}).Filtering; got != AddressDependent {
		t.Errorf("an answer from another port of where we had sent to: %v", got)
	}
}
