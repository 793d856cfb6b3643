#!/bin/bash
# Every example runs to its end.
. "$(dirname "$0")/checks.sh"

for source in examples/*.c; do
    example=$build/${source%.c}
    check "$source" "$example"
done
finish
