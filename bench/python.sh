#!/bin/sh
# python.sh BUILD: prints the Python that runs the CPU's benchmark: that of BUILD/bench-venv, which
# is made and filled from bench/requirements.txt if it is not there. Where that cannot be done (no
# network, no venv module), one line on stderr says what is missing, and it is the first Python that
# has NumPy.
set -u
folder=$(cd "$(dirname "$0")" && pwd)
venv=$1/bench-venv
log=$1/bench-venv.log

make_venv() {
    rm -rf "$venv"
    python3 -m venv "$venv" &&
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 \
            --timeout 15 -r "$folder/requirements.txt" && touch "$venv/ready"
}

is_ready() {
    [ -e "$venv/ready" ] && [ ! "$folder/requirements.txt" -nt "$venv/ready" ]
}

mkdir -p "$1"
is_ready ||
    echo "bench: installing $(tr '\n' ' ' < "$folder/requirements.txt")into $venv" >&2
if is_ready || make_venv > "$log" 2>&1; then
    echo "$venv/bin/python"
    exit
fi
echo "bench: no $venv ($(tail -n 1 "$log")): without its NumPy, MKL and matplotlib" >&2
"$folder/../tools/find_python.sh"
