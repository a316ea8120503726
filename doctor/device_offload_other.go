//go:build !linux

package doctor

import "errors"

func deviceOffload() (gso, gro bool, err error) {
	return false, false, errors.New("only Linux has it")
}
