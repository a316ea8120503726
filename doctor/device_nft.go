package doctor

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const maxRules = 20_000 // of a firewall that are read, a count

// parseNft reads what nft -j list ruleset prints (libnftables-json(5)), as far as it
// decides about packets of UDP and TCP; a condition that is not understood may fit or not.
// It errs for what is no JSON of it, and for more rules than it reads.
func parseNft(raw []byte) (fwRules, error) {
	var doc struct {
		Nftables []struct {
			Chain *struct {
				Family, Table, Name, Hook, Policy, Type string
				Prio                                    int
			}
			Rule *struct {
				Family, Table, Chain string
				Expr                 []map[string]json.RawMessage
			}
			Set *struct {
				Family, Table, Name string
				Elem                []json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("doctor: rules of nftables: %w", err)
	}
	if len(doc.Nftables) > maxRules {
		return nil, errManyRules
	}
	out, sets := make(fwRules), make(nftSets)
	for _, x := range doc.Nftables {
		switch {
		case x.Set != nil:
			sets[x.Set.Family+" "+x.Set.Table+" "+x.Set.Name] = x.Set.Elem
		case x.Chain != nil && nftFamily(x.Chain.Family):
			c := &fwChain{family: x.Chain.Family, table: x.Chain.Family + " " + x.Chain.Table, priority: x.Chain.Prio, policy: fwAccept}
			if x.Chain.Type == "filter" {
				c.hook = x.Chain.Hook
			}
			if x.Chain.Policy == "drop" {
				c.policy = fwDrop
			}
			out[c.table+" "+x.Chain.Name] = c
		case x.Rule != nil:
			table := x.Rule.Family + " " + x.Rule.Table
			if c := out[table+" "+x.Rule.Chain]; c != nil {
				rule, xt := nftRule(x.Rule.Expr, table, sets)
				c.rules, c.xt = append(c.rules, rule), c.xt || xt
			}
		}
	}
	return out, nil
}

var errManyRules = errors.New("doctor: the firewall has more rules than are read")

func nftFamily(f string) bool { return f == "inet" || f == "ip" || f == "ip6" }

// nftRule reads the statements of a rule, and says whether one is of iptables.
func nftRule(exprs []map[string]json.RawMessage, table string, sets nftSets) (r fwRule, xt bool) {
	maybe := func(fwPacket) fwSays { return fwMaybe }
	for _, e := range exprs {
		for kind, raw := range e {
			switch kind {
			case "match":
				r.when = append(r.when, nftMatch(raw, table, sets))
			case "vmap":
				r.choose = nftChoose(raw, table)
			case "accept", "drop", "reject", "return", "queue", "jump", "goto":
				v := nftVerdict(kind, raw, table)
				r.says, r.jump, r.last = v.says, v.jump, v.last
			case "xt":
				xt = true
				if !xtTells(raw) {
					r.when, r.says = append(r.when, maybe), cmp.Or(r.says, fwMaybe)
				}
			case "counter", "log", "mangle", "notrack", "dup", "flow", "set", "map", "comment", "ct helper", "ct timeout", "ct expectation", "secmark", "last":
				// decides nothing
			default: // a limit, and what else may fit or not
				r.when = append(r.when, maybe)
			}
		}
	}
	return r, xt
}

// xtTells reports whether an extension of iptables decides nothing.
func xtTells(raw json.RawMessage) bool {
	var x struct{ Type, Name string }
	if json.Unmarshal(raw, &x) != nil {
		return false
	}
	return x.Type == "match" && x.Name == "comment" || x.Type == "target" && slices.Contains(idleTargets, x.Name)
}

func nftVerdict(kind string, raw json.RawMessage, table string) fwRule {
	switch kind {
	case "accept":
		return fwRule{says: fwAccept}
	case "drop", "reject":
		return fwRule{says: fwDrop}
	case "return":
		return fwRule{says: fwReturn}
	case "continue":
		return fwRule{says: fwNo}
	case "jump", "goto":
		var to struct{ Target string }
		if json.Unmarshal(raw, &to) == nil {
			return fwRule{jump: table + " " + to.Target, last: kind == "goto"}
		}
	}
	return fwRule{says: fwMaybe} // a queue, and what is not known
}

// nftSets are the elements of sets, by family, table and name.
type nftSets map[string][]json.RawMessage

// nftMatch reads a condition.
func nftMatch(raw json.RawMessage, table string, sets nftSets) func(fwPacket) fwSays {
	var m struct {
		Op          string
		Left, Right json.RawMessage
	}
	if json.Unmarshal(raw, &m) != nil {
		return func(fwPacket) fwSays { return fwMaybe }
	}
	return func(p fwPacket) fwSays {
		got, says := nftField(m.Left, p)
		if says != fwYes {
			return says // also for !=: a field of another protocol is not there
		}
		var name string
		if json.Unmarshal(m.Right, &name) == nil && strings.HasPrefix(name, "@") {
			if list, known := sets[table+" "+name[1:]]; known {
				says = nftAny(list, got)
			} else {
				says = fwMaybe
			}
		} else {
			says = nftFits(m.Right, got)
		}
		if m.Op == "!=" {
			return says.not()
		}
		if m.Op != "==" && m.Op != "in" && m.Op != "" {
			return fwMaybe
		}
		return says
	}
}

// nftField is what a packet has for the left side of a condition; fwNo: it has no such
// field, fwMaybe: it is not known.
func nftField(left json.RawMessage, p fwPacket) (string, fwSays) {
	var f struct {
		Meta    *struct{ Key string }
		Ct      *struct{ Key string }
		Payload *struct{ Protocol, Field string }
		Fib     *struct {
			Result string
			Flags  []string
		}
	}
	if json.Unmarshal(left, &f) != nil {
		return "", fwMaybe
	}
	switch {
	case f.Meta != nil:
		switch key := f.Meta.Key; {
		case key == "l4proto":
			return p.proto, fwYes
		case key == "nfproto":
			return map[string]string{"ip": "ipv4", "ip6": "ipv6"}[p.family()], fwYes
		case key == "pkttype":
			return map[bool]string{true: "multicast", false: "host"}[p.kind() == "multicast"], fwYes
		case (key == "iifname" || key == "iif") && p.hook == "input", (key == "oifname" || key == "oif") && p.hook == "output":
			return p.ifi, fwYes
		case key == "iifname", key == "iif", key == "oifname", key == "oif":
			return "", fwYes
		}
	case f.Ct != nil && f.Ct.Key == "state":
		return p.state, fwYes
	case f.Ct != nil && f.Ct.Key == "status":
		return ctStatus, fwYes
	case f.Fib != nil && f.Fib.Result == "type" && slices.Equal(f.Fib.Flags, []string{"daddr"}):
		return p.kind(), fwYes
	case f.Payload != nil:
		return nftPayload(f.Payload.Protocol, f.Payload.Field, p)
	}
	return "", fwMaybe
}

// ctStatus stands for the status of a connection that no rule of address translation has
// changed.
const ctStatus = "kith-status"

func nftPayload(proto, field string, p fwPacket) (string, fwSays) {
	switch {
	case (proto == p.proto || proto == "th") && field == "dport":
		return strconv.Itoa(int(p.dport)), fwYes
	case (proto == p.proto || proto == "th") && field == "sport":
		return strconv.Itoa(int(p.sport)), fwYes
	case proto == p.family() && field == "saddr":
		return p.source.String(), fwYes
	case proto == p.family() && field == "daddr":
		return p.dest.String(), fwYes
	case proto == "ip" && p.family() == "ip" && field == "protocol", proto == "ip6" && p.family() == "ip6" && field == "nexthdr":
		return p.proto, fwYes
	case slices.Contains([]string{"ip", "ip6", "udp", "tcp", "udplite", "sctp", "dccp", "icmp", "icmpv6", "igmp", "ah", "esp", "comp", "gre", "arp"}, proto) &&
		proto != p.proto && proto != p.family():
		return "", fwNo // of another protocol
	}
	return "", fwMaybe
}

// nftFits compares with the right side of a condition.
func nftFits(right json.RawMessage, got string) fwSays {
	var text string
	var number int
	var list []json.RawMessage
	var object map[string]json.RawMessage
	switch {
	case got == ctStatus:
		return nftStatus(right)
	case json.Unmarshal(right, &text) == nil:
		if strings.HasPrefix(text, "@") {
			return fwMaybe // a set by name within another
		}
		if rest, wild := strings.CutSuffix(text, "*"); wild {
			return fwFits(strings.HasPrefix(got, rest))
		}
		return fwFits(text == got)
	case json.Unmarshal(right, &number) == nil:
		return fwFits(strconv.Itoa(number) == got)
	case json.Unmarshal(right, &list) == nil:
		return nftAny(list, got)
	case json.Unmarshal(right, &object) == nil:
		if set, ok := object["set"]; ok && json.Unmarshal(set, &list) == nil {
			return nftAny(list, got)
		}
		if raw, ok := object["elem"]; ok { // with a timeout, a counter or a comment
			var e struct{ Val json.RawMessage }
			if json.Unmarshal(raw, &e) == nil && e.Val != nil {
				return nftFits(e.Val, got)
			}
			return fwMaybe
		}
		if raw, ok := object["range"]; ok {
			return nftRange(raw, got)
		}
		if raw, ok := object["prefix"]; ok {
			return nftPrefix(raw, got)
		}
	}
	return fwMaybe
}

func nftAny(list []json.RawMessage, got string) fwSays {
	best := fwNo
	for _, x := range list {
		best = max(best, nftFits(x, got))
	}
	return best
}

// nftRange is of ports or of addresses.
func nftRange(raw json.RawMessage, got string) fwSays {
	var ports [2]int
	if n, err := strconv.Atoi(got); err == nil && json.Unmarshal(raw, &ports) == nil {
		return fwFits(ports[0] <= n && n <= ports[1])
	}
	var addrs [2]netip.Addr
	if a, err := netip.ParseAddr(got); err == nil && json.Unmarshal(raw, &addrs) == nil {
		return fwFits(addrs[0].Compare(a) <= 0 && a.Compare(addrs[1]) <= 0)
	}
	return fwMaybe
}

func nftPrefix(raw json.RawMessage, got string) fwSays {
	var p struct {
		Addr string
		Len  int
	}
	addr, err := netip.ParseAddr(got)
	if json.Unmarshal(raw, &p) != nil || err != nil {
		return fwMaybe
	}
	base, err := netip.ParseAddr(p.Addr)
	if err != nil {
		return fwMaybe
	}
	return fwFits(netip.PrefixFrom(base, p.Len).Contains(addr))
}

// nftStatus says whether a connection is one of address translation to another place, which
// ours are not; of others it is not known.
func nftStatus(right json.RawMessage) fwSays {
	if string(right) == `"dnat"` {
		return fwNo
	}
	return fwMaybe
}

// nftChoose reads a map from a field's values to verdicts.
func nftChoose(raw json.RawMessage, table string) func(fwPacket) fwRule {
	var m struct {
		Key  json.RawMessage
		Data struct{ Set [][2]json.RawMessage }
	}
	maybe := fwRule{says: fwMaybe}
	if json.Unmarshal(raw, &m) != nil {
		return func(fwPacket) fwRule { return maybe }
	}
	return func(p fwPacket) fwRule {
		got, says := nftField(m.Key, p)
		if says != fwYes {
			return fwRule{says: says}
		}
		for _, pair := range m.Data.Set {
			var verdict map[string]json.RawMessage
			switch fits := nftFits(pair[0], got); {
			case fits == fwNo:
				continue
			case fits == fwMaybe || json.Unmarshal(pair[1], &verdict) != nil || len(verdict) != 1:
				return maybe
			}
			for kind, raw := range verdict {
				return nftVerdict(kind, raw, table)
			}
		}
		return fwRule{}
	}
}
