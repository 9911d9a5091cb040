#!/bin/sh
# Compiles the congestion controls, and those that tests have refused, with the
# clang of Debian 12. No kernel headers are needed.
set -eu
for source in samples/*.bpf.c testdata/*.bpf.c; do
	object=${source%.bpf.c}.o
	clang-14 -O2 -g -target bpf -mcpu=v3 -Wall -Werror -fdebug-prefix-map="$PWD=." -c "$source" -o "$object"
	llvm-strip-14 -g "$object" # keeps the BTF, which is what the loader needs
done
