package tcpls

import (
	"io"
	"testing"
	"testing/synctest"
)

// A record that is shorter than its tag ends the path, whoever reads it.
func TestShortRecord(t *testing.T) {
	for _, body := range []int{0, 1, 15} {
		synctest.Test(t, func(t *testing.T) {
			p := newTestPeer(t, true, nil)
			p.attach(1)
			p.writeStream(1, []byte("x"))
			s := p.accept()
			wantRead(t, "the first byte", s, []byte("x"))
			read := begun(func() error {
				_, err := io.Copy(io.Discard, s) // once woken, it holds the pump
				return err
			})
			synctest.Wait()
			p.writeStream(1, []byte("y"))
			synctest.Wait()
			p.writeRaw(append([]byte{23, 3, 3, 0, byte(body)}, make([]byte, body)...))
			p.wantAlert("a record without room for a tag", levelFatal, alertBadRecordMAC)
			if err := <-read; err == nil {
				t.Error("the Read that met it returned no error")
			}
		})
	}
}

// Whatever the order in which readers say it, the peer gets the highest credit.
func TestSessionCreditNeverFalls(t *testing.T) {
	var w words
	w.giveSessionCredit(200)
	w.giveSessionCredit(100) // computed before, told later
	if w.sessionCredit != 200 {
		t.Errorf("the peer is given %d bytes of credit, want 200", w.sessionCredit)
	}
}
