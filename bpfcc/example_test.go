package bpfcc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/bpfcc"
)

// A server gives its clients a congestion control for what they upload.
func ExampleBandwidth() {
	l, err := tcpls.Listen("tcp", ":4433", &tcpls.Config{TLS: &tls.Config{ /* a certificate */ }})
	if err != nil {
		log.Fatal(err)
	}
	for {
		session, err := l.Accept(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			err := session.OfferCC(context.Background(), bpfcc.Bandwidth())
			var why *tcpls.CCError
			if errors.As(err, &why) {
				log.Printf("%v goes on with its own: %v, %s", session.RemoteAddr(), why.Code, why.Reason)
			}
		}()
	}
}

// A client takes congestion controls that it knows, from servers whose
// certificate was verified.
func ExampleHost() {
	known := map[[32]byte]bool{ /* SHA-256 of objects */ }
	config := &tcpls.Config{
		TLS:    &tls.Config{ServerName: "example.com"},
		CCHost: new(bpfcc.Host),
		AcceptCC: func(_ *tcpls.Session, o tcpls.CCOffer) error {
			if !known[o.Hash] {
				return fmt.Errorf("%s is none of those that are known here", o.Name)
			}
			return nil
		},
	}
	session, err := tcpls.Dial(context.Background(), "tcp", "example.com:4433", config)
	if err != nil {
		log.Fatal(err)
	}
	for e := range session.Events(context.Background()) {
		switch e.Kind {
		case tcpls.EventCCLoaded:
			log.Print("a congestion control of the server is in use")
		case tcpls.EventCCEnded:
			log.Print("no more: ", e.Err)
		}
	}
}
