package cli

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/mqtt"
)

// maxCAFile is the largest file of certificates that is read, in bytes.
const maxCAFile = 1 << 20

// open makes the driver for a broker. It does not connect yet.
func (b broker) open(log *slog.Logger) (rendezvous.Exchange, error) {
	cfg := mqtt.Config{URL: b.URL, User: b.User, Password: b.Password, Logger: log}
	if b.CAFile != "" {
		info, err := os.Stat(b.CAFile)
		if err != nil {
			return nil, usage("cannot read the certificate authority: "+err.Error(), "")
		}
		if info.Size() > maxCAFile {
			return nil, usage(b.CAFile+" is too large for certificates", "")
		}
		pem, err := os.ReadFile(b.CAFile)
		if err != nil {
			return nil, usage("cannot read the certificate authority: "+err.Error(), "")
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, usage(b.CAFile+" holds no certificate in PEM form", "")
		}
		cfg.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	ex, err := mqtt.New(cfg)
	if err != nil {
		return nil, usage(err.Error(), "for example mqtts://broker.example:8883")
	}
	return ex, nil
}
