#!/bin/bash
# A family is one folder: templates/copy, copied, renamed and changed, is a family of its own in a
# tree in which no other file was touched.
. "$(dirname "$0")/checks.sh"

tree=$scratch/tree
mkdir -p "$tree/$build_name"
cp -a Makefile include jit cache templates tools "$tree"
# The objects come along, so that only what changes is compiled.
cp -a "$build_name"/{gen,include,libquern.*,quern} "$tree/$build_name"
mkdir "$tree/$build_name/obj"
cp -a "$build_name"/obj/{gen,jit,cache,templates,tools} "$tree/$build_name/obj"

# The copy, with its parameter renamed and, in two steps, what it computes changed.
cd "$tree" || exit 1
cp -r templates/copy templates/sprout
for file in templates/sprout/copy*; do
    mv "$file" "templates/sprout/sprout${file#templates/sprout/copy}"
done
sed -i 's/copy/sprout/g; s/COPY/SPROUT/g; s/alpha/factor/g; s/ALPHA/FACTOR/g' templates/sprout/*
sed -i 's/"factor of x"/"half of what x is multiplied by"/' templates/sprout/sprout.def
sed -i 's/x \*= factor/x *= 2 * factor/' templates/sprout/sprout_cpu.c

check "the tree builds" make "B=$build_name" "$build_name/quern"
quern=$tree/$build_name/quern
run() { "$quern" run "$@" --check --device cpu; }
check "the new family is listed" grep -q sprout <("$quern" families)
check "its help is its own" grep -q 'half of what x is multiplied by' <("$quern" families sprout)
check "its parameter's old name is unknown" refuses run sprout n=1000 alpha=3
check "its reference tells the changed kernel" refuses run sprout n=1000 factor=3
sed -i 's/(float)v->factor/2 * &/' templates/sprout/sprout_ref.c
check "the tree builds again" make "B=$build_name" "$build_name/quern"
check "it computes" run sprout n=1000 factor=3
check "in place too" run sprout n=1000 factor=0.5 inplace=1 dtype=bf16
check "the family it came from still computes" run copy n=1000 alpha=3
if "$quern" doctor | grep -q 'nvrtc_version *nvrtc'; then
    check "it compiles for GPUs" "$quern" build sprout n=1000 factor=3 --target sm_80,sm_90a
else
    skip "no NVRTC: nothing is compiled for GPUs"
fi
finish
