package hub

import "os"

// chmod700 makes a test's directory what a state directory must be.
func chmod700(dir string) error {
	if dir == "" {
		return nil
	}
	return os.Chmod(dir, 0o700)
}
