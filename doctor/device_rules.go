package doctor

import (
	"cmp"
	"net/netip"
	"slices"
)

// A fwPacket is a packet that a firewall is asked about.
type fwPacket struct {
	hook         string // input or output
	proto        string // udp or tcp
	state        string // of the connection: new or established
	ifi          string // it comes in or goes out by
	source, dest netip.Addr
	sport, dport uint16
}

// sent is the packet as this device sends it.
func (p fwPacket) sent(state string, from, to netip.AddrPort) fwPacket {
	p.hook, p.state = "output", state
	p.source, p.sport, p.dest, p.dport = from.Addr(), from.Port(), to.Addr(), to.Port()
	return p
}

// got is the packet as this device gets it.
func (p fwPacket) got(state string, from, to netip.AddrPort) fwPacket {
	p = p.sent(state, from, to)
	p.hook = "input"
	return p
}

// family is as nftables has it.
func (p fwPacket) family() string {
	if p.source.Is4() {
		return "ip"
	}
	return "ip6"
}

// kind is what the destination is to this device, as its route table has it.
func (p fwPacket) kind() string {
	switch {
	case p.dest.IsMulticast():
		return "multicast"
	case p.hook == "input":
		return "local"
	}
	return "unicast"
}

// fwSays is what a firewall would do, or whether a rule fits.
type fwSays int

const (
	fwNo fwSays = iota // does not fit
	fwMaybe
	fwYes
	fwAccept
	fwDrop
	fwReturn
)

// A fwRule has conditions that all must fit, and then says something or sends to
// another chain.
type fwRule struct {
	when   []func(fwPacket) fwSays
	says   fwSays
	jump   string
	last   bool                  // nothing of this chain is read after the other one
	choose func(fwPacket) fwRule // a map of verdicts
}

type fwChain struct {
	family   string // inet, ip or ip6
	table    string // with the family
	hook     string // "" for one that others jump to
	priority int    // the order of chains of a hook
	policy   fwSays
	rules    []fwRule
	xt       bool // a rule is of iptables, and not told whole
}

// fwRules are chains by family, table and name.
type fwRules map[string]*fwChain

// replace puts chains of iptables in the place of what nftables shows of them, unless that
// is told whole.
func (r fwRules) replace(by fwRules) {
	there, untold, given := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, c := range r {
		there[c.table], untold[c.table] = true, untold[c.table] || c.xt
	}
	for _, c := range by {
		given[c.table] = true
	}
	for name, c := range r {
		if untold[c.table] && given[c.table] {
			delete(r, name)
		}
	}
	for name, c := range by {
		if !there[c.table] || untold[c.table] {
			r[name] = c
		}
	}
}

// judge says what becomes of a packet: fwAccept, fwDrop, or fwMaybe if a rule decides
// that is not understood. by is the chain that drops it, with its family and table.
func (r fwRules) judge(p fwPacket) (result fwSays, by string) {
	var base []string
	for name, c := range r {
		if c.hook == p.hook && (c.family == "inet" || c.family == p.family()) {
			base = append(base, name)
		}
	}
	slices.SortFunc(base, func(a, b string) int { return cmp.Or(cmp.Compare(r[a].priority, r[b].priority), cmp.Compare(a, b)) })
	budget := maxSteps
	result = fwAccept
	for _, name := range base {
		says := r.walk(r[name], p, &budget)
		if says == fwNo || says == fwReturn {
			says = r[name].policy
		}
		switch {
		case says == fwDrop:
			return fwDrop, name // whatever others say
		case says == fwMaybe:
			result = fwMaybe
		}
	}
	return result, ""
}

// maxSteps is how many rules are gone through for a packet, a count: rules of a kernel
// have no circles, those of a text may.
const maxSteps = maxRules

func (r fwRules) walk(c *fwChain, p fwPacket, budget *int) fwSays {
	for _, rule := range c.rules {
		if *budget--; *budget < 0 {
			return fwMaybe
		}
		fits := fwYes
		for _, when := range rule.when {
			fits = min(fits, when(p))
		}
		if fits == fwNo {
			continue
		}
		if rule.choose != nil {
			rule = rule.choose(p)
		}
		says := rule.says
		if rule.jump != "" {
			says = fwMaybe // a target that is not known
			if next := r[rule.jump]; next != nil {
				says = r.walk(next, p, budget)
			}
			if says == fwReturn {
				says = fwNo
			}
			if says == fwNo && rule.last {
				says = fwReturn
			}
		}
		switch {
		case says == fwNo || says == fwYes:
		case fits == fwMaybe || says == fwMaybe:
			return fwMaybe
		default:
			return says
		}
	}
	return fwNo
}

// not turns a condition round.
func (s fwSays) not() fwSays {
	switch s {
	case fwYes:
		return fwNo
	case fwNo:
		return fwYes
	}
	return s
}

func fwFits(ok bool) fwSays {
	if ok {
		return fwYes
	}
	return fwNo
}
