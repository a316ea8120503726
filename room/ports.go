package room

import (
	"fmt"
	"slices"
	"strings"
)

// maxPorts is how many ports of each network are shared with one room.
const maxPorts = 256

func (r *Record) ports(network string) *[]uint16 {
	if strings.HasPrefix(network, "udp") {
		return &r.UDP
	}
	return &r.TCP
}

// Shares reports whether every member may reach a port of a network, "tcp" or "udp".
func (r Record) Shares(network string, port uint16) bool {
	_, found := slices.BinarySearch(*r.ports(network), port)
	return found
}

// Share lets every member reach a port of a network, or no longer. It errs with ErrFull if
// there are 256.
func (r *Record) Share(network string, port uint16, yes bool) error {
	list := r.ports(network)
	i, found := slices.BinarySearch(*list, port)
	switch {
	case yes && !found && len(*list) >= maxPorts:
		return fmt.Errorf("%w of ports", ErrFull)
	case yes && !found:
		*list = slices.Insert(slices.Clone(*list), i, port)
	case !yes && found:
		*list = slices.Delete(slices.Clone(*list), i, i+1)
	}
	return nil
}

func sortedPorts(ports []uint16) []uint16 {
	slices.Sort(ports)
	return slices.Compact(ports)
}
