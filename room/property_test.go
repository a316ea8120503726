package room

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kithproject/kith/identity"
)

// TestAnyNetwork: a host and many joiners over a medium that loses, copies and
// reorders, with a disk that fails now and then, a host that restarts from what
// is durable, and a user who takes time. Everybody who should be admitted is,
// once, with a number of its own that stays and keys that the host has; nobody
// else is; nobody believes to be in before that is durable.
func TestAnyNetwork(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNetwork(t)
		mode := rapid.SampledFrom([]Mode{Approve, Password, List, Open}).Draw(rt, "mode")
		password := ""
		if mode == Password || rapid.Bool().Draw(rt, "password") {
			password = "right"
		}
		room := found(t, "host", mode)
		durable := room // the host's disk
		count := rapid.IntRange(1, 8).Draw(rt, "joiners")
		should := make(map[identity.DeviceID]bool)
		var list []identity.DeviceID
		type plan struct {
			name  string
			knows bool
		}
		var plans []plan
		for range count {
			p := plan{fmt.Sprintf("device %d", rapid.IntRange(0, 5).Draw(rt, "who")), rapid.IntRange(0, 4).Draw(rt, "knows") > 0}
			id := device(t, p.name).ID()
			listed := rapid.Bool().Draw(rt, "listed")
			if listed {
				list = append(list, id)
			}
			plans = append(plans, p)
		}
		ok := func(id identity.DeviceID) bool { // the user's and the list's opinion of a device
			if mode == Approve {
				return id[0]%4 != 0
			}
			if mode == List {
				for _, l := range list {
					if l == id {
						return true
					}
				}
				return false
			}
			return true
		}
		numbers := make(map[identity.DeviceID]uint32)
		disk := 5 // failures
		var h *side
		boot := func() {
			cfg := HostConfig{Identity: device(t, "host"), Roster: durable, Password: password, List: list}
			if h != nil {
				cfg.Guard = h.guard
				n.sides = n.sides[1:]
			}
			old := n.sides
			n.sides = nil
			h = n.addHost(cfg)
			n.sides = append(n.sides, old...)
			h.decide = func(q Request) (bool, bool) { return ok(q.ID), true }
			h.store = func(a Admission) error {
				if disk > 0 && rapid.IntRange(0, 3).Draw(rt, "disk") == 0 {
					disk--
					return errDisk
				}
				if !ok(a.Member.ID) {
					rt.Errorf("%s was admitted and should not be", a.Member.Name)
				}
				if was, in := numbers[a.Member.ID]; in && was != a.Member.Number {
					rt.Errorf("%s was number %d and is %d", a.Member.Name, was, a.Member.Number)
				}
				numbers[a.Member.ID] = a.Member.Number
				durable = a.Roster
				return nil
			}
		}
		boot()
		c := longCode(t, room.Room)
		var joiners []*side
		for _, p := range plans {
			cfg := JoinerConfig{Code: c, Lifetime: time.Hour}
			if password != "" {
				cfg.Password = password
				if !p.knows {
					cfg.Password = "wrong"
				}
			}
			j := n.addJoiner(p.name, cfg)
			joiners = append(joiners, j)
			if id := device(t, p.name).ID(); ok(id) && (p.knows || password == "") {
				should[id] = true
			}
		}
		loss := rapid.IntRange(0, 40).Draw(rt, "loss")
		chance := func(percent int) bool { return rapid.IntRange(0, 99).Draw(rt, "chance") < percent }
		budget := 400 // of bad luck: in the end the medium works
		n.drop = func(p packet) bool {
			if budget <= 0 {
				return false
			}
			budget--
			if chance(10) { // a copy, at the end of the queue
				n.queue = append(n.queue, p)
			}
			if len(n.queue) > 1 && chance(20) { // later
				n.queue = append(n.queue, p)
				return true
			}
			return chance(loss)
		}
		restarts := rapid.IntRange(0, 3).Draw(rt, "restarts")
		settled := func(j *side) bool {
			if j.grant != nil || j.failed != 0 {
				return true
			}
			last := len(j.events) - 1
			return last >= 0 && j.events[last].Kind == EventWrongPassword
		}
		for round := 0; round < 40; round++ {
			n.run(time.Minute, func() bool {
				for _, j := range joiners {
					if !settled(j) {
						return false
					}
				}
				return true
			})
			if restarts > 0 && chance(50) {
				restarts--
				boot()
			}
		}
		if bad := durable.Verify(nil, room.Room); bad != nil {
			rt.Fatalf("the roster is not valid: %v", bad)
		}
		for id := range should {
			if _, in := durable.Member(id); !in {
				for _, j := range joiners {
					rt.Logf("%s %s: failed %q, events %v, next %v", j.name, j.joiner.cfg.Identity.ID().Short(), j.failed, j.events, j.joiner.Next().Sub(n.now))
				}
				rt.Errorf("%s should be in; notices %v, open %d, asked %d, waiting %d, declined %d", id.Short(), h.notices, len(h.host.open), len(h.asked), len(h.host.waiting), len(h.host.declined))
			}
		}
		seen := make(map[uint32]bool)
		for _, m := range durable.Members {
			if m.ID != room.Founder() && !should[m.ID] {
				rt.Errorf("%s is in and should not be", m.Name)
			}
			if seen[m.Number] {
				rt.Errorf("number %d is there twice", m.Number)
			}
			seen[m.Number] = true
		}
		for _, j := range joiners {
			id := j.joiner.cfg.Identity.ID()
			if j.grant == nil {
				continue
			}
			if m, in := durable.Member(id); !in || m.Number != j.grant.Number || m.Name != j.grant.Name {
				rt.Errorf("%s believes to be in, and is not in the durable roster as that", j.name)
			}
		}
	})
}
