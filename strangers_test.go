package kith_test

import (
	"testing"

	"github.com/kithproject/kith"
)

// TestNoStrangers: the setting reaches the doctor.
func TestNoStrangers(t *testing.T) {
	for _, none := range []bool{false, true} {
		if env := (kith.Config{NoStrangers: none}).DoctorEnv(); env.Strangers == none {
			t.Errorf("with NoStrangers %v the doctor may ask strangers: %v", none, env.Strangers)
		}
	}
}
