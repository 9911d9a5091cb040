package tcpls

import (
	"testing"

	"go.uber.org/goleak"
)

// No goroutine outlives the tests: every session, listener and dialer ends its
// own.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
