#!/bin/bash
# Every example runs to its end; a plugin's family runs and is right.
. "$(dirname "$0")/checks.sh"

for source in examples/*.c; do
    name=$(basename "$source" .c)
    case $name in
    plugin_*)
        check "$source" "$build/quern" run "${name#plugin_}" n=1000 --check --device cpu \
            --plugin "$build/tests/$name.so"
        ;;
    *) check "$source" "$build/examples/$name" ;;
    esac
done
finish
