#!/bin/bash
# The program that opens quern.h compiles without a warning as C11 and as C++20, and runs; every
# public header, the generated ones too, compiles on its own, as C++17 too. A family's list must
# compile as what it promises.
. "$(dirname "$0")/checks.sh"

tests/header_program.sh > "$scratch/program.c"
clang=${QUERN_CLANG:-clang-19}
flags="-Iinclude -I$build/include -Wall -Wextra -Werror -Wno-missing-field-initializers"
against_build="-L$build -lquern -Wl,-rpath,$build"

check "the header opens with a program" grep -q 'int main(void)' "$scratch/program.c"
# shellcheck disable=SC2086 # lists of flags
{
    check "it is C11" cc -std=c11 -Wpedantic $flags "$scratch/program.c" -o "$scratch/c" \
        $against_build
    check "it runs" "$scratch/c"
    check "it is C++20" "$clang" -std=c++20 $flags -x c++ -c "$scratch/program.c" \
        -o "$scratch/cxx.o"
    check "it links as C++" cc "$scratch/cxx.o" -o "$scratch/cxx" $against_build
    check "it runs as C++" "$scratch/cxx"
    for header in include/quern.h include/quern/*.h "$build"/include/quern/*.h; do
        [ "$header" != include/quern/family_def.h ] || continue # needs a QUERN_DEF
        echo "#include \"$(realpath "$header")\"" > "$scratch/alone.c"
        check "$header stands alone in C11" cc -std=c11 -Wpedantic $flags -fsyntax-only \
            "$scratch/alone.c"
        check "$header stands alone in C++20" "$clang" -std=c++20 $flags -fsyntax-only -x c++ \
            "$scratch/alone.c"
        check "$header stands alone in g++'s C++17" g++ -std=c++17 -Wpedantic $flags \
            -fsyntax-only -x c++ "$scratch/alone.c"
    done

    {
        echo 'QUERN_PARAM(n, DYNAMIC, SIZE, 0, 1, "n")'
        echo 'QUERN_ARRAY(x, IN, QUERN_F32, "x", n, n, n, n, n, n, n)'
    } > "$scratch/seven.def"
    printf '#define QUERN_DEF "seven.def"\n#include <quern/family_def.h>\n' > "$scratch/seven.c"
    refuses cc -std=gnu11 $flags -I"$scratch" -fsyntax-only "$scratch/seven.c" \
        2> "$scratch/seven.log"
    check "a list with a shape of seven dimensions does not compile" \
        grep -q 'x: too many dimensions' "$scratch/seven.log"
}
finish
