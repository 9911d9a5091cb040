package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/go-tcpls/tcpls"
)

// A failure is an error as the person meets it.
type failure struct {
	status int
	text   string
	hint   string
}

// A usageError is a command line that makes no sense.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text }

// A localError is a fault of this end: a file, a folder, an address to listen on.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// A statusError is an HTTP answer that isn't the wished one.
type statusError struct {
	code int
	text string // the server's words, one line
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("the server answered %d %s", e.code, http.StatusText(e.code))
	if e.text != "" {
		text += fmt.Sprintf(": %q", e.text)
	}
	return text
}

// A silenceError is a peer that says nothing for too long.
type silenceError struct{ after time.Duration }

func (e *silenceError) Error() string {
	return fmt.Sprintf("the server sent nothing for %v", e.after)
}
func (e *silenceError) Timeout() bool { return true }

// A digestError is content that isn't what its sender said it is.
type digestError struct{ what, want, got string }

func (e *digestError) Error() string {
	return fmt.Sprintf("%s has the SHA-256 %s, not the announced %s", e.what, e.got, e.want)
}

// A pathedError is a failure with one of several files or URLs.
type pathedError struct {
	name string
	err  error
}

func (e *pathedError) Error() string { return e.name + ": " + e.err.Error() }
func (e *pathedError) Unwrap() error { return e.err }

// explain turns an error into words, a hint and an exit status.
func explain(ctx context.Context, err error) *failure {
	if ctx.Err() != nil {
		return &failure{status: exitInterrupted, text: "interrupted"}
	}
	var pathed *pathedError
	named := errors.As(err, &pathed)
	if named {
		err = pathed.err
	}
	f := classify(err)
	// The packages' names tell a person nothing.
	f.text = strings.TrimPrefix(strings.TrimPrefix(f.text, "tcpls: "), "tls13: ")
	var file *fs.PathError
	if named && !(errors.As(err, &file) && file.Path == pathed.name) { // else the text has the name
		f.text = pathed.name + ": " + f.text
	}
	return f
}

func classify(err error) *failure {
	var (
		usage  *usageError
		local  *localError
		path   *fs.PathError
		status *statusError
		digest *digestError
		failed *verdictError
		claims *labError
	)
	switch {
	case errors.Is(err, errQuit):
		return &failure{status: exitInterrupted, text: errQuit.Error()}
	case errors.As(err, &failed):
		return &failure{status: exitUnverified, text: failed.Error()}
	case errors.As(err, &claims):
		return &failure{status: exitUnverified, text: claims.Error()}
	case errors.As(err, &usage):
		return &failure{exitUsage, usage.text, usage.hint}
	case errors.As(err, &local):
		return &failure{status: exitUsage, text: local.Error()}
	case errors.As(err, &path):
		return &failure{status: exitUsage, text: path.Error()}
	case errors.As(err, &status):
		f := &failure{exitUnreachable, status.Error(), statusHint(status)}
		if status.code == http.StatusUnprocessableEntity {
			f.status = exitUnverified // what arrived there isn't what was announced
		}
		return f
	case errors.As(err, &digest):
		return &failure{exitUnverified, digest.Error(), "nothing was kept; try again, and if it stays like this, distrust the server"}
	case errors.Is(err, tcpls.ErrNotTCPLS):
		return &failure{exitNotTCPLS, reason(err).Error(), "without --require-tcpls it goes over plain TLS"}
	}
	if f := classifyTrust(err); f != nil {
		return f
	}
	return &failure{exitUnreachable, reason(err).Error(), reachHint(err)}
}

// classifyTrust handles the certificates and pins that don't verify.
func classifyTrust(err error) *failure {
	var (
		pinned    *pinError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		roots     x509.SystemRootsError
		other     *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &pinned):
		return &failure{exitUnverified, pinned.Error(),
			"serve makes a new key at each start unless it has --cert and --key: ask for the present URL; else someone is in between"}
	case errors.As(err, &authority):
		return &failure{exitUnverified, "the server's certificate isn't signed by a trusted authority",
			"use the URL with the pin that serve printed, or --cacert F"}
	case errors.As(err, &name):
		return &failure{exitUnverified, "the server's certificate is for another name: " + name.Error(), ""}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return &failure{exitUnverified, "the server's certificate has expired or isn't valid yet: " + invalid.Detail, "is this machine's clock right?"}
	case errors.As(err, &invalid):
		return &failure{exitUnverified, "the server's certificate isn't valid: " + invalid.Error(), ""}
	case errors.As(err, &roots), errors.As(err, &other):
		return &failure{exitUnverified, "the server's certificate couldn't be verified: " + reason(err).Error(), ""}
	}
	return nil
}

// reachHint says what to try when there is no connection or no answer.
func reachHint(err error) string {
	var (
		dns     *net.DNSError
		silence *silenceError
		timeout net.Error
		alert   tls.AlertError
		header  tls.RecordHeaderError
		path    *tcpls.PathError
	)
	switch {
	case errors.As(err, &dns):
		return "is the name right, and is there a network?"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: is the server running, and the port right?"
	case errors.Is(err, syscall.EADDRINUSE):
		return "another program has that port; choose another one, or port 0 for any that is free"
	case errors.As(err, &silence):
		return "wait longer with --timeout; get goes on where it stopped"
	case errors.Is(err, tcpls.ErrHandshakeTimeout):
		return "something accepts connections there but doesn't speak TLS, or a firewall swallows it; --timeout waits longer"
	case errors.Is(err, tcpls.ErrNotTLS), errors.As(err, &header):
		return "that port doesn't speak TLS: the port of the same server that does is another one, often 443"
	case errors.Is(err, tcpls.ErrTruncated), errors.Is(err, tcpls.ErrKeepAliveTimeout),
		errors.Is(err, syscall.ECONNRESET) && errors.As(err, &path):
		return "the connection was cut; get and put go on where they stopped"
	case errors.Is(err, syscall.ECONNRESET):
		return "what answers there, or a firewall on the way, doesn't want this connection: is the port right, or the server full?"
	case errors.As(err, &alert):
		return "the server refused the handshake; 'tcpls check' says more"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer: is the address right, and no firewall in between? --timeout waits longer"
	}
	return ""
}

// statusHint knows what the server's words are when they are those of serve.
func statusHint(e *statusError) string {
	switch {
	case e.text == noUploads:
		return "uploads need serve --allow-put"
	case e.text == nameHidden:
		return "serve takes such names with --hidden"
	case e.text == nameTaken:
		return "serve replaces files only with --allow-overwrite"
	case e.code == http.StatusNotFound:
		return "the folder's listing: tcpls get with a URL that ends in a slash"
	}
	return ""
}

// reason strips what net/http and net/url put around the cause: the person
// knows the URL already.
func reason(err error) error {
	var wrapped *url.Error
	for errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return err
}

// oneLine makes a peer's text fit to be shown: its first line, at most n bytes.
func oneLine(text string, n int) string {
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	if len(text) > n {
		text = text[:n] + "..."
	}
	return text
}
