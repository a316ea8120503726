package doctor

import "slices"

// Table returns all checks, those that others need before them. It is a copy.
func Table() []Check {
	return slices.Concat(deviceChecks(), addressChecks(), natChecks(), meetingChecks(), relayChecks(), peerChecks())
}
