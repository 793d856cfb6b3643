#!/bin/sh
# Prints the first Python 3 that has NumPy, else "python3" and exits 1: /usr/bin/python3 is the one
# that Debian's python3-numpy serves, whatever else comes first on PATH.
for python in python3 /usr/bin/python3; do
    if "$python" -c 'import numpy' 2>/dev/null; then
        echo "$python"
        exit
    fi
done
echo python3
exit 1
