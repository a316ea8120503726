package doctor

import (
	"errors"
	"fmt"

	"github.com/kithproject/kith/hub/hubaddr"
)

// pinFinding is the finding of an error that is hubaddr.ErrPin: "pin" for a hub with another
// key, "inspected" for what may be none. Hubs sign the certificates that they make themselves,
// and give them a name of their own; a box that inspects TLS may copy names, but signs itself.
func pinFinding(err error) string {
	other, ok := errors.AsType[*hubaddr.PinError](err)
	if !ok {
		return "pin"
	}
	c := other.Certificate
	if c.VerifyHostname(hubaddr.CertificateName) == nil && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil {
		return "pin"
	}
	return "inspected"
}

// inspectedBy is the cause of such a finding.
func inspectedBy(who string) string {
	return "What answers in place of " + who + " has another key and no certificate of a hub's making, as a firewall that inspects TLS, a page to log in at, or a hub whose bought certificate was renewed."
}

// inspectedFix does not begin with the hub's address: it is right, most likely.
const inspectedFix = "Log in to this network, have the hub's address exempted from the inspection or use another network, and only if it is the same everywhere get the hub's address anew with kith hub address on its machine."

// answeredBy says in a line of evidence what failed of a handshake, and who is in place of a hub.
func answeredBy(err error) string {
	other, ok := errors.AsType[*hubaddr.PinError](err)
	if !ok {
		return err.Error()
	}
	return fmt.Sprintf("the certificate is for %q, by %q", plain(other.Certificate.Subject.String()), plain(other.Certificate.Issuer.String()))
}
