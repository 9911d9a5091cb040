package bogo

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
)

// exitUnimplemented tells the runner that the shim can't do a test.
const exitUnimplemented = 89

// shimMain is the process that the runner tests. It says something on stderr
// only if it fails.
func shimMain(args []string) (status int) {
	all, err := parseFlags(args)
	if err == nil && all[initial].isHandshakerPossible {
		fmt.Println("No")
		return 0
	}
	if err == nil {
		err = newShim(all).run()
	}
	switch {
	case errors.Is(err, errUnimplemented):
		fmt.Fprintln(os.Stderr, err)
		return exitUnimplemented
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A shim is what the connections of one test share.
type shim struct {
	phases    [phases]*options
	sessions  *sessions
	ticketKey [32]byte
	time      time.Time // stands still but for what the runner says
	keyLog    bytes.Buffer
	selected  int             // the credential that signed last; -2 for none
	seen      map[string]bool // strike register

	// Of the present connection:
	now    *options
	engine *tls13.Conn
	early  bool // a client may send early data
}

func newShim(all [phases]*options) *shim {
	s := &shim{phases: all, sessions: newSessions(), time: time.Now().Truncate(time.Second), seen: make(map[string]bool)}
	_, _ = rand.Read(s.ticketKey[:])
	return s
}

func (s *shim) run() error {
	first := s.phases[initial]
	for i := range first.resumeCount + 1 {
		now := s.phases[initial]
		if i > 0 {
			now = s.phases[resumption]
			if !now.server && s.sessions.last == nil {
				return errors.New("no session to resume")
			}
		}
		if err := s.connection(now, i > 0); err != nil {
			return fmt.Errorf("connection %d: %w", i+1, err)
		}
		s.time = s.time.Add(time.Duration(now.resumptionDelay) * time.Second)
	}
	return nil
}

// connection is one connection of a test, from dialing to the end.
func (s *shim) connection(o *options, resumes bool) error {
	cfg, err := s.config(o)
	if err != nil {
		return err
	}
	host := "127.0.0.1"
	if o.ipv6 {
		host = "::1"
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(o.port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(binary.LittleEndian.AppendUint64(nil, o.shimID)); err != nil {
		return err
	}
	cfg.NetConn = conn
	end := tls13.NewClient
	if o.server {
		end = tls13.NewServer
	}
	s.keyLog.Reset()
	engine, err := end(cfg)
	if err != nil {
		return err
	}
	s.sessions.stored, s.selected = false, -2
	s.now, s.engine, s.early = o, engine, engine.EarlyContextSend() != nil
	l := &link{conn: conn, engine: engine}
	defer l.close()
	if s.early {
		return s.earlyClient(o, l)
	}
	if !o.server && o.earlyAccepted || o.earlyWriteAfter != 0 {
		return errors.New("early data is not possible, the test expects it")
	}
	if err := l.handshake(); err != nil {
		return err
	}
	if err := s.check(o, engine, resumes); err != nil {
		return err
	}
	if err := s.export(o, l); err != nil {
		return err
	}
	if err := o.write(l); err != nil {
		return err
	}
	return s.exchange(o, l)
}

// earlyClient is a client's connection with early data. Once it is refused,
// the rest is another phase of the test.
func (s *shim) earlyClient(o *options, l *link) error {
	if o.earlyNotOffered {
		return errors.New("early data is possible, the test expects that it isn't")
	}
	if err := o.runEarly(l); err != nil {
		return err
	}
	if err := s.export(o, l); err != nil {
		return err
	}
	var rest []byte
	if o.writesFirst {
		for range o.repeatInitialWrite {
			n := min(len(o.initialWrite), int(l.engine.EarlyLimit()))
			out, err := l.engine.WriteEarly(nil, []byte(o.initialWrite[:n]))
			if err != nil {
				return err
			}
			if err := l.send(out); err != nil {
				return err
			}
			rest = append(rest, o.initialWrite[n:]...)
		}
	}
	if err := l.handshake(); err != nil {
		return err
	}
	switch accepted := l.engine.EarlyDataAccepted(); {
	case accepted == o.earlyRejected:
		return fmt.Errorf("early data was accepted: %v, the test expects the opposite", accepted)
	case !accepted:
		o = s.phases[retry]
		if err := s.export(o, l); err != nil {
			return err
		}
		if err := o.write(l); err != nil {
			return err
		}
	}
	if err := s.check(o, l.engine, true); err != nil {
		return err
	}
	if len(rest) > 0 && !o.earlyRejected {
		if _, err := l.Write(rest); err != nil {
			return err
		}
	}
	return s.exchange(o, l)
}

// runEarly goes on with the handshake up to the message after which a client
// is to write.
func (o *options) runEarly(l *link) error {
	const serverHello, encryptedExtensions = 2, 8
	switch o.earlyWriteAfter {
	case 0:
		return l.flush()
	case serverHello:
		return l.run(func() bool { return l.engine.Group() != 0 })
	case encryptedExtensions:
		return l.run(l.engine.EarlyDataAccepted)
	}
	return errUnimplemented
}

// exchange is what happens after the handshake.
func (s *shim) exchange(o *options, l *link) error {
	if o.sendAlert {
		l.engine.Fail(&tls13.Error{Alert: decompressionFailure})
		return l.flush()
	}
	if !o.shutsDown {
		if err := o.echo(l); err != nil {
			return err
		}
	}
	if err := s.checkTickets(o); err != nil {
		return err
	}
	l.engine.CloseNotify()
	if err := l.flush(); err != nil {
		return err
	}
	if o.checkCloseNotify && l.err != io.EOF {
		return l.awaitClose()
	}
	return nil
}

// decompressionFailure is an alert that only a user would send.
const decompressionFailure tls13.Alert = 30

// write sends what the shim sends unasked.
func (o *options) write(l *link) error {
	switch {
	case o.writeSizes:
		for _, n := range []int{0, 1, 255, 256, 257, 16383, 16384, 16385, 32767, 32768, 32769} {
			if _, err := l.Write(bytes.Repeat([]byte{0x42}, n)); err != nil {
				return err
			}
		}
	case o.unfinishedWrite:
		out, err := l.engine.Write(nil, []byte(o.initialWrite))
		if err != nil {
			return err
		}
		return l.hold(out, 1)
	case o.writesFirst:
		for range o.repeatInitialWrite {
			if _, err := l.Write([]byte(o.initialWrite)); err != nil {
				return err
			}
		}
	}
	return nil
}

// echo sends back what comes, with all bits inverted, until the peer ends.
// Unless close_notify is what the test is about, a bare end will do too.
func (o *options) echo(l *link) error {
	buf := make([]byte, o.readSize)
	for {
		if o.keyUpdateFirst {
			if err := l.engine.UpdateKeys(false); err != nil {
				return err
			}
		}
		n, err := l.Read(buf)
		switch {
		case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF) && !o.checkCloseNotify:
			return nil
		case err != nil:
			return err
		}
		if l.held {
			if err := l.release(); err != nil {
				return err
			}
		}
		if o.keyUpdate {
			if err := l.engine.UpdateKeys(false); err != nil {
				return err
			}
		}
		if o.exportBetweenReads {
			if _, err := l.engine.ExportKeyingMaterial("some label", nil, 1024); err != nil {
				return err
			}
		}
		if _, err := l.Write(inverted(buf[:n])); err != nil {
			return err
		}
	}
}

func inverted(p []byte) []byte {
	q := make([]byte, len(p))
	for i, b := range p {
		q[i] = ^b
	}
	return q
}

// export sends keying material or secrets for the runner to compare.
func (s *shim) export(o *options, l *link) error {
	if o.exportLen > 0 {
		var context []byte
		if o.useExportContext {
			context = []byte(o.exportContext)
		}
		material, err := l.engine.ExportKeyingMaterial(o.exportLabel, context, o.exportLen)
		if err != nil {
			return err
		}
		if _, err := l.Write(material); err != nil {
			return err
		}
	}
	if !o.exportSecrets {
		return nil
	}
	receive, send, err := s.trafficSecrets(o.server)
	if err != nil {
		return err
	}
	out := binary.LittleEndian.AppendUint16(nil, uint16(len(receive)))
	_, err = l.Write(append(append(out, receive...), send...))
	return err
}

// trafficSecrets reads the application traffic secrets out of the key log.
func (s *shim) trafficSecrets(server bool) (receive, send []byte, err error) {
	for line := range strings.Lines(s.keyLog.String()) {
		words := strings.Fields(line)
		if len(words) != 3 {
			return nil, nil, fmt.Errorf("line %q in the key log", line)
		}
		secret, err := hex.DecodeString(words[2])
		if err != nil {
			return nil, nil, err
		}
		switch words[0] {
		case "CLIENT_TRAFFIC_SECRET_0":
			receive = secret
		case "SERVER_TRAFFIC_SECRET_0":
			send = secret
		}
	}
	if receive == nil || send == nil {
		return nil, nil, errors.New("no application traffic secrets in the key log")
	}
	if !server {
		receive, send = send, receive
	}
	return receive, send, nil
}

// sessions is a client's cache, which tells what came of it.
type sessions struct {
	tls.ClientSessionCache
	stored bool // a ticket came with this connection
	last   *tls.ClientSessionState
}

func newSessions() *sessions { return &sessions{ClientSessionCache: tls.NewLRUClientSessionCache(0)} }

func (s *sessions) Put(key string, state *tls.ClientSessionState) {
	s.stored, s.last = state != nil, state
	s.ClientSessionCache.Put(key, state)
}

// supportsEarlyData tells whether the ticket that came last allows early data,
// by what a client does that has it.
func (s *shim) supportsEarlyData(o *options) (bool, error) {
	cfg, err := s.config(o)
	if err != nil {
		return false, err
	}
	cfg.TLS.ClientSessionCache = newSessions()
	cfg.TLS.ClientSessionCache.Put(cfg.TLS.ServerName, s.sessions.last)
	cfg.MaxEarlyData = 1
	engine, err := tls13.NewClient(cfg)
	return err == nil && engine.EarlyContextSend() != nil, err
}
