//go:build unix

package registry

import "os"

// syncDir makes a rename in the directory durable.
func syncDir(f *os.File) error { return f.Sync() }
