package bpfcc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls"
)

// object reads one of the compiled files.
func newTestObject(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(file))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// patched is an object with other text of the same length in some places.
func patched(b []byte, old, replacement string) []byte {
	return bytes.ReplaceAll(b, []byte(old), []byte(replacement))
}

// What is let in before the kernel is asked, and why not.
func TestRead(t *testing.T) {
	sample := newTestObject(t, "samples/scalable.o")
	machine := slices.Clone(sample)
	binary.LittleEndian.PutUint16(machine[18:], 62) // e_machine: x86-64
	sections := slices.Clone(sample)
	table := binary.LittleEndian.Uint64(sections[40:])           // e_shoff
	binary.LittleEndian.PutUint64(sections[table+64+32:], 1<<40) // sh_size of the first one
	for _, test := range []struct {
		name   string
		object []byte
		code   tcpls.CCCode // 0: it is let in
		reason string
	}{
		{"scalable", sample, 0, ""},
		{"bandwidth", newTestObject(t, "samples/bandwidth.o"), 0, ""},
		{"one that stalls", newTestObject(t, "testdata/stall.o"), 0, ""},
		{"one that writes elsewhere", newTestObject(t, "testdata/forbidden.o"), 0, ""}, // the verifier's business
		{"nothing", nil, tcpls.CCForm, "isn't an ELF object"},
		{"text", []byte("hello"), tcpls.CCForm, "isn't an ELF object"},
		{"a program of this machine", machine, tcpls.CCForm, "not an eBPF object"},
		{"a section of 1 TiB", sections, tcpls.CCForm, "isn't an ELF object"},
		{"half an object", sample[:len(sample)/2], tcpls.CCForm, ""},
		{"64 KiB and a byte", append(slices.Clone(sample), make([]byte, maxObject+1-len(sample))...), tcpls.CCTooLarge, "65537"},
		{"XDP", newTestObject(t, "testdata/xdp.o"), tcpls.CCForm, "tcp_congestion_ops"},
		{"a map of its own", newTestObject(t, "testdata/map.o"), tcpls.CCForm, "map of type Hash"},
		{"a helper", newTestObject(t, "testdata/printk.o"), tcpls.CCForm, "FnTracePrintk"},
		{"another struct_ops", patched(sample, "tcp_congestion_ops\x00", "tcp_congestion_opz\x00"), tcpls.CCForm, ""},
		{"another kernel function", patched(sample, "tcp_slow_start\x00", "tcp_slow_stare\x00"), tcpls.CCForm, "tcp_slow_stare"},
	} {
		t.Run(test.name, func(t *testing.T) {
			offer, err := Read(test.object)
			var coded *tcpls.CCError
			switch {
			case test.code == 0 && err != nil:
				t.Error(err)
			case test.code == 0 && (offer.Name == "" || !bytes.Equal(offer.Object, test.object)):
				t.Errorf("the offer is %q, of %d bytes", offer.Name, len(offer.Object))
			case test.code != 0 && (!errors.As(err, &coded) || coded.Code != test.code || !strings.Contains(coded.Reason, test.reason)):
				t.Errorf("got %v, want %v because of %q", err, test.code, test.reason)
			}
		})
	}
}

// The samples' offers say what is in their objects.
func TestSamples(t *testing.T) {
	for _, o := range []tcpls.CCOffer{Bandwidth(), Scalable()} {
		read, err := Read(o.Object)
		if err != nil || read.Name != o.Name || read.MinKernel != o.MinKernel {
			t.Errorf("%s for %v: its object is %s for %v, %v", o.Name, o.MinKernel, read.Name, read.MinKernel, err)
		}
	}
}

func TestRename(t *testing.T) {
	o, err := parse(newTestObject(t, "samples/bandwidth.o"))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := o.member("flags")
	if err != nil || len(flags) != 4 {
		t.Fatalf("%d bytes of flags, %v", len(flags), err)
	}
	flags[0] = 1 // TCP_CONG_NON_RESTRICTED
	if err := o.rename("tcpls_00112233"); err != nil {
		t.Fatal(err)
	}
	if name, err := o.name(); string(name) != "tcpls_00112233" || err != nil {
		t.Errorf("its name is %q, %v", name, err)
	}
	if flags[0] != 0 {
		t.Error("any process could choose it")
	}
}

// FuzzRead reads objects that anybody may have made.
func FuzzRead(f *testing.F) {
	for _, pattern := range []string{"samples/*.o", "testdata/*.o"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatal("no objects", err)
		}
		for _, file := range files {
			f.Add(newTestObject(f, file))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		offer, err := Read(b)
		var coded *tcpls.CCError
		if err != nil && !errors.As(err, &coded) {
			t.Fatalf("an error without a code: %v", err)
		}
		if err == nil && offer.Name == "" {
			t.Fatal("an offer without a name")
		}
	})
}
