#!/bin/sh
# deps.sh [base] [bench] [format]: installs what is missing of these groups with apt; does nothing
# when all is there. Uses sudo only when not root; without apt or network it names what is missing
# and exits 1.
set -u

# group | package | probe (a command, or a file below one of $roots) | what it is for
needs='
base|gcc|gcc|compiles the library
base|libc6-dev|include/stdio.h|C headers
base|pkg-config|pkg-config|how a program finds an installed quern
base|clang-19|clang-19|compiles kernels at run time (CPU)
base|libllvm19|lib/libLLVM.so.19* lib/libLLVM-19.so*|loads compiled kernels (CPU)
base|libsqlite3-dev|include/sqlite3.h|the cache file
base|libxxhash-dev|include/xxhash.h|keys
base|libjansson-dev|include/jansson.h|JSON of the command line
base|python3|python3|demo table, some tests, make layers
base|python3-numpy|numpy|arrays in files: demo, tests
base|check|include/check.h|unit tests
base|libsubunit-dev|include/subunit/child.h|what check links to
bench|libopenblas0|lib/libopenblas.so.0|peer of the benchmarks
bench|libdnnl2|lib/libdnnl.so.2|peer of the benchmarks
format|clang-format-14|clang-format-14|make format, make format-check
'
multiarch=$(uname -m)-linux-gnu
roots="/usr /usr/local /usr/lib/llvm-19"

is_there() { # probe...
    command -v "$1" >/dev/null 2>&1 && return 0
    [ "$1" = numpy ] && "$(dirname "$0")/find_python.sh" >/dev/null && return 0
    for pattern in "$@"; do
        for root in $roots; do
            # Unquoted on purpose: a pattern may hold a glob.
            for path in "$root"/$pattern "$root/${pattern%%/*}/$multiarch/"${pattern#*/}; do
                [ -e "$path" ] && return 0
            done
        done
    done
    return 1
}

missing='' why=''
add_missing() { # groups
    while IFS='|' read -r group package probe purpose; do
        case " $1 " in *" $group "*) ;; *) continue ;; esac
        # shellcheck disable=SC2086 # a probe is a list
        is_there $probe && continue
        missing="$missing $package"
        why="$why    $package: $purpose
"
    done <<EOF
$needs
EOF
}

give_up() { # reason
    printf 'deps: %s; missing:\n%sInstall them by hand, e.g. apt-get install%s\n' \
        "$1" "$why" "$missing" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

add_missing "${*:-base}"
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || give_up 'no apt-get here'
[ "$(id -u)" = 0 ] || command -v sudo >/dev/null || give_up 'not root, and no sudo'
printf 'deps: installing with apt-get:\n%s' "$why"
# shellcheck disable=SC2086 # a list of packages
{
    as_root apt-get -qq update &&
        as_root apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing
} >&2 || give_up 'apt-get failed (see above; is there a network?)'
installed=$missing missing='' why=''
add_missing "${*:-base}"
[ -z "$missing" ] || give_up "apt-get installed$installed, but not all is there"
