//go:build !linux

package main

import (
	"context"
	"io"
)

const (
	sideCommand = "side"
	toolCommand = "tool"
)

func runSide([]string, io.Reader, io.Writer) error { return errUnsupported }

func runTool([]string, io.Writer) error { return errUnsupported }

func measure(context.Context, options, io.Writer) (*result, error) { return nil, errUnsupported }

func measureUses(context.Context, appOptions, io.Writer) (*useResult, error) {
	return nil, errUnsupported
}
