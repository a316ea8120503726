package registry

import "os"

// syncDir does nothing: Windows cannot sync a directory, and NTFS journals
// renames by itself.
func syncDir(*os.File) error { return nil }
