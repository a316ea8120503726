package kith

import (
	"slices"

	"github.com/kithproject/kith/doctor"
)

// DiagnoseNames lists what this node knows that tells who somebody is, for
// doctor.Pseudonyms: what doctor.Env.Names says, and this device, all others that it
// knows or knew, also blocked and removed ones and members of rooms, and rooms.
func (n *Node) DiagnoseNames() []doctor.Name {
	names := []doctor.Name{{Text: n.cfg.Name, Kind: "device"}, {Text: n.ID().String(), Kind: "id"}, {Text: n.ID().Short(), Kind: "id"}}
	for _, d := range slices.Concat(n.store.List(), n.store.Members(), n.store.Tombs()) {
		names = append(names, doctor.Name{Text: d.Name, Kind: "device"}, doctor.Name{Text: d.PeerName, Kind: "device"},
			doctor.Name{Text: d.ID.String(), Kind: "id"}, doctor.Name{Text: d.ID.Short(), Kind: "id"})
	}
	for _, r := range n.Rooms() {
		names = append(names, doctor.Name{Text: r.Name, Kind: "room"})
	}
	env, err := n.doctorEnv(DiagnoseConfig{})
	if err != nil { // only for a device or a force that does not fit, and there is none
		return names
	}
	return append(names, env.Names()...)
}
