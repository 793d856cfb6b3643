#!/bin/bash
# run_tests.sh BUILD SUITE...: runs the suites, prints a line for each and, last, the total of their
# single checks as `N passed, N failed, N skipped`. Exits 1 if anything failed.
#
# A suite is a Check program, a *_test.py (unittest) or a *_test.sh that ends with a line of that
# form. Each runs in the repository root under a time-out (TEST_TIMEOUT seconds, 1800), JOBS (2) at a
# time, with a private TMPDIR and cache; QUERN_BUILD is the build directory's absolute path. What it
# prints is shown when it fails. A suite that dies, times out or counts nothing is one failure.
set -u
build=$(realpath "$1")
shift
cd "$(dirname "$0")/.." || exit 1
# What a user may have set is not under test.
unset QUERN_MODE QUERN_LOG QUERN_TEMPLATES QUERN_CHECK QUERN_BASE
export OMP_WAIT_POLICY=passive # a thread that waits would spin on the core of the suite beside it

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# Sets passed, failed, skipped from what a suite printed.
count() { # log
    local line total skips
    passed=0 failed=0 skipped=0
    while read -r line; do
        if [[ $line =~ ^[0-9]+%:\ Checks:\ ([0-9]+),\ Failures:\ ([0-9]+),\ Errors:\ ([0-9]+) ]]
        then
            failed=$((failed + BASH_REMATCH[2] + BASH_REMATCH[3]))
            passed=$((passed + BASH_REMATCH[1] - BASH_REMATCH[2] - BASH_REMATCH[3]))
        elif [[ $line =~ ^Ran\ ([0-9]+)\ tests?\ in ]]; then
            total=${BASH_REMATCH[1]}
            passed=$((passed + total))
        elif [[ $line =~ ^(OK|FAILED)(\ \(.*\))?$ && -n ${total-} ]]; then
            skips=$(sum_of skipped "$line")
            total=$(($(sum_of failures "$line") + $(sum_of errors "$line") +
                $(sum_of 'unexpected successes' "$line")))
            passed=$((passed - total - skips)) failed=$((failed + total))
            skipped=$((skipped + skips))
        elif [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)?$ ]]; then
            passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
            skipped=$((skipped + ${BASH_REMATCH[4]:-0}))
        fi
    done < "$1"
}

sum_of() { # word line: 2 for `failures` in "FAILED (failures=2, errors=1)"
    [[ $2 =~ [\ \(]$1=([0-9]+) ]] && echo "${BASH_REMATCH[1]}" || echo 0
}

run_suite() { # number suite
    local suite=$2 log=$results/$1.log command status start seconds note=
    local private=$results/$1.tmp
    command=("$suite")
    [[ $suite == *.py ]] && command=("$python" "$suite")
    mkdir "$private"
    start=$(date +%s%3N)
    TMPDIR=$private QUERN_CACHE=$private/quern.db QUERN_BUILD=$build CK_TIMEOUT_MULTIPLIER=4 \
        timeout --kill-after=10 "${TEST_TIMEOUT:-1800}" "${command[@]}" > "$log" 2>&1 < /dev/null
    status=$?
    seconds=$(awk -v ms=$(($(date +%s%3N) - start)) 'BEGIN { printf "%.1f", ms / 1000 }')
    rm -rf "$private"

    count "$log"
    if ((status == 124 || status == 137)); then
        note=" (timed out after ${TEST_TIMEOUT:-1800} s)"
    elif ((status != 0)); then
        note=" (exit $status)"
    elif ((passed + failed + skipped == 0)); then
        note=" (counted nothing)"
    fi
    [[ -n $note && $failed == 0 ]] && failed=1
    echo "$passed $failed $skipped" > "$results/$1.count"
    {
        ((failed == 0)) || sed 's/^/    /' "$log"
        printf '%-4s %7ss  %4d passed %3d failed %3d skipped  %s%s\n' \
            "$( ((failed)) && echo FAIL || echo ok)" "$seconds" "$passed" "$failed" "$skipped" \
            "$suite" "$note"
    } > "$results/$1.said"
    cat "$results/$1.said" # at once, so that two suites' lines do not mix
}

python=$(tools/find_python.sh)
number=0
for suite in "$@"; do
    while (($(jobs -rp | wc -l) >= ${JOBS:-2})); do
        wait -n
    done
    number=$((number + 1))
    run_suite "$number" "$suite" &
done
wait

if ((number == 0)); then
    echo "run_tests: no suites" >&2
    exit 1
fi
awk '{ passed += $1; failed += $2; skipped += $3 }
     END {
         printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
         exit failed != 0
     }' "$results"/*.count
