//go:build !linux

package doctor

import (
	"errors"
	"net"
	"syscall"
)

// deviceOptions errs for what it cannot set here, so that nothing is sent that would go
// further than it should, or be cut into fragments.
func deviceOptions(_ syscall.RawConn, _ bool, how deviceAsk) error {
	if how.ttl > 0 || how.whole {
		return errors.ErrUnsupported
	}
	return nil
}

// deviceTold knows no ICMP messages here.
func deviceTold(net.Conn) deviceMessage { return deviceMessage{} }
