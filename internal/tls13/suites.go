package tls13

import (
	"crypto/tls"
	"runtime"
	"slices"

	"golang.org/x/sys/cpu"

	"github.com/go-tcpls/tcpls/internal/record"
)

// aesIsFast tells whether the machine has instructions for AES-GCM.
var aesIsFast = cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3 ||
	cpu.ARM64.HasAES && cpu.ARM64.HasPMULL ||
	cpu.S390X.HasAES && cpu.S390X.HasAESCTR && cpu.S390X.HasGHASH ||
	runtime.GOARCH == "ppc64" || runtime.GOARCH == "ppc64le"

// Without such instructions AES is slow, and constant-time only with care.
var (
	suitesAESFirst    = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}
	suitesChaChaFirst = []uint16{tls.TLS_CHACHA20_POLY1305_SHA256, tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384}
)

func suitePreference(fastAES bool) []uint16 {
	if fastAES {
		return suitesAESFirst
	}
	return suitesChaChaFirst
}

// selectSuite picks the server's suite. AES goes first only where both ends
// have hardware for it; a client shows that by naming an AES suite first.
func selectSuite(offered []uint16) *record.Suite {
	clientPrefersAES := true
	for _, id := range offered {
		if record.SuiteByID(id) != nil {
			clientPrefersAES = id != tls.TLS_CHACHA20_POLY1305_SHA256
			break
		}
	}
	for _, id := range suitePreference(aesIsFast && clientPrefersAES) {
		if slices.Contains(offered, id) {
			return record.SuiteByID(id)
		}
	}
	return nil
}
