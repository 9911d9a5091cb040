package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// A testServer is one that isn't ours. It runs until its script ends.
type testServer struct {
	arrived chan struct{} // closed at the decisive moment
	once    sync.Once
	end     chan struct{}
}

type serversKey struct{}

// kinds of servers, by what they do with a request. All are plain crypto/tls.
var kinds = map[string]struct {
	handle  func(*testServer, http.ResponseWriter, *http.Request)
	version uint16 // the highest
	age     time.Duration
	name    string
}{
	"https":       {handle: plainFile},
	"tls12":       {handle: plainFile, version: tls.VersionTLS12},
	"expired":     {handle: plainFile, age: 48 * time.Hour},
	"othername":   {handle: plainFile, name: "other.example"},
	"stall":       {handle: stall},
	"wrongdigest": {handle: wrongDigest},
	"short":       {handle: short},
	"downgrade": {handle: func(_ *testServer, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+r.Host+"/", http.StatusFound)
	}},
}

// testContent is what these servers offer, under every path.
var testContent = bytes.Repeat([]byte("0123456789abcdef"), 64<<10)

func plainFile(_ *testServer, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Etag", `"test"`)
	w.Header().Set("Content-Type", "text/plain")
	http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(testContent))
}

// stall sends half of the content and then nothing, the first time.
func stall(s *testServer, w http.ResponseWriter, r *http.Request) {
	first := false
	s.once.Do(func() { first = true })
	if !first {
		plainFile(s, w, r)
		return
	}
	w.Header().Set("Etag", `"test"`)
	w.Header().Set("Content-Type", "text/plain")
	http.NewResponseController(w).EnableFullDuplex()
	http.ServeContent(&stallingWriter{ResponseWriter: w, left: len(testContent) / 2, server: s, request: r}, r, "", time.Unix(1e9, 0), bytes.NewReader(testContent))
}

type stallingWriter struct {
	http.ResponseWriter
	left    int
	server  *testServer
	request *http.Request
}

func (w *stallingWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.left -= n
	n, err := w.ResponseWriter.Write(p[:n])
	if err != nil || w.left > 0 {
		return n, err
	}
	http.NewResponseController(w.ResponseWriter).Flush()
	close(w.server.arrived)
	select {
	case <-w.server.end:
	case <-w.request.Context().Done():
	}
	return n, io.ErrShortWrite
}

func wrongDigest(s *testServer, w http.ResponseWriter, r *http.Request) {
	w.Header().Set(reprDigest, sumOf("something else").field())
	plainFile(s, w, r)
}

// short announces more than it sends.
func short(_ *testServer, w http.ResponseWriter, r *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nnot a thousand")
}

func cmdServer(ts *testscript.TestScript, _ bool, args []string) {
	name, kind := args[0], args[1]
	s := &testServer{arrived: make(chan struct{}), end: make(chan struct{})}
	ts.Value(serversKey{}).(map[string]*testServer)[name] = s
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(name, ln.Addr().String())
	ts.Defer(func() {
		close(s.end)
		ln.Close()
	})
	switch kind {
	case "closed":
		ln.Close()
		return
	case "silent", "chatter", "http", "reset":
		go s.talk(ln, kind)
		return
	}
	k, ok := kinds[kind]
	if !ok {
		ts.Fatalf("no kind of server %q", kind)
	}
	host := "127.0.0.1"
	if k.name != "" {
		host = k.name
	}
	cert, certPEM, _, err := newTestCertificate(k.age, host)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(name+".pem"), certPEM, 0o644))
	server := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { k.handle(s, w, r) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: k.version},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	go server.ServeTLS(ln, "", "")
	ts.Defer(func() { server.Close() })
}

// talk accepts connections that aren't TLS.
func (s *testServer) talk(ln net.Listener, kind string) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			switch kind {
			case "chatter":
				io.WriteString(conn, "220 mail.example ready\r\n")
			case "http":
				io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
			case "reset":
				conn.Read(make([]byte, 1))
				conn.(*net.TCPConn).SetLinger(0)
				return
			}
			<-s.end
		}()
	}
}

func cmdPlainClient(ts *testscript.TestScript, _ bool, args []string) {
	content, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	conn, err := tls.Dial("tcp", args[0], &tls.Config{InsecureSkipVerify: true})
	ts.Check(err)
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(content)
		sent <- errors.Join(err, conn.CloseWrite())
	}()
	received, err := io.ReadAll(conn)
	ts.Check(errors.Join(err, <-sent))
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), received, 0o644))
}

func cmdArrived(ts *testscript.TestScript, _ bool, args []string) {
	<-ts.Value(serversKey{}).(map[string]*testServer)[args[0]].arrived
}

func cmdCertificate(ts *testscript.TestScript, _ bool, args []string) {
	_, cert, key, err := newTestCertificate(0, args[2:]...)
	ts.Check(err)
	ts.Check(errors.Join(os.WriteFile(ts.MkAbs(args[0]), cert, 0o644), os.WriteFile(ts.MkAbs(args[1]), key, 0o600)))
}

// newTestCertificate makes a certificate for one day that began age ago.
func newTestCertificate(age time.Duration, names ...string) (cert tls.Certificate, certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return
	}
	from := time.Now().Add(-age - time.Hour)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: from.Add(24 * time.Hour)}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	cert, err = tls.X509KeyPair(certPEM, keyPEM)
	return
}
