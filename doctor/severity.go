package doctor

import "fmt"

// severityNames are the words for severities, in their order.
var severityNames = [...]string{"fine", "note", "limit", "fault"}

// String returns the severity in one lower-case word.
func (s Severity) String() string {
	if s < 0 || int(s) >= len(severityNames) {
		return fmt.Sprintf("severity %d", int(s))
	}
	return severityNames[s]
}

// MarshalText returns String. It never errs.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText gives. It errs for any other word.
func (s *Severity) UnmarshalText(text []byte) error {
	for i, name := range severityNames {
		if string(text) == name {
			*s = Severity(i)
			return nil
		}
	}
	return fmt.Errorf("doctor: %q is no severity", text)
}
