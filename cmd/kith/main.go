// Command kith pairs devices and connects them. Run "kith help".
package main

import (
	"os"

	"github.com/kithproject/kith/internal/cli"
)

func main() { os.Exit(cli.Main()) }
