package tls13

import (
	"crypto/hmac"
	"fmt"
	"sync"

	"github.com/go-tcpls/tcpls/internal/record"
)

// The labels of the NSS key log format.
const (
	logClientEarly       = "CLIENT_EARLY_TRAFFIC_SECRET"
	logEarlyExporter     = "EARLY_EXPORTER_SECRET"
	logClientHandshake   = "CLIENT_HANDSHAKE_TRAFFIC_SECRET"
	logServerHandshake   = "SERVER_HANDSHAKE_TRAFFIC_SECRET"
	logClientApplication = "CLIENT_TRAFFIC_SECRET_0"
	logServerApplication = "SERVER_TRAFFIC_SECRET_0"
	logExporter          = "EXPORTER_SECRET"
)

// keyLogMu keeps the lines of connections that share a writer apart.
var keyLogMu sync.Mutex

// logSecret writes a line of the key log. To expose secrets is its purpose,
// for debugging.
func (c *Conn) logSecret(label string, clientRandom, secret []byte) error {
	if c.tls.KeyLogWriter == nil {
		return nil
	}
	line := fmt.Appendf(nil, "%s %x %x\n", label, clientRandom, secret)
	keyLogMu.Lock()
	defer keyLogMu.Unlock()
	if _, err := c.tls.KeyLogWriter.Write(line); err != nil {
		return because(AlertInternalError, err, "writing to KeyLogWriter")
	}
	return nil
}

// trafficSecrets are those of both directions at one stage.
type trafficSecrets struct {
	client, server []byte
}

// wipe forgets the secrets of a stage that is over.
func (t trafficSecrets) wipe() {
	clear(t.client)
	clear(t.server)
}

// handshakeSecrets derives and logs the handshake traffic secrets; sum is the
// transcript up to ServerHello.
func (c *Conn) handshakeSecrets(h handshakeSecret, sum, clientRandom []byte) (t trafficSecrets, err error) {
	t = trafficSecrets{h.clientTraffic(sum), h.serverTraffic(sum)}
	if err = c.logSecret(logClientHandshake, clientRandom, t.client); err == nil {
		err = c.logSecret(logServerHandshake, clientRandom, t.server)
	}
	return t, err
}

// applicationSecrets derives and logs the application traffic secrets, and
// keeps the exporter's; sum is the transcript up to the server's Finished.
func (c *Conn) applicationSecrets(m masterSecret, sum, clientRandom []byte) (t trafficSecrets, err error) {
	t = trafficSecrets{m.clientTraffic(sum), m.serverTraffic(sum)}
	c.exporter = m.exporter(sum)
	if err = c.logSecret(logClientApplication, clientRandom, t.client); err == nil {
		err = c.logSecret(logServerApplication, clientRandom, t.server)
	}
	if err == nil {
		err = c.logSecret(logExporter, clientRandom, c.exporter.secret)
	}
	return t, err
}

// verifiedFinished is evidence that the peer's Finished fits the transcript.
// Only checkFinished makes one.
type verifiedFinished struct{}

func checkFinished(s *record.Suite, m message, base, transcript []byte) (*verifiedFinished, error) {
	if len(m.body()) != s.HashLen {
		return nil, malformed(typeFinished)
	}
	if !hmac.Equal(m.body(), finishedMAC(s, base, transcript)) {
		return nil, broken(AlertDecryptError, "peer's Finished doesn't fit the handshake")
	}
	return &verifiedFinished{}, nil
}
