//go:build !linux

package main

import (
	"context"
	"io"
)

const sideCommand = "side"

func runSide([]string, io.Reader, io.Writer) error { return errUnsupported }

func measure(context.Context, options, io.Writer) (*result, error) { return nil, errUnsupported }
