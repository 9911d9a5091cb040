package main

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
)

const defaultPort = "443"

// A target is where a URL, or HOST:PORT, leads.
type target struct {
	address string // host:port
	path    string // of the URL, decoded, with its leading slash
	query   string // of an https URL
	pin     *pin   // nil: the roots decide
	https   bool   // written as https://, so that plain TLS is no surprise
}

// parseURL reads tcpls://HOST[:PORT]/PATH[?pin=sha256:HEX] or https://...
func parseURL(text string) (target, error) {
	if !strings.Contains(text, "://") {
		return target{}, &usageError{fmt.Sprintf("%q isn't a URL", text), "put tcpls:// before it, or https://"}
	}
	u, err := url.Parse(text)
	if err != nil {
		return target{}, &usageError{fmt.Sprintf("%q isn't a URL: %s", text, strings.TrimPrefix(reason(err).Error(), "net/url: ")), ""}
	}
	t := target{path: u.Path, https: u.Scheme == "https"}
	switch {
	case u.Scheme != "tcpls" && u.Scheme != "https":
		return t, &usageError{fmt.Sprintf("%q doesn't begin with tcpls:// or https://", text), ""}
	case u.Host == "" || u.Hostname() == "":
		return t, &usageError{fmt.Sprintf("%q names no host", text), ""}
	case !validHost(u.Hostname()):
		return t, &usageError{fmt.Sprintf("%q is neither a host name nor an address", u.Hostname()), ""}
	case !validPort(u.Port()):
		return t, noPort(u.Port())
	case u.User != nil || u.Fragment != "":
		return t, &usageError{fmt.Sprintf("%q has a user or a fragment, which isn't supported", text), ""}
	}
	if t.path == "" {
		t.path = "/"
	}
	t.address = withPort(u.Hostname(), u.Port())
	if t.https {
		t.query = u.RawQuery
		return t, nil
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return t, &usageError{fmt.Sprintf("%q has a malformed query: %v", text, reason(err)), ""}
	}
	for name, value := range values {
		if name != "pin" || len(value) != 1 {
			return t, &usageError{fmt.Sprintf("%q: a tcpls URL takes one pin=sha256:HEX and nothing else", text), ""}
		}
		p, err := parsePin(value[0])
		if err != nil {
			return t, &usageError{err.Error(), "copy the whole URL that serve printed, and put it in quotes"}
		}
		t.pin = &p
	}
	return t, nil
}

// validHost reports whether what stands where a host should be can be one:
// what has a colon must be an IPv6 address.
func validHost(host string) bool {
	if strings.Contains(host, ":") {
		_, err := netip.ParseAddr(host)
		return err == nil
	}
	return host != "" && !strings.ContainsAny(host, "/?#@[] ")
}

// validPort allows none, for which there is a default.
func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}

func noPort(port string) error {
	text := fmt.Sprintf("%q is no port", port)
	if strings.Trim(port, "0123456789") == "" && strings.Trim(port, "0") != "" {
		text = fmt.Sprintf("%s is too big for a port", port)
	}
	return &usageError{text + "; they go from 1 to 65535", ""}
}

// parsePeer reads HOST[:PORT] or a URL whose path doesn't matter.
func parsePeer(text string) (target, error) {
	if strings.Contains(text, "://") {
		return parseURL(text)
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"), ""
	}
	switch {
	case !validHost(host):
		return target{}, &usageError{fmt.Sprintf("%q isn't HOST[:PORT] or a tcpls:// URL", text), ""}
	case !validPort(port):
		return target{}, noPort(port)
	}
	return target{address: withPort(host, port), path: "/"}, nil
}

func withPort(host, port string) string {
	if port == "" {
		port = defaultPort
	}
	return net.JoinHostPort(host, port)
}

// request returns the URL that net/http asks for.
func (t target) request() *url.URL {
	return &url.URL{Scheme: "https", Host: t.address, Path: t.path, RawQuery: t.query}
}

// share returns the tcpls URL of a path on the same server.
func (t target) share(p string) string {
	u := &url.URL{Scheme: "tcpls", Host: t.address, Path: p}
	if t.pin != nil {
		u.RawQuery = "pin=" + t.pin.String()
	}
	return u.String()
}

// isFolder reports whether the URL names a folder, by its last slash.
func (t target) isFolder() bool { return strings.HasSuffix(t.path, "/") }

// fileName returns the name under which the target is saved: the last element
// of the path, if that is a plain name on this system.
func (t target) fileName() (string, error) {
	name := path.Base(path.Clean(t.path))
	if name == "/" || name == "." {
		return "", &usageError{fmt.Sprintf("the URL's path %q names no file", t.path), "say where to save it with -o FILE"}
	}
	if err := checkName(name); err != nil {
		return "", &usageError{fmt.Sprintf("%v", err), "say where to save it with -o FILE"}
	}
	return name, nil
}

// maxName leaves room for what the names of partial files add, on file systems
// that take 255 bytes.
const maxName = 200

// checkName refuses what isn't the plain name of a file, on either end.
func checkName(name string) error {
	switch {
	case len(name) > maxName:
		return fmt.Errorf("the file name has %d bytes; at most %d are allowed", len(name), maxName)
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, `/\`) || !filepath.IsLocal(name):
		return fmt.Errorf("%q isn't a file name", name)
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }):
		return fmt.Errorf("%q has control characters or isn't UTF-8", name)
	}
	return nil
}
