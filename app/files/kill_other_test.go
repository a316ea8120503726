//go:build !unix

package files

import "errors"

// runEnd is for systems on which a process can be killed at any moment.
func runEnd(string) error { return errors.ErrUnsupported }
