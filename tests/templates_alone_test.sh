#!/bin/bash
# Every CPU template compiles alone, with the defaults of its parameters, for each kind of target
# that a kernel may be made for; aarch64 needs no cross tools for that.
. "$(dirname "$0")/checks.sh"

clang=${QUERN_CLANG:-clang-19}
compile() { # file flags...
    "$clang" -x c -std=gnu11 -ffreestanding -nostdlibinc -Wall -Werror -Itemplates \
        -fsyntax-only "$@"
}

for template in templates/*/*_cpu.c; do
    for level in x86-64 x86-64-v2 x86-64-v3 x86-64-v4; do
        check "$template for $level" compile "$template" --target=x86_64-linux-gnu -march=$level
    done
    check "$template for x86-64-v4+bf16+vnni" compile "$template" --target=x86_64-linux-gnu \
        -march=x86-64-v4 -mavx512bf16 -mavx512vnni
    check "$template for x86-64-v4+bf16+vnni+amx" compile "$template" --target=x86_64-linux-gnu \
        -march=x86-64-v4 -mavx512bf16 -mavx512vnni -mamx-tile -mamx-bf16 -mamx-int8
    check "$template for aarch64" compile "$template" --target=aarch64-linux-gnu
done
finish
