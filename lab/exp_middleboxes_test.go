package lab_test

import (
	"strings"
	"testing"
)

// TestMiddleboxes checks what must be so on any machine: all but what
// Multipath TCP makes of a break, which takes it about a second.
func TestMiddleboxes(t *testing.T) {
	r := run(t, "middleboxes")
	columns := []string{"TLS", "TLS, break", "MPTCP", "TCPLS", "TCPLS, join", "TCPLS, break", "TCPLS, fallback"}
	want := map[string]string{
		"router":                       "yes|no|yes|yes|yes|yes|TCPLS",
		"RST injector":                 "yes|no|yes|yes|yes|yes|TCPLS",
		"NAT that rebinds":             "yes|no|yes|yes|yes|yes|TCPLS",
		"firewall with a short memory": "yes|no|yes|yes|yes|yes|TCPLS",
		"option stripper":              "yes|no|TCP|yes|yes|yes|TCPLS",
		"TCP proxy":                    "yes|no|TCP|yes|yes|yes|TCPLS",
		"TCP proxy that reads the SNI": "yes|no|TCP|yes|yes|yes|TCPLS",
		"HTTP proxy":                   "yes|no|TCP|yes|yes|yes|TCPLS",
		"reset of unknown extensions":  "yes|no|yes|no|no|-|plain TLS",
		"TLS interception":             "no|-|no|no|no|-|plain TLS",
	}
	header := r.Tables[0].Header
	rows := table(t, r, "table")
	if len(rows) != len(want) {
		t.Errorf("%d middleboxes, not %d", len(rows), len(want))
	}
	for _, row := range rows {
		var got []string
		for i, name := range header {
			for _, column := range columns {
				if name == column {
					got = append(got, row[i])
				}
			}
		}
		if got := strings.Join(got, "|"); got != want[row[0]] {
			t.Errorf("%s: %s, not %s", row[0], got, want[row[0]])
		}
	}
}
