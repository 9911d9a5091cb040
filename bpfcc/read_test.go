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

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

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
		{"an address in the kernel", newTestObject(t, "testdata/symbol.o"), tcpls.CCForm, `asks for the address of "init_task"`},
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

// Instructions that no compiler writes, in which numbers stand for what is to be
// named.
func TestCheckInstruction(t *testing.T) {
	o := &object{spec: &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{".bss": {}}}}
	load := func(source asm.Register, constant int64) asm.Instruction {
		return asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R1, Src: source, Constant: constant}
	}
	call := func(source asm.Register, constant int64) asm.Instruction {
		return asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: source, Constant: constant}
	}
	for _, test := range []struct {
		name   string
		ins    asm.Instruction
		reason string // "": it is let in
	}{
		{"a constant", load(asm.R0, 1<<40), ""},
		{"a variable of its own", load(asm.PseudoMapValue, 0).WithReference(".bss"), ""},
		{"a function of its own", call(asm.PseudoCall, -1).WithReference("f"), ""},
		{"the time", asm.FnKtimeGetNs.Call(), ""},
		{"a kernel function", call(asm.PseudoKfuncCall, -1).WithReference("tcp_slow_start"), ""},
		{"arithmetic", asm.Add.Imm(asm.R1, 5), ""},
		{"a map by its descriptor", load(asm.PseudoMapFD, 5), "a map that isn't its own"},
		{"a map's value by its descriptor", load(asm.PseudoMapValue, 5), "a map that isn't its own"},
		{"another map by its name", load(asm.PseudoMapFD, 0).WithReference("other"), "a map that isn't its own"},
		{"a kernel variable by its number", load(asm.R3, 100), "the address"},
		{"a kernel variable by its name", load(asm.R0, 0).WithReference("init_task"), `"init_task"`},
		{"a function's address", load(asm.PseudoFunc, -1).WithReference("f"), "the address"},
		{"another helper", asm.FnProbeReadKernel.Call(), "ProbeReadKernel"},
		{"a kernel function by its number", call(asm.PseudoKfuncCall, 100), "calls the kernel's"},
		{"another kernel function", call(asm.PseudoKfuncCall, -1).WithReference("bpf_obj_new_impl"), "bpf_obj_new_impl"},
		{"a call of a sort that doesn't exist", call(asm.R7, 5), "unknown sort"},
	} {
		err := o.checkInstruction(&test.ins)
		if (err == nil) != (test.reason == "") || err != nil && !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.reason)
		}
	}
}

// A reader that falls over refuses the object, and nothing else ends.
func TestShielded(t *testing.T) {
	_, err := shielded(func() (tcpls.CCOffer, error) {
		var sections []int
		return tcpls.CCOffer{Size: sections[len(sections)]}, nil
	})
	if !errors.Is(err, &tcpls.CCError{Code: tcpls.CCForm}) || !strings.Contains(err.Error(), "out of range") {
		t.Errorf("it says %v", err)
	}
	if _, err := shielded(func() (tcpls.CCOffer, error) { return tcpls.CCOffer{}, nil }); err != nil {
		t.Error(err)
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
