//go:build linux && !android

package netmon

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// systemWatch subscribes to the kernel's messages about links and addresses
// (rtnetlink). The function that it returns runs until ctx ends.
func systemWatch() (func(context.Context, chan<- struct{}), error) {
	links, addrs, done := make(chan netlink.LinkUpdate, 16), make(chan netlink.AddrUpdate, 16), make(chan struct{})
	errLink := netlink.LinkSubscribe(links, done)
	errAddr := netlink.AddrSubscribe(addrs, done)
	if err := errors.Join(errLink, errAddr); err != nil {
		close(done)
		return nil, fmt.Errorf("netmon: netlink: %w", err)
	}
	return func(ctx context.Context, hints chan<- struct{}) {
		defer drain(links, addrs) // ends the library's goroutines, which may be sending
		defer close(done)
		for {
			var ok bool
			select {
			case <-ctx.Done():
				return
			case _, ok = <-links:
			case _, ok = <-addrs:
			}
			if !ok {
				<-ctx.Done()
				return
			}
			select {
			case hints <- struct{}{}:
			default:
			}
		}
	}, nil
}

func drain(links <-chan netlink.LinkUpdate, addrs <-chan netlink.AddrUpdate) {
	for range links { // until the library closes it
	}
	for range addrs { // until the library closes it
	}
}
