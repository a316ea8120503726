//go:build !linux

package wan

import (
	"context"
	"os"
)

func open(context.Context, End, int) (*os.File, error) { return nil, ErrUnsupported }
