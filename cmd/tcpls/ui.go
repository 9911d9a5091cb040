package main

// The rules of the terminal:
//
//   - Standard output carries what another program may want to read, and
//     nothing else: serve's URL, the report of check and demo, a folder's
//     listing, and the bytes of nc and get -o -.
//   - Everything for the person goes to standard error: progress, one line for
//     each finished file, hints, warnings and errors.
//   - Messages are lower case and end without a full stop. An error says what
//     was met and, on a line of its own, what to do about it.
//   - Text from a peer is quoted, so that it can't steer the terminal.
//   - A progress bar, and the demo's picture, are drawn only on a terminal.
//     Colour is one red word there, and none with NO_COLOR set. No output depends
//     on either.

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// Exit statuses.
const (
	exitOK          = 0
	exitUsage       = 1 // wrong usage, or a local file that can't be read or written
	exitUnreachable = 2 // no connection, or no good answer
	exitNotTCPLS    = 3
	exitUnverified  = 4 // certificate, pin or hash
	exitInterrupted = 5
)

// A ui is the three standard streams. Its methods may be called at once.
type ui struct {
	in  io.Reader
	out io.Writer
	err io.Writer

	mu    sync.Mutex
	width func() int // of the terminal that err is, or nil
	color bool
	bar   string // the progress lines on the screen
	raw   bool   // the terminal gives single keys, and leaves new lines to us
}

func newUI(in io.Reader, out, err *os.File) *ui {
	u := &ui{in: in, out: out, err: err}
	if fd := int(err.Fd()); term.IsTerminal(fd) {
		u.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		u.width = func() int {
			if w, _, err := term.GetSize(fd); err == nil && w > 0 {
				return w
			}
			return 80
		}
	}
	return u
}

// say writes one line for the person.
func (u *ui) say(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.clear()
	u.write(fmt.Sprintf(format+"\n", args...))
	u.redraw()
}

// write writes to the terminal as it is set. The caller holds mu.
func (u *ui) write(text string) {
	if u.raw {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	io.WriteString(u.err, text)
}

// fail reports the error that ends the program.
func (u *ui) fail(f *failure) {
	word := "error:"
	if u.color {
		word = "\x1b[31merror:\x1b[0m"
	}
	u.say("%s %s", word, f.text)
	if f.hint != "" {
		u.say("hint: %s", f.hint)
	}
}

// draw replaces the progress lines; an empty text removes them.
func (u *ui) draw(bar string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.clear()
	u.bar = bar
	u.redraw()
}

func (u *ui) clear() {
	if u.bar != "" {
		up := ""
		if lines := strings.Count(u.bar, "\n"); lines > 0 {
			up = fmt.Sprintf("\x1b[%dA", lines)
		}
		u.write("\r" + up + "\x1b[J")
	}
}

func (u *ui) redraw() { u.write(u.bar) }

// interruptKey is what a terminal that gives single keys makes of an interrupt.
const interruptKey = 3

// readKeys lets the terminal give single keys until restore is called. Without
// a terminal to read from there are none. Its reader lives as long as the
// process: nothing else reads the input.
func (u *ui) readKeys() (keys <-chan byte, restore func()) {
	f, ok := u.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, func() {}
	}
	u.setRaw(true)
	c := make(chan byte)
	go func() {
		var key [1]byte
		for {
			if n, err := f.Read(key[:]); n == 0 || err != nil {
				return
			}
			c <- key[0]
		}
	}()
	return c, func() {
		_ = term.Restore(int(f.Fd()), before) // nothing can be done about it
		u.setRaw(false)
	}
}

func (u *ui) setRaw(raw bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.raw = raw
}

// logWriter returns where log records go: to standard error, between the
// progress line's drawings.
func (u *ui) logWriter() io.Writer { return logWriter{u} }

type logWriter struct{ u *ui }

func (w logWriter) Write(p []byte) (int, error) {
	w.u.say("%s", bytes.TrimSuffix(p, []byte("\n")))
	return len(p), nil
}
