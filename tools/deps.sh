#!/bin/sh
# deps.sh [base] [bench] [format]: installs what is missing of these groups with apt; does nothing
# when all is there. Uses sudo only when not root; without apt or network it names what is missing
# and exits 1.
#
# `base` also sees to NVRTC, the compiler of CUDA kernels: where there is neither a toolkit's nor
# another libnvrtc of 12.9 or newer that the driver takes, its PyPI wheel is unpacked into $B/nvrtc
# (B is the build's folder). Nothing else needs it: without a network that is one line, a note for
# the tests in $B/nvrtc/absent, and no failure.
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
base|zlib1g-dev|include/zlib.h|artifacts packed in the cache file
base|libjansson-dev|include/jansson.h|JSON of the command line
base|python3|python3|demo table, some tests, make layers
base|python3-numpy|numpy|arrays in files: demo, tests
base|check|include/check.h|unit tests
base|libsubunit-dev|include/subunit/child.h|what check links to
base|python3-venv|lib/python3*/ensurepip|a test installs the Python package
base|python3-setuptools|lib/python3/dist-packages/setuptools|builds the Python package
base|python3-wheel|lib/python3/dist-packages/wheel|builds the Python package
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

install_missing() {
    command -v apt-get >/dev/null || give_up 'no apt-get here'
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || give_up 'not root, and no sudo'
    printf 'deps: installing with apt-get:\n%s' "$why"
    # shellcheck disable=SC2086 # a list of packages
    {
        as_root apt-get -qq update &&
            as_root apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing
    } >&2 || give_up 'apt-get failed (see above; is there a network?)'
    installed=$missing missing='' why=''
    add_missing "$1"
    [ -z "$missing" ] || give_up "apt-get installed$installed, but not all is there"
}

# ---- NVRTC ----

nvrtc_folder=${B:-build}/nvrtc

# The newest CUDA major that may be used: the driver's, where there is a driver.
cuda_major() {
    major=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\).*/\1/p')
    echo "${major:-13}"
}

# Not of CUDA 12 before 12.9, by the names that jit/cuda/nvrtc.c goes by: of the file itself, else
# of its second library.
is_recent() { # libnvrtc.so.MAJOR's path
    real=$(readlink -f "$1")
    case $real in
    */libnvrtc.so.12.[0-8] | */libnvrtc.so.12.[0-8].*) return 1 ;;
    */libnvrtc.so.12) ;;
    *) return 0 ;;
    esac
    [ -e "${real%/*}/libnvrtc-builtins.so.12.9" ] && return 0
    for older in "${real%/*}"/libnvrtc-builtins.so.12.[0-8]; do
        [ -e "$older" ] && return 1
    done
    return 0
}

# Looks where jit/cuda/nvrtc.c does.
has_nvrtc() { # newest major
    [ -z "${QUERN_NVRTC-}" ] || return 0
    major=$1
    while [ "$major" -ge 12 ]; do
        for folder in "$nvrtc_folder" $(echo "${LD_LIBRARY_PATH-}" | tr : ' ') \
            ${CUDA_HOME:+"$CUDA_HOME"/lib* "$CUDA_HOME"/targets/*/lib} \
            ${CUDA_PATH:+"$CUDA_PATH"/lib* "$CUDA_PATH"/targets/*/lib} \
            /usr/local/cuda/lib* /usr/local/cuda/targets/*/lib \
            "/usr/lib/$multiarch" /usr/lib64 /usr/lib /usr/local/lib; do
            [ -e "$folder/libnvrtc.so.$major" ] && is_recent "$folder/libnvrtc.so.$major" &&
                return 0
        done
        for file in $(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null |
            sed -n "s/.*libnvrtc\.so\.$major .*=> //p"); do
            is_recent "$file" && return 0
        done
        major=$((major - 1))
    done
    return 1
}

# The wheel's two libraries and its licence, through a scratch folder.
fetch_nvrtc() { # wheel==version
    scratch=$(mktemp -d) || return 1
    python3 -m pip download --no-deps --only-binary :all: --retries 1 --timeout 15 \
        --disable-pip-version-check -d "$scratch" "$1" >/dev/null 2>&1 &&
        python3 -m zipfile -e "$scratch"/*.whl "$scratch" &&
        mkdir -p "$nvrtc_folder" && rm -f "$scratch"/nvidia/*/lib/*.alt.so* &&
        find "$scratch" -name 'libnvrtc*.so*' -o -name 'License.txt' |
        while read -r file; do mv "$file" "$nvrtc_folder"/; done
    rm -rf "$scratch"
}

need_nvrtc() {
    newest=$(cuda_major)
    if has_nvrtc "$newest"; then
        rm -f "$nvrtc_folder/absent"
        return
    fi
    wheel=nvidia-cuda-nvrtc==13.0.88
    [ "$newest" -ge 13 ] || wheel=nvidia-cuda-nvrtc-cu12==12.9.86
    printf 'deps: fetching %s from PyPI into %s (compiles kernels at run time, CUDA)\n' \
        "$wheel" "$nvrtc_folder"
    if ! python3 -m pip --version >/dev/null 2>&1 && command -v apt-get >/dev/null; then
        as_root apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends python3-pip >&2
    fi
    fetch_nvrtc "$wheel"
    if has_nvrtc "$newest"; then
        rm -f "$nvrtc_folder/absent"
        return
    fi
    mkdir -p "$nvrtc_folder"
    echo "pip could not get $wheel; CUDA kernels cannot be compiled here, all else works" |
        tee "$nvrtc_folder/absent" | sed 's/^/deps: /' >&2
}

groups=${*:-base}
add_missing "$groups"
[ -z "$missing" ] || install_missing "$groups"
case " $groups " in *" base "*) need_nvrtc ;; esac
