package tcpls

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// A lockedBuffer takes what several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.String()
}

// TestLogsHoldNoSecrets runs sessions to all kinds of ends with a logger that
// drops nothing, and looks for their secrets, and for application data, in
// what it got and in the errors.
func TestLogsHoldNoSecrets(t *testing.T) {
	const data = "the application's own words"
	for name, end := range map[string]func(p *memPair){
		"closed":               func(p *memPair) { _ = p.client.Close() },
		"closed with an error": func(p *memPair) { _ = p.server.CloseWithError(7, "reason") },
		"cut off":              func(p *memPair) { _ = p.clientConn.Close() },
		"keys updated":         func(p *memPair) { _ = p.client.UpdateKeys(context.Background()); _ = p.client.Close() },
		"reset": func(p *memPair) {
			st, _ := p.client.OpenStream(context.Background())
			_, _ = st.Write([]byte(data))
			_ = st.Reset(9)
			_ = p.client.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logged, keys lockedBuffer
				p := newMemPair(t, memnet.Link{}, func(client, server *Config) {
					for _, c := range []*Config{client, server} {
						c.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{AddSource: true, Level: slog.LevelDebug - 100}))
						c.TLS.KeyLogWriter = &keys
					}
				})
				c, s := p.open(t)
				if _, err := c.Write([]byte(data)); err != nil {
					t.Fatal(err)
				}
				wantRead(t, "what was written", s, []byte(data))
				end(p)
				_, err := io.Copy(io.Discard, s)
				_, err2 := c.Write([]byte(data))
				synctest.Wait()
				text := logged.text() + fmt.Sprintf("%v %+v %v %+v", err, err, err2, err2)
				for _, s := range []*Session{p.client, p.server} {
					cause := context.Cause(s.Context())
					text += fmt.Sprintf("%v %+v", cause, cause)
				}
				wantNoSecrets(t, text, keys.text(), data)
			})
		})
	}
}

// TestRefusalsHoldNoSecrets does the same where sessions are refused, or end by
// a violation.
func TestRefusalsHoldNoSecrets(t *testing.T) {
	for _, violation := range clientViolations[:30] {
		synctest.Test(t, func(t *testing.T) {
			var logged, keys lockedBuffer
			p := newTestPeer(t, true, func(c *Config) {
				c.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug - 100}))
				c.TLS.KeyLogWriter = &keys
			})
			go violation.do(p)
			<-p.sess.Context().Done()
			synctest.Wait() // for what is logged then
			cause := context.Cause(p.sess.Context())
			wantNoSecrets(t, logged.text()+fmt.Sprintf("%v %+v", cause, cause), keys.text())
			if !strings.Contains(logged.text(), "session ended") {
				t.Error("nothing was logged, which proves nothing")
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		client, server := newTestConfigs()
		var keys lockedBuffer
		client.TLS.KeyLogWriter, server.TLS.KeyLogWriter = &keys, &keys
		client.TLS.ServerName = "another.example"
		near, far := memnet.Pipe(memnet.Link{})
		served := begun(func() error {
			_, err := Server(t.Context(), far, server)
			return err
		})
		_, err := Client(t.Context(), near, client)
		err = errors.Join(err, <-served)
		if !strings.Contains(err.Error(), "another.example") {
			t.Errorf("%v doesn't name the cause", err)
		}
		wantNoSecrets(t, fmt.Sprintf("%v %+v", err, err), keys.text())
	})
}

func wantNoSecrets(t *testing.T, text, keyLog string, words ...string) {
	t.Helper()
	for line := range strings.Lines(keyLog) {
		secret, err := hex.DecodeString(strings.Fields(line)[2])
		if err != nil {
			t.Fatal(err)
		}
		words = append(words, string(secret[:12]), hex.EncodeToString(secret[:12]), strings.ToUpper(hex.EncodeToString(secret[:12])),
			base64.StdEncoding.EncodeToString(secret[:12]), strings.Trim(fmt.Sprint(secret[:12]), "[]"))
	}
	if len(words) < 5*4 {
		t.Fatalf("only %d words to look for; the key log is\n%s", len(words), keyLog)
	}
	for _, word := range words {
		if strings.Contains(text, word) {
			t.Errorf("%q can be read in what was logged:\n%s", word, text)
		}
	}
}

// publicComparisons are the places where library code compares byte strings in
// a time that depends on them, and why it may. MACs, binders and tags go
// through crypto/hmac and the AEADs.
var publicComparisons = map[string]string{
	"c.RawIssuer, c.RawSubject":       "names in a certificate",
	"sh.sessionID, h.hello.sessionID": "in the clear",
	"s.own, cfg.EarlyContext":         "the ticket is sealed, and nobody else chooses its content",
	"content, []byte{1}":              "ChangeCipherSpec",
	"m.random, retryRandom":           "in the clear",
	"h.compressions, []byte{0}":       "in the clear",
	"second.":                         "ClientHellos, in the clear",
	"before, e.body":                  "ClientHellos, in the clear",
	"id.identity, h.psk.identity":     "ClientHellos, in the clear",
	"entry, []byte(sessionPrefix)":    "whose entry of the cache it is",
	"p, []byte(f.prefix)":             "other protocols' first bytes",
}

// TestComparisons looks for comparisons that could tell a secret by the time
// they take.
func TestComparisons(t *testing.T) {
	var files []string
	for _, pattern := range []string{"*.go", "internal/tls13/*.go", "internal/record/*.go", "internal/wire/*.go"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	safe := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(source)) {
			safe += strings.Count(line, "hmac.Equal(")
			for _, compare := range []string{"bytes.Equal(", "slices.Equal(", "bytes.Compare(", "reflect.DeepEqual(", "bytes.HasPrefix("} {
				for _, call := range strings.Split(line, compare)[1:] {
					if !isPublic(call) {
						t.Errorf("%s compares in a time that depends on what it compares; if that is public, say so in publicComparisons:\n%s", name, line)
					}
				}
			}
		}
	}
	if safe < 2 {
		t.Errorf("hmac.Equal is called %d times, want Finished and binders at least", safe)
	}
}

func isPublic(call string) bool {
	for arguments := range publicComparisons {
		if strings.HasPrefix(call, arguments) {
			return true
		}
	}
	return false
}

// A process that hasn't made tokens yet takes nobody else's for its own.
func TestTokensBeforeTheFirst(t *testing.T) {
	forged := make([]byte, tokenLen)
	mac := hmac.New(sha256.New, make([]byte, len(registry{}.key)))
	mac.Write(forged[:tokenLen-tokenMAC])
	copy(forged[tokenLen-tokenMAC:], mac.Sum(nil))
	var r registry
	if r.isToken(forged) {
		t.Error("a token under a key of zeros is taken for one of ours")
	}
	own := r.mint()
	if !r.isToken(own) {
		t.Error("a token of ours isn't known")
	}
	for i := range own {
		own[i] ^= 1
		if r.isToken(own) {
			t.Fatalf("a token with byte %d changed is taken for one of ours", i)
		}
		own[i] ^= 1
	}
}
