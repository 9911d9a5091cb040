package bogo

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/cpu"

	"github.com/go-tcpls/tcpls/internal/tls13"
)

// check holds what the engine tells of a connection against what the test
// expects.
func (s *shim) check(o *options, engine *tls13.Conn, resumes bool) error {
	cs := engine.ConnectionState()
	return errors.Join(
		o.checkParameters(&cs, engine),
		o.checkPeer(&cs),
		o.checkResumption(&cs, engine, resumes),
		s.checkCredential(o),
	)
}

func differs[T comparable](what string, got, want T) error {
	var none T
	if want == none || got == want {
		return nil
	}
	return fmt.Errorf("%s is %v, the test expects %v", what, got, want)
}

func (o *options) checkParameters(cs *tls.ConnectionState, engine *tls13.Conn) error {
	cipher := o.cipher
	switch {
	case cipher == 0 && hasAES():
		cipher = o.cipherAES
	case cipher == 0:
		cipher = o.cipherNoAES
	}
	err := errors.Join(
		differs("version", cs.Version, uint16(o.version)),
		differs("cipher suite", cs.CipherSuite, uint16(cipher)),
		differs("group", cs.CurveID, tls.CurveID(o.curve)),
		differs("protocol", cs.NegotiatedProtocol, o.alpn),
		differs("HelloRetryRequest", cs.HelloRetryRequest, o.hrr),
	)
	if !cs.DidResume { // then it signs nothing
		err = errors.Join(err, differs("peer's signature", engine.PeerSignature(), tls.SignatureScheme(o.peerScheme)))
	}
	if o.noHRR && cs.HelloRetryRequest {
		err = errors.Join(err, errors.New("HelloRetryRequest, which the test doesn't expect"))
	}
	if o.server {
		err = errors.Join(err, differs("server name", cs.ServerName, o.serverName))
		if o.noServerName && cs.ServerName != "" {
			err = errors.Join(err, fmt.Errorf("server name %q, the test expects none", cs.ServerName))
		}
		if o.selectALPN != "" {
			err = errors.Join(err, differs("protocol", cs.NegotiatedProtocol, o.selectALPN))
		}
		if o.declineALPN && cs.NegotiatedProtocol != "" {
			err = errors.Join(err, fmt.Errorf("protocol %q, the test expects none", cs.NegotiatedProtocol))
		}
	}
	return err
}

// hasAES tells whether the machine is one on which AES suites come first.
func hasAES() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || cpu.S390X.HasAESGCM
}

func (o *options) checkPeer(cs *tls.ConnectionState) error {
	if o.noPeerCert && len(cs.PeerCertificates) > 0 {
		return errors.New("peer has a certificate, the test expects none")
	}
	if !o.noPeerCert && (!o.server || o.requireClientCert) && len(cs.PeerCertificates) == 0 {
		return errors.New("peer has no certificate, the test expects one")
	}
	if o.peerCertFile != "" {
		want, err := certificateFile(o.peerCertFile)
		if err != nil {
			return err
		}
		var got [][]byte
		for _, cert := range cs.PeerCertificates {
			got = append(got, cert.Raw)
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			return errors.New("peer's chain is not the one that the test expects")
		}
	}
	if o.peerOCSP != nil && !bytes.Equal(cs.OCSPResponse, o.peerOCSP) {
		return fmt.Errorf("OCSP response is %x, the test expects %x", cs.OCSPResponse, o.peerOCSP)
	}
	want, err := splitTimestamps(o.peerSCTs)
	if err == nil && o.peerSCTs != nil && !slices.EqualFunc(cs.SignedCertificateTimestamps, want, bytes.Equal) {
		err = fmt.Errorf("timestamps are %x, the test expects %x", cs.SignedCertificateTimestamps, want)
	}
	return err
}

func (o *options) checkResumption(cs *tls.ConnectionState, engine *tls13.Conn, resumes bool) error {
	accepted := engine.EarlyDataAccepted()
	switch {
	case cs.DidResume != (resumes && !o.sessionMiss):
		return fmt.Errorf("session is resumed: %v, the test expects the opposite", cs.DidResume)
	case o.earlyAccepted && !accepted, o.earlyRejected && accepted, o.earlyReason == "accept" && !accepted,
		o.earlyReason != "" && o.earlyReason != "accept" && accepted:
		return fmt.Errorf("early data was accepted: %v, the test expects the opposite", accepted)
	}
	return nil
}

func (s *shim) checkCredential(o *options) error {
	if o.selectedCredential == -2 || s.selected == o.selectedCredential {
		return nil
	}
	return fmt.Errorf("credential %d is used, the test expects %d", s.selected, o.selectedCredential)
}

// checkTickets runs when the connection has ended.
func (s *shim) checkTickets(o *options) error {
	if o.server {
		return nil
	}
	want := o.ticketRenewal || !o.noSession && !o.shutsDown
	if s.sessions.stored != want {
		return fmt.Errorf("a session was stored: %v, the test expects the opposite", s.sessions.stored)
	}
	if !want {
		return nil
	}
	early, err := s.supportsEarlyData(o)
	if err == nil && early != o.ticketEarlyData {
		err = fmt.Errorf("ticket allows early data: %v, the test expects the opposite", early)
	}
	return err
}
