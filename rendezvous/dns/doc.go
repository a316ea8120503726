// Package dns is a rendezvous over a DNS zone: TXT records that are written by
// dynamic update (RFC 2136) and read through any resolver.
package dns

import _ "github.com/miekg/dns"
