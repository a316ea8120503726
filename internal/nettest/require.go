package nettest

import (
	"os"
	"testing"
)

// RequireEnv is the environment variable that turns a skip into a failure.
const RequireEnv = "KITH_REQUIRE_NETTEST"

// Skip skips a test for a reason, or fails it where nothing may be skipped.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv(RequireEnv) == "1" {
		t.Fatalf("%s, and %s=1 allows no skip", reason, RequireEnv)
	}
	t.Skip(reason)
}
