package nettest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Portal has the home's router catch all: it leads what goes to TCP ports 80 and 443 to a
// page to log in at, gives its own address to every name, and lets nothing else out. What
// hosts ask for names must be the router ([Host.Resolver]). Who posts to the page, /login,
// has logged in: from then on all passes, and names are looked up by look. Reboot ends it,
// too.
func (s *Site) Portal(look func(name string) netip.Addr) {
	t := s.inet.lab.t
	t.Helper()
	at := s.Gateway()
	var open atomic.Bool
	s.Router.ServeDNS(at, func(name string) netip.Addr {
		if open.Load() {
			return look(name)
		}
		return at
	})
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Host != at.String():
			http.Redirect(w, r, "http://"+at.String()+"/login", http.StatusFound)
		case r.Method != http.MethodPost:
			fmt.Fprintln(w, "<html><title>Welcome</title>Please accept our terms.<form method=post action=/login><button>OK</button></form></html>")
		default:
			if out, err := s.Router.Command(r.Context(), "nft", "delete", "table", "ip", "portal").CombinedOutput(); err != nil {
				http.Error(w, string(out), http.StatusInternalServerError)
				return
			}
			open.Store(true)
			fmt.Fprintln(w, "<html><title>Welcome</title>You are online.</html>")
		}
	})
	s.Router.web(netip.AddrPortFrom(at, 80), page, nil)
	cert, err := selfSigned("login.portal.test")
	if err != nil {
		t.Fatal(err)
	}
	s.Router.web(netip.AddrPortFrom(at, 443), page, &tls.Config{Certificates: []tls.Certificate{cert}})
	s.Router.Nft(fmt.Sprintf("table ip portal {\n chain catch {\n type nat hook prerouting priority -110; policy accept\n iifname \"eth1\" tcp dport { 80, 443 } dnat to %s\n }\n"+
		" chain pass {\n type filter hook forward priority -20; policy accept\n iifname \"eth1\" drop\n }\n}\n", at))
}

// web serves a handler until the end of the test, over TLS if there is a configuration.
func (h *Host) web(at netip.AddrPort, handler http.Handler, cfg *tls.Config) netip.AddrPort {
	t := h.lab.t
	t.Helper()
	var ln net.Listener
	var err error
	h.Do(func() { ln, err = net.Listen("tcp", at.String()) })
	if err != nil {
		t.Fatal(err)
	}
	at = ln.Addr().(*net.TCPAddr).AddrPort()
	if cfg != nil {
		ln = tls.NewListener(ln, cfg)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	return at
}

// Browser is a web client whose connections are the host's. It looks up no names, and keeps
// no connection.
func (h *Host) Browser() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
				h.Do(func() {
					var d net.Dialer
					conn, err = d.DialContext(ctx, network, addr)
				})
				return conn, err
			},
		},
		Timeout: 10 * time.Second,
	}
}

// selfSigned makes a certificate of nobody's.
func selfSigned(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	raw, err := x509.CreateCertificate(rand.Reader, &cert, &cert, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, nil
}

// LyingNATPMP has the home's router say yes to every mapping of ports by NAT-PMP (RFC
// 6886) and make none, until the end of the test.
func (s *Site) LyingNATPMP() {
	s.inet.lab.t.Helper()
	began, external := time.Now(), s.Public().As4()
	s.Router.serve(netip.AddrPortFrom(s.Gateway(), 5351), func(b []byte, _ netip.AddrPort) []byte {
		if len(b) < 2 {
			return nil
		}
		epoch := uint32(time.Since(began) / time.Second)
		out := binary.BigEndian.AppendUint32([]byte{0, 128 + b[1], 0, 0}, epoch)
		switch {
		case b[0] != 0: // PCP: "unsupported version", RFC 6887 section 9
			return binary.BigEndian.AppendUint32([]byte{0, 128, 0, 1}, epoch)
		case b[1] == 0:
			return append(out, external[:]...)
		case len(b) == 12: // as was asked for: the inside port, the outside one, the lifetime
			return append(out, b[4:]...)
		}
		return nil
	})
}

// LyingUPnP has the home's router say yes to every mapping of ports by UPnP IGD and make
// none, until the end of the test.
func (s *Site) LyingUPnP() {
	s.inet.lab.t.Helper()
	const service = "urn:schemas-upnp-org:service:WANIPConnection:1"
	mux := http.NewServeMux()
	mux.HandleFunc("/root.xml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprintf(w, `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>Router</friendlyName><manufacturer>x</manufacturer><modelName>x</modelName><UDN>uuid:5e2c0c8e-0000-4000-8000-000000000001</UDN>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><friendlyName>x</friendlyName><manufacturer>x</manufacturer><modelName>x</modelName><UDN>uuid:5e2c0c8e-0000-4000-8000-000000000002</UDN>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><friendlyName>x</friendlyName><manufacturer>x</manufacturer><modelName>x</modelName><UDN>uuid:5e2c0c8e-0000-4000-8000-000000000003</UDN>
<serviceList><service><serviceType>%s</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><SCPDURL>/scpd.xml</SCPDURL><controlURL>/control</controlURL><eventSubURL>/event</eventSubURL></service></serviceList>
</device></deviceList></device></deviceList></device></root>`, service)
	})
	mux.HandleFunc("/control", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
		_, action, ok := strings.Cut(strings.Trim(r.Header.Get("SOAPAction"), `"`), "#")
		if err != nil || !ok {
			http.Error(w, "no action", http.StatusBadRequest)
			return
		}
		said := ""
		switch action {
		case "GetExternalIPAddress":
			said = "<NewExternalIPAddress>" + s.Public().String() + "</NewExternalIPAddress>"
		case "GetStatusInfo":
			said = "<NewConnectionStatus>Connected</NewConnectionStatus><NewLastConnectionError>ERROR_NONE</NewLastConnectionError><NewUptime>1</NewUptime>"
		case "AddAnyPortMapping":
			said = "<NewReservedPort>" + element(body, "NewExternalPort") + "</NewReservedPort>"
		case "GetSpecificPortMappingEntry":
			said = "<NewInternalPort>" + element(body, "NewExternalPort") + "</NewInternalPort><NewEnabled>1</NewEnabled><NewLeaseDuration>3600</NewLeaseDuration>"
		}
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:%sResponse xmlns:u="%s">%s</u:%sResponse></s:Body></s:Envelope>`,
			action, service, said, action)
	})
	at := s.Router.web(netip.AddrPortFrom(s.Gateway(), 0), mux, nil)
	ssdp := s.Router.serve(netip.AddrPortFrom(netip.IPv4Unspecified(), 1900), func(b []byte, _ netip.AddrPort) []byte {
		target := "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
		if !bytes.HasPrefix(b, []byte("M-SEARCH ")) || !bytes.Contains(b, []byte(target)) && !bytes.Contains(b, []byte("upnp:rootdevice")) {
			return nil
		}
		if !bytes.Contains(b, []byte(target)) {
			target = "upnp:rootdevice"
		}
		return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: %s\r\nUSN: uuid:5e2c0c8e-0000-4000-8000-000000000001::%s\r\nEXT:\r\nSERVER: x UPnP/1.1 x\r\nLOCATION: http://%s/root.xml\r\nContent-Length: 0\r\n\r\n", target, target, at)
	})
	s.Router.join(ssdp, "eth1", netip.MustParseAddr("239.255.255.250"))
}

// element is the text of an element without others in it, "" if there is none.
func element(body []byte, name string) string {
	_, rest, ok := bytes.Cut(body, []byte("<"+name+">"))
	text, _, end := bytes.Cut(rest, []byte("<"))
	if !ok || !end {
		return ""
	}
	return string(text)
}

// join has a socket hear a group on an interface of the host.
func (h *Host) join(conn *net.UDPConn, ifi string, group netip.Addr) {
	t := h.lab.t
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	h.Do(func() {
		var at *net.Interface
		if at, err = net.InterfaceByName(ifi); err != nil {
			return
		}
		failed := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(at.Index)})
		})
		err = errors.Join(err, failed)
	})
	if err != nil {
		t.Fatal(err)
	}
}
