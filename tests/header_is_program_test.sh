#!/bin/bash
# The program that opens quern.h compiles without a warning as C11 and as C++20, and runs; so does
# every generated header on its own.
. "$(dirname "$0")/checks.sh"

tests/header_program.sh > "$scratch/program.c"
flags="-Iinclude -I$build/include -Wall -Wextra -Wpedantic -Werror"
against_build="-L$build -lquern -Wl,-rpath,$build"

check "the header opens with a program" grep -q 'int main(void)' "$scratch/program.c"
# shellcheck disable=SC2086 # lists of flags
{
    check "it is C11" cc -std=c11 $flags "$scratch/program.c" -o "$scratch/c" $against_build
    check "it runs" "$scratch/c"
    if command -v g++ > "$scratch/which"; then
        check "it is C++20" g++ -std=c++20 $flags -x c++ "$scratch/program.c" -o "$scratch/cxx" \
            $against_build
        check "it runs as C++" "$scratch/cxx"
    else
        skip "no g++: the header as C++"
    fi
    for header in include/quern.h include/quern/family.h include/quern/cache.h \
        "$build"/include/quern/*.h; do
        check "$header stands alone" cc -std=c11 $flags -fsyntax-only -x c "$header"
    done
}
finish
