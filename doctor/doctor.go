// Package doctor finds why two devices cannot connect, and says what to do.
//
// A Check asks one question about this device or its network, such as "Do
// answers to UDP come back?", and answers yes, no, or that it could not find
// out. A no names a Finding of the table: a cause in one sentence, a fix in one
// sentence, how bad it is, and what was seen. Every check of the table is looked
// at in every run; none ends the others.
//
//	report := doctor.Run(ctx, doctor.Config{Table: doctor.Table(), Env: env})
//	fmt.Println(report.Verdict)
//
// # What is a cause, and what a consequence
//
// A check names the checks that it Needs. If one of them said no (and not only as
// a Note) or was skipped, it is skipped: that nobody answers behind a dead router
// is no second fault. Where that is known only afterwards, a Finding Explains other
// findings, which then name it in Result.Because, unless an Answer narrows that (About,
// Apart). What is left are the causes, worst first, and among equals in the order of the
// table, which goes from the device outwards.
//
// # What it costs
//
// Checks that do not depend on each other run side by side. Each has a limit of
// time, and the whole run has one. All that is sent by probes goes through one
// Pacer (at most Rate packets a second). Checks that take long, or disturb, run
// only when asked for.
package doctor

import (
	"context"
	"slices"
	"strings"
	"time"
)

// A Code names a check for good, such as "nat.mapping". Its first part is its group.
type Code string

// Group returns the group that a code is of.
func (c Code) Group() Group {
	name, _, _ := strings.Cut(string(c), ".")
	return Group(name)
}

// A Group is one part of the table.
type Group string

// The groups, from the device outwards.
const (
	DeviceGroup  Group = "device"
	AddressGroup Group = "address"
	NATGroup     Group = "nat"
	MeetingGroup Group = "meeting"
	RelayGroup   Group = "relays"
	PeerGroup    Group = "peers"
)

// Groups returns all groups in their order.
func Groups() []Group {
	return []Group{DeviceGroup, AddressGroup, NATGroup, MeetingGroup, RelayGroup, PeerGroup}
}

// A State is what a check says.
type State string

// The states.
const (
	Yes     State = "yes"     // as it should be
	No      State = "no"      // not so: the Result names a Finding
	Unknown State = "unknown" // could not find out; the evidence says why
	Pending State = "pending" // not known yet; no Report has it
	Skipped State = "skipped" // not looked at: a check that it needs did not say yes, what it looks at is not there, or it was not asked for
)

// A Severity says what a Finding means for the user.
type Severity int

// The severities. A Report's is that of its worst cause.
const (
	Fine  Severity = iota // nothing is wrong
	Note                  // good to know; nothing to be done
	Limit                 // something does not work, is slower, or fails with some devices
	Fault                 // devices cannot connect, or this device does not work
)

// A Finding is one of the ways in which a check says no. Its ID is unique within
// its check and never changes.
type Finding struct {
	ID       string
	Severity Severity
	Cause    string // one sentence that stands in the report when a Result has none of its own
	Fix      string // one sentence: what the user can do
	// Explains are findings that are no faults of their own where this one holds: "code",
	// or "code/id" for one of its findings.
	Explains []string
	// Settled, if not nil, is the fix in a run in which what the finding asks for is there
	// already, by the other results; "" where it is not.
	Settled func(env *Env, r Result, results []Result) string
}

// A Check is one question. Its methods are called by one goroutine each.
type Check struct {
	Code     Code
	Asks     string // the question, one sentence
	Needs    []Code // answers without which this one would mean nothing
	Findings []Finding
	// Tells says what a check without findings is for: the rest of "It finds no fault: …".
	Tells string
	Limit time.Duration // default DefaultLimit
	// RootAdds says what this check would also find out with the rights of root; "" if nothing.
	RootAdds string
	// Slow has it run only in a run with Config.Slow.
	Slow bool
	// Quick has it take part in the small run beside a failing connection, or for another
	// device (Config.Quick). It keeps to Env.Quick then.
	Quick bool
	// Subjects lists what is looked at one by one, such as hubs or interfaces; nil: the
	// device as a whole. Run is called for each, and needs of the same subject count alone.
	Subjects func(*Env) []string
	// Run looks. It returns when ctx ends at the latest.
	Run func(ctx context.Context, env *Env, subject string) Answer
}

// An Answer is what a Check's Run returns: made by OK, Nothing, Skips, Fails or Unclear.
type Answer struct {
	State    State
	Finding  string   // of a No: the ID
	Cause    string   // of a No: more exact than the Finding's, or ""
	Fix      string   // of a No: more exact than the Finding's, or ""
	Evidence []string // what was seen, a line each
	// Silent leaves a Yes out of what people see: there is nothing of the kind here.
	Silent bool
	// About are the subjects whose findings a No may explain, with those of the device as a
	// whole; nil: all.
	About []string
	// Apart are checks whose findings do not explain this No, though the table has them do so.
	Apart []Code
}

// OK answers yes.
func OK(evidence ...string) Answer { return Answer{State: Yes, Evidence: evidence} }

// Nothing answers yes because there is nothing to look at.
func Nothing(evidence ...string) Answer {
	return Answer{State: Yes, Evidence: evidence, Silent: true}
}

// Fails answers no with a Finding's ID.
func Fails(finding string, evidence ...string) Answer {
	return Answer{State: No, Finding: finding, Evidence: evidence}
}

// Unclear answers that it could not be found out.
func Unclear(evidence ...string) Answer { return Answer{State: Unknown, Evidence: evidence} }

// Skips answers that what is to be looked at is not there, and ought to be: a yes would be
// no good news. Who needs the check is skipped, too.
func Skips(evidence ...string) Answer { return Answer{State: Skipped, Evidence: evidence} }

// With returns the answer with a cause and a fix that are more exact than those
// of the table; an empty one leaves the table's.
func (a Answer) With(cause, fix string) Answer {
	a.Cause, a.Fix = cause, fix
	return a
}

// A Result is a check's Answer for a subject, as it stands in a Report.
type Result struct {
	Code     Code          `json:"code"`
	Subject  string        `json:"subject,omitempty"`
	Asks     string        `json:"asks"`
	State    State         `json:"state"`
	Finding  string        `json:"finding,omitempty"`
	Severity Severity      `json:"severity"`
	Cause    string        `json:"cause,omitempty"`
	Fix      string        `json:"fix,omitempty"`
	Evidence []string      `json:"evidence,omitempty"`
	Because  string        `json:"because,omitempty"` // code/finding that explains it, or the code that was needed
	Took     time.Duration `json:"took_ns"`
	Silent   bool          `json:"-"`

	about []string // as in Answer
	apart []Code
}

// explains reports whether what the table has r explain may hold for another result. In one
// group, what is wrong with one subject explains nothing of another.
func (r Result) explains(other Result) bool {
	switch {
	case r.Name() == other.Name() || slices.Contains(other.apart, r.Code):
		return false
	case other.Subject == "":
		return true
	case r.about != nil:
		return slices.Contains(r.about, other.Subject)
	}
	return r.Code.Group() != other.Code.Group() || r.Subject == "" || r.Subject == other.Subject
}

// Name is code/finding, or the code.
func (r Result) Name() string {
	if r.Finding == "" {
		return string(r.Code)
	}
	return string(r.Code) + "/" + r.Finding
}

// A Report is all that a run found out.
type Report struct {
	Started time.Time     `json:"started"`
	Took    time.Duration `json:"took_ns"`
	System  string        `json:"system"`
	Root    bool          `json:"root"`
	Verdict Verdict       `json:"verdict"`
	Causes  []Result      `json:"causes"`  // worst first
	Results []Result      `json:"results"` // in the order of the table
	// RootAdds are answers that root could add, a line each.
	RootAdds []string `json:"root_adds,omitempty"`
}
