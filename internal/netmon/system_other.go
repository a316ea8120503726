//go:build !linux || android

package netmon

import "context"

// systemWatch returns nil: here the interfaces are polled.
func systemWatch() (func(context.Context, chan<- struct{}), error) { return nil, nil }
