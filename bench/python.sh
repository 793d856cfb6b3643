#!/bin/sh
# python.sh BUILD: prints the Python that runs the CPU's benchmark: PYTHON where that is set, as it
# is (one with torch makes torch a peer, too); else that of BUILD/bench-venv, which
# is made if it is not there and filled from bench/requirements.txt whenever that is newer. Where
# that cannot be done (no network, no venv module), one line on stderr says what is missing, and it
# is the venv as it was, where it works, else the first Python that has NumPy.
set -u
if [ -n "${PYTHON:-}" ]; then
    echo "$PYTHON"
    exit
fi
folder=$(cd "$(dirname "$0")" && pwd)
venv=$1/bench-venv
log=$1/bench-venv.log

works() {
    "$venv/bin/python" -c 'import numpy' 2> /dev/null
}

is_ready() {
    [ -e "$venv/ready" ] && [ ! "$folder/requirements.txt" -nt "$venv/ready" ] && works
}

# What works is not removed: pip replaces a package when all of them have been had.
fill_venv() {
    works || python3 -m venv --clear "$venv" || return
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 \
        --timeout 15 -r "$folder/requirements.txt" && works && touch "$venv/ready"
}

mkdir -p "$1"
if ! is_ready; then
    echo "bench: installing $(tr '\n' ' ' < "$folder/requirements.txt")into $venv" >&2
    fill_venv > "$log" 2>&1 ||
        echo "bench: $venv is not all that bench/requirements.txt asks for: $(tail -n 1 "$log")" >&2
fi
if works; then
    echo "$venv/bin/python"
else
    "$folder/../tools/find_python.sh"
fi
