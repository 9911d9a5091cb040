package bpfcc

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/go-tcpls/tcpls"
)

// What an object may be like.
const (
	maxObject       = 64 << 10 // protocol 12
	maxSections     = 64
	maxPrograms     = 16
	maxInstructions = 4096
	maxMap          = 4 << 10

	opsType = "tcp_congestion_ops"
)

// helpers and kfuncs are what a program may call.
var (
	helpers = []asm.BuiltinFunc{asm.FnKtimeGetNs, asm.FnJiffies64}
	kfuncs  = []string{"tcp_reno_ssthresh", "tcp_reno_cong_avoid", "tcp_reno_undo_cwnd", "tcp_slow_start", "tcp_cong_avoid_ai"}
)

// Read checks an object as a [Host] does before it asks the kernel, and returns it as
// an offer by the name that is in it. The error is a *tcpls.CCError with code CCForm
// or CCTooLarge.
func Read(object []byte) (tcpls.CCOffer, error) {
	return shielded(func() (tcpls.CCOffer, error) { return read(object) })
}

func read(object []byte) (tcpls.CCOffer, error) {
	o, err := parse(object)
	if err != nil {
		return tcpls.CCOffer{}, err
	}
	name, err := o.name()
	if err != nil {
		return tcpls.CCOffer{}, err
	}
	offer := tcpls.CCOffer{Name: string(name), Object: object, MinKernel: [2]int{6, 4}}
	if o.has("cong_control") { // which had two arguments before
		offer.MinKernel = [2]int{6, 10}
	}
	return offer, nil
}

// shielded calls what reads or loads an object. The packages that do it aren't made
// for files of an adversary: debug/elf says that it may panic.
func shielded[T any](f func() (T, error)) (result T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = refused("the object can't be read: %v", p)
		}
	}()
	return f()
}

// An object is one that was found to be a congestion control and nothing else.
type object struct {
	spec *ebpf.CollectionSpec
	ops  string // the map that stands for its tcp_congestion_ops
}

func refused(format string, args ...any) error {
	return &tcpls.CCError{Code: tcpls.CCForm, Reason: fmt.Sprintf(format, args...)}
}

// parse reads an object that anybody may have made.
func parse(b []byte) (*object, error) {
	if len(b) > maxObject {
		return nil, &tcpls.CCError{Code: tcpls.CCTooLarge, Reason: fmt.Sprintf("the object has %d bytes; at most %d are taken", len(b), maxObject)}
	}
	if err := checkSections(b); err != nil {
		return nil, err
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(b))
	if err != nil {
		return nil, refused("the object can't be read: %v", err)
	}
	o := &object{spec: spec}
	if err := o.checkMaps(); err != nil {
		return nil, err
	}
	return o, o.checkPrograms()
}

// checkSections looks at the ELF file's table of sections, so that nothing that
// reads them can be made to take more memory than the file has.
func checkSections(b []byte) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return refused("it isn't an ELF object: %v", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Type != elf.ET_REL || f.Machine != elf.EM_BPF {
		return refused("it is a %v of %v for %v, not an eBPF object", f.Type, f.Class, f.Machine)
	}
	if len(f.Sections) > maxSections {
		return refused("it has %d sections; at most %d are taken", len(f.Sections), maxSections)
	}
	for _, s := range f.Sections {
		switch {
		case s.Flags&elf.SHF_COMPRESSED != 0:
			return refused("section %q is compressed", s.Name)
		case s.Size > maxObject || s.FileSize > maxObject:
			return refused("section %q has %d bytes", s.Name, s.Size)
		}
	}
	return nil
}

// checkMaps finds the one tcp_congestion_ops. Other maps are constants and
// variables only.
func (o *object) checkMaps() error {
	for name, m := range o.spec.Maps {
		switch m.Type {
		case ebpf.StructOpsMap:
			s, ok := m.Value.(*btf.Struct)
			if !ok || s.Name != opsType {
				return refused("%q isn't a %s", name, opsType)
			}
			if o.ops != "" {
				return refused("it has more than one %s", opsType)
			}
			o.ops = name
		case ebpf.Array:
			if !slices.ContainsFunc([]string{".rodata", ".data", ".bss"}, func(p string) bool { return name == p || strings.HasPrefix(name, p+".") }) {
				return refused("it has a map of its own, %q", name)
			}
			if m.MaxEntries > 1 || m.ValueSize > maxMap {
				return refused("%s has %d bytes; at most %d are taken", name, uint64(m.MaxEntries)*uint64(m.ValueSize), maxMap)
			}
		default:
			return refused("it has a map of type %v, %q", m.Type, name)
		}
		if m.Pinning != ebpf.PinNone || m.InnerMap != nil {
			return refused("map %q would outlive the session", name)
		}
	}
	if o.ops == "" {
		return refused("it has no %s in section .struct_ops.link", opsType)
	}
	return nil
}

// checkPrograms lets only functions of a tcp_congestion_ops pass that call little.
func (o *object) checkPrograms() error {
	if n := len(o.spec.Programs); n > maxPrograms {
		return refused("it has %d programs; at most %d are taken", n, maxPrograms)
	}
	total := 0
	for name, p := range o.spec.Programs {
		if p.Type != ebpf.StructOps || !strings.HasPrefix(p.AttachTo, opsType+":") {
			return refused("program %q, of type %v for %q, isn't a function of the %s", name, p.Type, p.AttachTo, opsType)
		}
		if total += len(p.Instructions); total > maxInstructions {
			return refused("it has more than %d instructions", maxInstructions)
		}
		for i := range p.Instructions {
			if err := o.checkInstruction(&p.Instructions[i]); err != nil {
				return refused("program %q %v", name, err)
			}
		}
	}
	return nil
}

// checkInstruction lets pass what computes, and calls and references that are
// known. All others are refused: a number in the place of a symbol could be that of
// any map that this process has open, or of any of the kernel's variables, and
// the name of one would be replaced by its address.
func (o *object) checkInstruction(ins *asm.Instruction) error {
	name := ins.Reference()
	switch {
	case ins.IsBuiltinCall():
		if f := asm.BuiltinFunc(ins.Constant); !slices.Contains(helpers, f) {
			return fmt.Errorf("calls %v", f)
		}
	case ins.IsKfuncCall():
		if !slices.Contains(kfuncs, name) {
			return fmt.Errorf("calls the kernel's %q", name)
		}
	case ins.OpCode.JumpOp() == asm.Call:
		if !ins.IsFunctionCall() {
			return errors.New("makes a call of an unknown sort")
		}
	case ins.IsLoadFromMap():
		if o.spec.Maps[name] == nil {
			return errors.New("uses a map that isn't its own")
		}
	case ins.OpCode.IsDWordLoad() && (ins.Src != asm.R0 || name != ""):
		return fmt.Errorf("asks for the address of %q", name)
	}
	return nil
}

// has reports whether some program is that member of the tcp_congestion_ops.
func (o *object) has(member string) bool {
	for _, p := range o.spec.Programs {
		if p.AttachTo == opsType+":"+member {
			return true
		}
	}
	return false
}

// member returns the bytes of a member of the tcp_congestion_ops, nil if it
// hasn't that member.
func (o *object) member(name string) ([]byte, error) {
	m := o.spec.Maps[o.ops]
	if len(m.Contents) != 1 {
		return nil, refused("its %s has %d values", opsType, len(m.Contents))
	}
	value, ok := m.Contents[0].Value.([]byte)
	if !ok {
		return nil, refused("its %s has no value", opsType)
	}
	for _, member := range m.Value.(*btf.Struct).Members {
		if member.Name != name {
			continue
		}
		size, err := btf.Sizeof(member.Type)
		from := int(member.Offset.Bytes())
		if err != nil || from+size > len(value) || size > len(value) {
			return nil, refused("%s.%s lies outside of it", opsType, name)
		}
		return value[from : from+size], nil
	}
	return nil, nil
}

// name is what the object calls itself.
func (o *object) name() ([]byte, error) {
	field, err := o.member("name")
	if err != nil {
		return nil, err
	}
	name, _, _ := bytes.Cut(field, []byte{0})
	if len(name) == 0 {
		return nil, refused("its %s has no name", opsType)
	}
	return name, nil
}

// rename gives it another name, and takes all flags away: without
// TCP_CONG_NON_RESTRICTED only privileged processes can choose it.
func (o *object) rename(name string) error {
	field, err := o.member("name")
	if err != nil {
		return err
	}
	if len(field) != nameLen {
		return refused("the name in its %s has %d bytes, not %d", opsType, len(field), nameLen)
	}
	clear(field)
	copy(field, name)
	flags, err := o.member("flags")
	clear(flags)
	return err
}

// nameLen is TCP_CA_NAME_MAX: a name and the byte 0 behind it.
const nameLen = 16
