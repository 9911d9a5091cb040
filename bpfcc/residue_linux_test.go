package bpfcc_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/go-tcpls/tcpls/bpfcc"
)

// mark gives the functions and maps of an object, whose names begin with prefix,
// names that nobody else on this machine has.
func mark(t *testing.T, object []byte, prefix string) (marked []byte, name string) {
	t.Helper()
	for _, c := range []byte(rand.Text())[:len(prefix)] {
		name += string('a' + c%26)
	}
	if !bytes.Contains(object, []byte(prefix+"_")) {
		t.Fatalf("no function begins with %q", prefix)
	}
	return bytes.ReplaceAll(object, []byte(prefix), []byte(name)), name
}

// inKernel lists the programs and maps of the whole kernel whose names begin with
// prefix, as bpftool does.
func inKernel(t *testing.T, prefix string) (found []string) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if id = next; err != nil {
			t.Fatal(err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it has just ended
		}
		if info, err := p.Info(); err == nil && strings.HasPrefix(info.Name, prefix) {
			found = append(found, "program "+info.Name)
		}
		_ = p.Close()
	}
	for id := ebpf.MapID(0); ; {
		next, err := ebpf.MapGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return found
		}
		if id = next; err != nil {
			t.Fatal(err)
		}
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue // likewise
		}
		if info, err := m.Info(); err == nil && strings.HasPrefix(info.Name, prefix) {
			found = append(found, "map "+info.Name)
		}
		_ = m.Close()
	}
}

// held lists this process's descriptors of programs, maps, links and types.
func held(t *testing.T) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		target, err := os.Readlink(file)
		if err == nil && (strings.HasPrefix(target, "anon_inode:bpf") || strings.HasPrefix(target, "anon_inode:btf")) {
			found = append(found, target)
		}
	}
	return found
}

// wantNothingLeft checks that the kernel has nothing any more of a marked object,
// and this process nothing but what it held before.
func wantNothingLeft(t *testing.T, why, name string, before []string) {
	t.Helper()
	if now := held(t); len(now) > len(before) {
		t.Errorf("%s: the process holds %v, and %v before", why, now, before)
	}
	deadline := time.Now().Add(30 * time.Second) // the kernel frees what may still be running a little later
	for {
		left := inKernel(t, name)
		switch {
		case len(left) == 0:
			return
		case time.Now().After(deadline):
			t.Errorf("%s: the kernel still has %v", why, left)
			return
		}
		<-time.After(5 * time.Millisecond)
	}
}

// What is loaded is among what the kernel lists, and gone when it is closed:
// without that, the tests that find nothing would prove nothing.
func TestNothingIsLeft(t *testing.T) {
	needKernel(t)
	before := held(t)
	offer := bpfcc.Scalable()
	object, name := mark(t, offer.Object, "scalable")
	offer.Object = object
	p, err := new(bpfcc.Host).Load(offer)
	if err != nil {
		t.Fatal(err)
	}
	found := inKernel(t, name)
	for _, want := range []string{"program " + name + "_avoid", "map " + name} {
		if !slices.Contains(found, want) {
			t.Errorf("the kernel has %v, without %q", found, want)
		}
	}
	if now := held(t); len(now) <= len(before) {
		t.Errorf("the process holds %v, and %v before", now, before)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, "after Close", name, before)
}
