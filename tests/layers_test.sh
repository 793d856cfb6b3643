#!/bin/bash
# The tree keeps to its layers, and the checker refuses the edges that it must.
. "$(dirname "$0")/checks.sh"

check "the tree has no forbidden include" python3 tools/layers.py

# A tree of empty files with one include.
edge() { # includer text
    rm -rf "$scratch/tree"
    mkdir -p "$scratch/tree"/{tools,include/quern,jit/{cpu,cuda},cache} \
        "$scratch/tree"/templates/{gemm,copy,common}
    cp tools/layers.py "$scratch/tree/tools/"
    (
        cd "$scratch/tree" || exit 1
        touch include/quern.h include/quern/family.h jit/plan.h jit/cpu/cpu.h cache/store.h \
            templates/gemm/gemm.def templates/gemm/gemm_args.h templates/copy/copy_args.h \
            templates/common/types.h
        echo "#include $2" > "$1"
    )
    python3 "$scratch/tree/tools/layers.py"
}

while read -r verdict includer text; do
    if [ "$verdict" = allow ]; then
        check "$includer may include $text" edge "$includer" "$text"
    else
        check "$includer must not include $text" refuses edge "$includer" "$text"
    fi
done << 'END'
allow  jit/plan.c                <quern/family.h>
allow  jit/plan.c                "cache/store.h"
allow  jit/cpu/load.c            "jit/plan.h"
allow  cache/store.c             <sqlite3.h>
allow  templates/gemm/gemm.c     <quern/family.h>
allow  templates/gemm/gemm_cpu.c "common/types.h"
allow  templates/gemm/gemm_cpu.c "gemm/gemm_args.h"
allow  tools/quern.c             <quern/gemm.h>
refuse jit/plan.c                <quern/gemm.h>
refuse jit/plan.c                "jit/cpu/cpu.h"
refuse jit/cuda/load.c           "jit/cpu/cpu.h"
refuse jit/plan.c                <sqlite3.h>
refuse jit/plan.c                "templates/gemm/gemm_args.h"
refuse cache/store.c             <quern.h>
refuse cache/store.c             "jit/plan.h"
refuse templates/gemm/gemm.c     "jit/plan.h"
refuse templates/gemm/gemm.c     "copy/copy_args.h"
refuse templates/gemm/gemm_cpu.c <stdint.h>
refuse tools/quern.c             "jit/plan.h"
refuse tools/quern.c             <cuda.h>
END
finish
