//go:build !linux || android

package netif

// Check errs with ErrSystem.
func Check() error {
	return &Error{Text: "a network interface of kith exists on Linux alone", Err: ErrSystem,
		Hint: "kith proxy and kith forward reach the same ports on every system"}
}

// Open errs with ErrSystem.
func Open(Config) (*Interface, error) { return nil, Check() }
