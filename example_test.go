package tcpls_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"time"

	"github.com/go-tcpls/tcpls"
)

// exampleConfigs returns what a server has of its certificate authority, and a
// client knows of it; here a certificate that signs itself.
func exampleConfigs() (client, server *tcpls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		log.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tcpls.Config{TLS: &tls.Config{RootCAs: roots, ServerName: "localhost"}},
		&tcpls.Config{TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}}
}

// A server that sends back what it gets, and a client that opens two streams
// on one session.
func Example() {
	clientConfig, serverConfig := exampleConfigs()
	l, err := tcpls.Listen("tcp", "127.0.0.1:0", serverConfig)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		s, err := l.Accept(context.Background())
		if err != nil {
			return // the listener was closed
		}
		for {
			st, err := s.AcceptStream(context.Background())
			if err != nil {
				return // the session was closed
			}
			go func() {
				defer st.Close()
				if _, err := io.Copy(st, st); err != nil {
					log.Print(err)
				}
			}()
		}
	}()

	s, err := tcpls.Dial(context.Background(), "tcp", l.Addr().String(), clientConfig)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	for _, text := range []string{"hello", "world"} {
		st, err := s.OpenStream(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		if _, err := io.WriteString(st, text); err != nil {
			log.Fatal(err)
		}
		if err := st.CloseWrite(); err != nil {
			log.Fatal(err)
		}
		echo, err := io.ReadAll(st)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("stream %d: %s\n", st.ID(), echo)
	}
	// Output:
	// stream 1: hello
	// stream 3: world
}

// Streams are connections, so HTTP runs over them as it is: the requests of
// one client share a session and don't wait for each other.
func ExampleListener_Streams() {
	clientConfig, serverConfig := exampleConfigs()
	l, err := tcpls.Listen("tcp", "127.0.0.1:0", serverConfig)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "you asked for %s", r.URL.Path)
	})}
	go server.Serve(l.Streams())
	defer server.Close()

	d := &tcpls.Dialer{Config: clientConfig}
	defer d.Close()
	transport := &http.Transport{DialTLSContext: d.DialStream}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for _, path := range []string{"/one", "/two"} {
		response, err := client.Get("https://" + l.Addr().String() + path)
		if err != nil {
			log.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			log.Fatal(err)
		}
		response.Body.Close()
		fmt.Println(response.Status, string(body))
	}
	// Output:
	// 200 OK you asked for /one
	// 200 OK you asked for /two
}

// The end of a request is an end of one direction; the answer comes on the
// other one.
func ExampleStream_CloseWrite() {
	clientConfig, serverConfig := exampleConfigs()
	l, err := tcpls.Listen("tcp", "127.0.0.1:0", serverConfig)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Streams().Accept()
		if err != nil {
			return // the listener was closed
		}
		defer c.Close()
		lines := 0
		for in := bufio.NewScanner(c); in.Scan(); {
			lines++
		}
		fmt.Fprintf(c, "%d lines", lines)
	}()

	s, err := tcpls.Dial(context.Background(), "tcp", l.Addr().String(), clientConfig)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	st, err := s.OpenStream(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	if _, err := io.WriteString(st, "a\nb\nc\n"); err != nil {
		log.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		log.Fatal(err)
	}
	answer, err := io.ReadAll(st)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(answer))
	// Output: 3 lines
}

// Either side may open streams. Session.Streams serves those of the peer as a
// net.Listener, here on the client.
func ExampleSession_Streams() {
	clientConfig, serverConfig := exampleConfigs()
	l, err := tcpls.Listen("tcp", "127.0.0.1:0", serverConfig)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		s, err := l.Accept(context.Background())
		if err != nil {
			return // the listener was closed
		}
		defer s.Close()
		for _, news := range []string{"first", "second"} {
			st, err := s.OpenStream(context.Background())
			if err != nil {
				log.Print(err)
				return
			}
			if _, err := io.WriteString(st, news); err != nil {
				log.Print(err)
			}
			st.Close()
		}
	}()

	s, err := tcpls.Dial(context.Background(), "tcp", l.Addr().String(), clientConfig)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	streams := s.Streams()
	for range 2 {
		c, err := streams.Accept()
		if err != nil {
			log.Fatal(err)
		}
		news, err := io.ReadAll(c)
		if err != nil {
			log.Fatal(err)
		}
		c.Close()
		fmt.Printf("%s\n", news)
	}
	// Output:
	// first
	// second
}
