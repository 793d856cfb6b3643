#!/bin/bash
# `make install` to a DESTDIR gives a tree that a program can be built against with pkg-config, and
# whose command finds its library wherever the tree is put.
. "$(dirname "$0")/checks.sh"

prefix=/opt/quern
root=$scratch/root
tree=$root$prefix
check "make install" make install B="$build_name" DESTDIR="$root" PREFIX=$prefix

for file in bin/quern lib/libquern.a lib/libquern.so lib/libquern.so.0 include/quern.h \
    include/quern/family.h include/quern/gemm.h lib/pkgconfig/quern.pc share/doc/quern/LICENSE \
    share/doc/quern/docs/CLI.md share/doc/quern/examples/gemm.c; do
    check "$file is installed" test -e "$tree/$file"
done
check "the soname is libquern.so.0" grep -q 'SONAME.*\[libquern\.so\.0\]' \
    <(readelf -d "$tree/lib/libquern.so")
check "only quern_ symbols are exported" refuses grep -qv ' quern_' \
    <(nm -D --defined-only "$tree/lib/libquern.so")
check "nothing installed names the build" refuses grep -rqF "$build" "$tree/lib/pkgconfig" \
    "$tree/include"

export PKG_CONFIG_LIBDIR=$tree/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root
tests/header_program.sh > "$scratch/program.c"
# shellcheck disable=SC2046 # a list of flags
check "the program of quern.h builds with pkg-config" cc "$scratch/program.c" \
    -o "$scratch/program" $(pkg-config --cflags --libs quern)
check "it runs" env LD_LIBRARY_PATH="$tree/lib" "$scratch/program"
cd "$tree/share/doc/quern/examples" || exit 1 # as docs/ADDING_A_FAMILY.md says
# shellcheck disable=SC2046
check "the example plugin builds with pkg-config" cc -shared -fPIC -I. plugin_scale.c \
    -o "$scratch/scale.so" $(pkg-config --cflags --libs quern)
cd "$OLDPWD" || exit 1
check "the installed command runs it" "$tree/bin/quern" run scale n=1000 factor=3 --check \
    --plugin "$scratch/scale.so" --device cpu
mv "$root" "$scratch/moved"
check "the installed command finds its library" env -u LD_LIBRARY_PATH \
    "$scratch/moved$prefix/bin/quern" --version
finish
