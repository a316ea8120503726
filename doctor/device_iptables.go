package doctor

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// idleTargets are targets of iptables that decide nothing.
var idleTargets = []string{"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TCPMSS", "SET", "CHECKSUM", "CT", "TRACE", "CLASSIFY", "AUDIT", "TOS", "DSCP", "SECMARK", "CONNSECMARK"} //nolint:gochecknoglobals // a table

// parseIptables reads what iptables-save prints, or ip6tables-save for the family ip6, as
// far as it decides about packets of UDP and TCP; an option that is not understood may fit
// or not. It errs for more rules than it reads.
func parseIptables(raw []byte, family string) (fwRules, error) {
	out := make(fwRules)
	table, n := "", 0
	// Those of the older kernel interface stand beside those of nftables.
	if !bytes.Contains(raw, []byte("nf_tables")) {
		family = "legacy " + family
	}
	for line := range bytes.Lines(raw) {
		f := iptablesWords(string(line))
		if n++; n > maxRules {
			return nil, errManyRules
		}
		switch {
		case len(f) == 1 && strings.HasPrefix(f[0], "*"):
			table = family + " " + f[0][1:]
		case len(f) < 2 || table == family+" nat":
		case strings.HasPrefix(f[0], ":"): // :INPUT DROP [0:0]
			c := &fwChain{family: strings.TrimPrefix(family, "legacy "), table: table, policy: fwAccept}
			if hook := strings.ToLower(f[0][1:]); hook == "input" || hook == "output" {
				c.hook = hook
			}
			if f[1] == "DROP" {
				c.policy = fwDrop
			}
			out[table+" "+f[0][1:]] = c
		case f[0] == "-A" && out[table+" "+f[1]] != nil:
			c := out[table+" "+f[1]]
			c.rules = append(c.rules, iptablesRule(f[2:], table))
		}
	}
	return out, nil
}

// iptablesWords cuts a line into words; quotes hold a word of several together.
func iptablesWords(line string) (out []string) {
	word, quoted, open := strings.Builder{}, false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, open = !quoted, true
		case !quoted && (r == ' ' || r == '\t' || r == '\n' || r == '\r'):
			if open {
				out = append(out, word.String())
			}
			word.Reset()
			open = false
		default:
			word.WriteRune(r)
			open = true
		}
	}
	if open {
		out = append(out, word.String())
	}
	return out
}

func iptablesRule(f []string, table string) (r fwRule) {
	not := false
	for i := 0; i < len(f); i++ {
		option, value := f[i], ""
		if option == "!" {
			not = true
			continue
		}
		if i+1 < len(f) {
			value = f[i+1]
		}
		when := func(fwPacket) fwSays { return fwYes }
		switch option {
		case "-j", "-g":
			r.says, r.jump = iptablesTarget(value, table)
			r.last = option == "-g"
		case "-m":
			when = iptablesModule(value)
		case "-p":
			when = func(p fwPacket) fwSays { return fwFits(value == p.proto || value == "all") }
		case "-i", "-o":
			when = func(p fwPacket) fwSays {
				if (option == "-i") != (p.hook == "input") {
					return fwNo
				}
				if rest, wild := strings.CutSuffix(value, "+"); wild {
					return fwFits(strings.HasPrefix(p.ifi, rest))
				}
				return fwFits(value == p.ifi)
			}
		case "-s":
			when = func(p fwPacket) fwSays { return iptablesAddress(value, p.source) }
		case "-d":
			when = func(p fwPacket) fwSays { return iptablesAddress(value, p.dest) }
		case "--dst-type":
			when = func(p fwPacket) fwSays {
				return fwFits(slices.Contains(strings.Split(value, ","), strings.ToUpper(p.kind())))
			}
		case "--dport", "--dports":
			when = func(p fwPacket) fwSays { return iptablesPorts(value, p.dport) }
		case "--sport", "--sports":
			when = func(p fwPacket) fwSays { return iptablesPorts(value, p.sport) }
		case "--ctstate", "--state":
			when = func(p fwPacket) fwSays {
				return fwFits(slices.Contains(strings.Split(strings.ToLower(value), ","), p.state))
			}
		case "--comment", "--reject-with", "--log-prefix", "--log-level":
		default: // with or without a value, which then is no option either
			r.when = append(r.when, func(fwPacket) fwSays { return fwMaybe })
			not = false
			continue
		}
		i++
		if not {
			r.when = append(r.when, func(p fwPacket) fwSays { return when(p).not() })
		} else {
			r.when = append(r.when, when)
		}
		not = false
	}
	return r
}

// iptablesModule is what the use of a module says by itself.
func iptablesModule(name string) func(fwPacket) fwSays {
	says := fwMaybe
	switch name {
	case "udp", "tcp", "conntrack", "state", "multiport", "comment", "addrtype":
		says = fwYes // its options say the rest
	case "rt", "frag", "ah", "esp", "icmp", "icmp6", "hbh", "dst":
		says = fwNo // headers that kith's packets do not have
	}
	return func(fwPacket) fwSays { return says }
}

func iptablesTarget(name, table string) (fwSays, string) {
	switch {
	case name == "ACCEPT":
		return fwAccept, ""
	case name == "DROP", name == "REJECT":
		return fwDrop, ""
	case name == "RETURN":
		return fwReturn, ""
	case name == "", slices.Contains(idleTargets, name):
		return fwNo, ""
	}
	return fwNo, table + " " + name
}

func iptablesAddress(text string, a netip.Addr) fwSays {
	if p, err := netip.ParsePrefix(text); err == nil {
		return fwFits(p.Contains(a))
	}
	if one, err := netip.ParseAddr(text); err == nil {
		return fwFits(one == a)
	}
	return fwMaybe
}

// iptablesPorts reads ports and ranges such as 53,1000:2000.
func iptablesPorts(text string, port uint16) fwSays {
	for part := range strings.SplitSeq(text, ",") {
		low, high, ranged := strings.Cut(part, ":")
		if !ranged {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		if err != nil || err2 != nil {
			return fwMaybe
		}
		if from <= uint64(port) && uint64(port) <= to {
			return fwYes
		}
	}
	return fwNo
}
