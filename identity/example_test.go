package identity_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/kithproject/kith/identity"
)

// The first Open makes the identity, later ones load it.
func ExampleOpen() {
	home, err := os.MkdirTemp("", "kith")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(home)
	first, err := identity.Open(filepath.Join(home, "kith"))
	if err != nil {
		fmt.Println(err)
		return
	}
	second, err := identity.Open(filepath.Join(home, "kith"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(first.ID() == second.ID(), identity.Prefix().Contains(first.ID().Addr()))
	fmt.Println(first)
	// Output:
	// true true
	// redacted
}

func ExampleParseDeviceID() {
	id, err := identity.ParseDeviceID("HVAC PASSWORD")
	fmt.Println(id.IsZero(), err)
	// Output:
	// true identity: not a device ID: 52 characters of base32 expected
}
