package outside

import (
	"path/filepath"
	"testing"
)

// NSSDatabase returns the name of a database in which NSS's programs find an authority,
// and keys with their certificates by nickname. OpenSSL brings the keys into
// the form that NSS imports.
func NSSDatabase(t testing.TB, a *Authority, leaves map[string]*Leaf) (db string) {
	t.Helper()
	db = "sql:" + filepath.ToSlash(t.TempDir())
	Run(t, "certutil", "-N", "-d", db, "--empty-password")
	Run(t, "certutil", "-A", "-d", db, "-n", "authority", "-t", "CT,C,C", "-i", a.File)
	for nickname, l := range leaves {
		file := filepath.ToSlash(filepath.Join(t.TempDir(), "key.p12"))
		Run(t, "openssl", "pkcs12", "-export", "-in", l.CertFile, "-inkey", l.KeyFile, "-name", nickname, "-passout", "pass:", "-out", file)
		Run(t, "pk12util", "-i", file, "-d", db, "-W", "", "-K", "")
	}
	return db
}
