package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A middlebox is a row of the experiment: something between client and server.
type middlebox struct {
	name, software string
	boxes          []Middlebox                              // that the emulator plays on path0
	start          func(ctx context.Context, s *site) error // starts software on the box; may be nil
	addr           string                                   // whom clients connect to; empty: the server
	proxy          string                                   // an HTTP proxy
	// cut breaks connections through the box, and breaks says how. Without it, path0
	// loses everything. With a silence, that breaks them.
	breaks  string
	cut     func(ctx context.Context, s *site) error
	silence time.Duration
	// blocksTCPLS tells that the box lets no ClientHello of TCPLS pass.
	blocksTCPLS bool
	// intercepts tells that the box ends TLS itself, with a certificate that it makes.
	intercepts bool
	quick      bool // is part of short runs
}

// howItBreaks names what ends connections through the box.
func (b *middlebox) howItBreaks() string {
	switch {
	case b.silence > 0:
		return fmt.Sprintf("silence of %v", b.silence)
	case b.breaks != "":
		return b.breaks
	}
	return "blackhole"
}

const emulated = "the lab's emulator"

// outsidePrograms are what the rows run on their hosts, and the Debian packages that have it.
var outsidePrograms = []struct{ name, packages string }{
	{"ip", "iproute2"},
	{"nft", "nftables"},
	{"iptables-legacy-restore", "iptables"},
	{"conntrack", "conntrack"},
	{"haproxy", "haproxy"},
	{"nginx", "nginx-light libnginx-mod-stream"},
	{"squid", "squid"},
}

// havePrograms returns an error that says how to get those that aren't there.
func havePrograms() error {
	var names, packages []string
	for _, p := range outsidePrograms {
		if _, err := exec.LookPath(p.name); err != nil {
			names = append(names, p.name)
			packages = append(packages, p.packages)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: there is no %s: on Debian, apt-get install %s", ErrUnsupported, strings.Join(names, ", "), strings.Join(packages, " "))
}

// middleboxes returns the rows.
func middleboxes() []middlebox {
	return []middlebox{
		{name: "router", software: "Linux", quick: true},
		{name: "RST injector", software: emulated, breaks: "RST", cut: cutByReset, quick: true},
		{name: "NAT", software: "nftables", start: nftNAT("masquerade")},
		{name: "NAT that rebinds", software: "nftables, conntrack", start: nftNAT("masquerade random"), breaks: "rebinding", cut: cutByRebinding, quick: true},
		{name: "NAT with a short memory", software: "nftables", start: nftIdle("reject with tcp reset"), silence: 3 * time.Second},
		{name: "firewall with a short memory", software: "nftables", start: nftIdle("drop"), silence: 3 * time.Second, quick: true},
		{name: "reset after 300 kB", software: "iptables", start: resetAfter, breaks: "RST", cut: cutByItself},
		{name: "option stripper", software: "iptables", start: stripOptions, quick: true},
		{name: "MSS clamp to 536", software: "nftables", start: clampMSS},
		{name: "SYN proxy", software: "iptables", start: synProxy},
		{name: "new sequence numbers", software: emulated, boxes: []Middlebox{RewriteSequence{}}},
		{name: "new sequence numbers, old SACK", software: emulated, boxes: []Middlebox{RewriteSequence{KeepSACK: true}}},
		{name: "TCP proxy", software: "HAProxy", start: haproxy, addr: siteBox, quick: true},
		{name: "TCP proxy that reads the SNI", software: "nginx", start: nginx, addr: siteBox, quick: true},
		{name: "HTTP proxy", software: "Squid", start: squid, proxy: siteBox + ":3128", quick: true},
		{name: "reset of unknown extensions", software: emulated, boxes: []Middlebox{HelloFilter{}}, blocksTCPLS: true, quick: true},
		{name: "loss of unknown extensions", software: emulated, boxes: []Middlebox{HelloFilter{Swallow: true}}, blocksTCPLS: true},
		{name: "TLS interception", software: "HAProxy", start: intercept, intercepts: true, quick: true},
	}
}

func cutByBlackhole(_ context.Context, s *site) error { return s.Link("path0").SetBlackhole(true) }

func cutByReset(_ context.Context, s *site) error { return s.Link("path0").Reset() }

func cutByRebinding(ctx context.Context, s *site) error {
	return s.run(ctx, "box", "conntrack", "-F")
}

func cutByItself(context.Context, *site) error { return nil }

// nft gives the box rules for nftables.
func (s *site) nft(ctx context.Context, rules string) error {
	return s.feed(ctx, rules, "nft", "-f", "-")
}

// conntrack sets a parameter of the box's connection tracking.
func (s *site) conntrack(name, value string) error {
	return s.Host("box").Do(func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_"+name, []byte(value), 0)
	})
}

func nftNAT(how string) func(context.Context, *site) error {
	return func(ctx context.Context, s *site) error {
		return s.nft(ctx, `table ip t {
			chain out { type nat hook postrouting priority srcnat; oifname "net0" `+how+`; }
		}`)
	}
}

// nftIdle is a NAT that forgets connections after a second without a packet,
// and what it does with their packets then. Without tcp_loose it doesn't take them
// for new ones.
func nftIdle(then string) func(context.Context, *site) error {
	return func(ctx context.Context, s *site) error {
		for name, value := range map[string]string{"tcp_loose": "0", "tcp_timeout_established": "1", "tcp_timeout_unacknowledged": "1"} {
			if err := s.conntrack(name, value); err != nil {
				return err
			}
		}
		return s.nft(ctx, `table ip t {
			chain through { type filter hook forward priority filter; ct state invalid `+then+`; }
			chain out { type nat hook postrouting priority srcnat; oifname "net0" masquerade; }
		}`)
	}
}

func clampMSS(ctx context.Context, s *site) error {
	return s.nft(ctx, `table ip t {
		chain through { type filter hook forward priority filter; tcp flags syn tcp option maxseg size set 536; }
	}`)
}

// iptables gives the box rules, in the form of iptables-save.
func (s *site) iptables(ctx context.Context, rules string) error {
	return s.feed(ctx, rules, "iptables-legacy-restore")
}

func resetAfter(ctx context.Context, s *site) error {
	return s.iptables(ctx, `*filter
-A FORWARD -p tcp -m connbytes --connbytes 300000: --connbytes-dir both --connbytes-mode bytes -j REJECT --reject-with tcp-reset
COMMIT
`)
}

func stripOptions(ctx context.Context, s *site) error {
	return s.iptables(ctx, `*mangle
-A FORWARD -p tcp -j TCPOPTSTRIP --strip-options wscale,sack-permitted,timestamp,30,34
COMMIT
`)
}

func synProxy(ctx context.Context, s *site) error {
	// The proxy must see connections only from their third segment on.
	if err := s.conntrack("tcp_loose", "0"); err != nil {
		return err
	}
	return s.iptables(ctx, `*raw
-A PREROUTING -i path0 -p tcp --syn -j CT --notrack
COMMIT
*filter
-A FORWARD -i path0 -p tcp -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460
-A FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
`)
}

// haproxyDefaults run HAProxy without anything that outlives it.
const haproxyDefaults = `defaults
	mode tcp
	timeout connect 5s
	timeout client 60s
	timeout server 60s
`

func haproxy(ctx context.Context, s *site) error {
	conf := haproxyDefaults
	for _, port := range []string{portTCPLS, portTLS} {
		conf += fmt.Sprintf("listen port%s\n\tbind :%[1]s\n\tserver s %s:%[1]s\n", port, siteServer)
	}
	return s.startHAProxy(ctx, conf, portTLS)
}

func (s *site) startHAProxy(ctx context.Context, conf, port string) error {
	file, err := s.file("haproxy.cfg", conf)
	if err != nil {
		return err
	}
	return s.start(ctx, port, "haproxy", "-db", "-q", "-f", file)
}

// intercept takes all connections to the server's ports, and ends TLS with a
// certificate of its own for the server's name, as companies' gateways do.
func intercept(ctx context.Context, s *site) error {
	fake, _, err := newTLS()
	if err != nil {
		return err
	}
	cert := fake.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	certFile, err := s.file("intercept.pem", string(chain))
	if err != nil {
		return err
	}
	conf := haproxyDefaults
	for _, port := range []string{portTCPLS, portTLS} {
		conf += fmt.Sprintf("listen port%s\n\tbind :8%[1]s ssl crt %s\n\tserver s %s:%[1]s ssl verify none\n", port, certFile, siteServer)
	}
	if err := s.startHAProxy(ctx, conf, "8"+portTLS); err != nil {
		return err
	}
	return s.nft(ctx, `table ip t {
		chain in {
			type nat hook prerouting priority dstnat;
			iifname "path0" tcp dport `+portTCPLS+` redirect to :8`+portTCPLS+`
			iifname "path0" tcp dport `+portTLS+` redirect to :8`+portTLS+`
		}
	}`)
}

// trustInterceptor returns a client's configuration that trusts the
// interceptor too, as a company's computers do.
func (s *site) trustInterceptor() (*tls.Config, error) {
	b, err := os.ReadFile(filepath.Join(s.Dir(), "intercept.pem"))
	if err != nil {
		return nil, err
	}
	cfg := s.clientTLS.Clone()
	cfg.RootCAs = cfg.RootCAs.Clone()
	if !cfg.RootCAs.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("the interceptor has no certificate")
	}
	return cfg, nil
}

func nginx(ctx context.Context, s *site) error {
	conf := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid %[1]s/nginx.pid;
error_log stderr;
events {}
stream {
	map $ssl_preread_server_name $site { %[2]s %[3]s; }
`, s.Dir(), serverName, siteServer)
	for _, port := range []string{portTCPLS, portTLS} {
		conf += fmt.Sprintf("\tserver { listen %s; ssl_preread on; proxy_pass $site:%[1]s; }\n", port)
	}
	file, err := s.file("nginx.conf", conf+"}\n")
	if err != nil {
		return err
	}
	return s.start(ctx, portTLS, "nginx", "-c", file, "-e", "stderr")
}

func squid(ctx context.Context, s *site) error {
	file, err := s.file("squid.conf", fmt.Sprintf(`http_port 3128
http_access allow all
cache deny all
cache_mem 8 MB
access_log none
cache_log /dev/null
pid_filename none
coredump_dir %s
pinger_enable off
shutdown_lifetime 0 seconds
visible_hostname box
dns_nameservers 127.0.0.1
`, s.Dir()))
	if err != nil {
		return err
	}
	return s.start(ctx, "3128", "squid", "-N", "-f", file)
}
