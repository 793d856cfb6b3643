#!/bin/sh
# Prints the program that opens include/quern.h.
sed -n '/^ \* [A-Z]/q; s/^ \*     //p' "$(dirname "$0")/../include/quern.h"
