# shellcheck shell=bash disable=SC2034
# What the *_test.sh share: sourced by them. Each check is one claim; finish prints the totals in
# the form that tools/run_tests.sh reads.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# A make of their own: not part of the make that may be running them.
unset MAKEFLAGS MAKELEVEL MFLAGS
build=${QUERN_BUILD:-$PWD/build}
build_name=$(realpath --relative-to=. "$build") # the B that a make here was given
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
checks_passed=0 checks_failed=0 checks_skipped=0

# check CLAIM COMMAND...: passes when the command does; its output is shown when it does not.
check() {
    claim=$1
    shift
    if "$@" > "$scratch/check.log" 2>&1; then
        checks_passed=$((checks_passed + 1))
    else
        checks_failed=$((checks_failed + 1))
        echo "FAILED: $claim"
        sed 's/^/    /' "$scratch/check.log"
    fi
}

skip() { # why
    checks_skipped=$((checks_skipped + 1))
    echo "skipped: $1"
}

refuses() { # command...: passes when the command fails
    ! "$@"
}

finish() {
    echo "$checks_passed passed, $checks_failed failed, $checks_skipped skipped"
    exit $((checks_failed != 0))
}
