#!/bin/bash
# demo.sh BUILD: the whole of quern in about a minute, after `make demo` has built it. With an empty
# cache of its own it runs kernels on a real layer's shapes and on arrays from files, tunes, and
# does the runs again in new processes, which find everything in the cache: on the CPU, and on the
# GPU where there is one. Where there is none it compiles for GPUs that are not here. Stops at the
# first thing that is not as it says.
set -eu
cd "$(dirname "$0")/.."
build=$1

# What is shown: Llama-3 8B decoding one token (the feed-forward layer's two products) and reading
# 512 (attention's output projection); its attention on four GPUs (8 query heads, 2 of the cache)
# reading 512 tokens and decoding one of each of 16 requests of 1024 in pages; Kimi-Linear's on four
# GPUs (8 heads) reading 1024 tokens of four requests and decoding one of each of 16, both with
# states in a pool; Qwen3-30B's experts on four GPUs (192 of their 768 columns) decoding four tokens.
# A family adds its lines here; those in `tuned` are tuned between the two rounds.
runs='
gemm m=1 n=28672 k=4096 a=bf16 b=bf16 d=bf16
gemm m=1 n=4096 k=14336 a=bf16 b=bf16 d=bf16
gemm m=512 n=4096 k=4096 a=bf16 b=bf16 d=bf16
copy n=16777216 dtype=bf16
attention sq=512 hq=8 hkv=2 causal=1
attention_decode b=16 hq=8 hkv=2 pages=1024
kda_prefill t=1024 n=4 h=8 varlen=1 gate=softplus dt_bias=1 l2norm=1 layout=vk pool=1 capacity=64
kda_decode n=16 h=8 gate=softplus dt_bias=1 l2norm=1 layout=vk pool=1 capacity=64
moe tokens=4 experts=128 topk=8 hidden=2048 inter=192
'
in_place='kda_prefill t=1024 n=4 h=8 varlen=1 gate=softplus dt_bias=1 l2norm=1 layout=vk pool=1 capacity=64'
in_place_shape=64,8,128,128
tuned='
gemm m=1 n=4096 k=14336 a=bf16 b=bf16 d=bf16
gemm m=512 n=4096 k=4096 a=bf16 b=bf16 d=bf16
attention_decode b=16 hq=8 hkv=2 pages=1024
'
tune_seconds=4
elsewhere='gemm m=512 n=4096 k=4096 a=bf16 b=bf16 d=bf16'
elsewhere_targets=sm_80,sm_89,sm_90a,sm_100a,sm_120a

python=$(tools/find_python.sh)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cache=$build/demo.db
rm -f "$cache" "$cache"-*

quern() {
    "$build/quern" "$@" --cache "$cache" --json > "$work/out.json"
}

has() { # clang|nvrtc|gpu: as doctor found it
    "$python" - "$work/doctor.json" "$1" << 'END'
import json
import sys

facts = json.load(open(sys.argv[1]))
cuda = facts["cuda"]
found = {
    "clang": "clang_version" in facts["cpu"],
    "nvrtc": cuda.get("nvrtc_version", "").startswith("nvrtc"),
    "gpu": cuda.get("usable") == "yes",
}
sys.exit(0 if found[sys.argv[2]] else 1)
END
}

head_line() {
    printf '\n%s\n' "$1"
    printf '  %-16s  %-42s  %-11s  %-8s  %13s  %9s  %7s  %6s  %s\n' family spec 'config from' \
        artifact 'first call ms' 'time us' TFLOP/s GB/s check
}

row() { # where the artifact may come from, spec: the last run as a line of the table
    "$python" - "$work/out.json" "$@" << 'END'
import json
import sys

run = json.load(open(sys.argv[1]))
check = run["check"]
verdict = "ok %.1e" % check["rel_err"] if check["ok"] else "FAILED"
if run["artifact"] not in sys.argv[2].split("|"):
    sys.exit("demo: artifact=%s: must be %s" % (run["artifact"], sys.argv[2]))
tflops = "%.3f" % run["tflops"] if run["tflops"] else ""  # a copy has no arithmetic
spec = " ".join(sys.argv[4:])
if len(spec) > 42:  # a line of its own
    print("  %-16s  %s" % (sys.argv[3], spec))
    sys.argv[3] = spec = ""
print("  %-16s  %-42s  %-11s  %-8s  %13.1f  %9.1f  %7s  %6.1f  %s" % (
    sys.argv[3], spec, run["config_from"], run["artifact"],
    run["first_call_ms"], run["time_us"], tflops, run["gbps"], verdict))
END
}

run_all() { # title, where artifacts may come from
    head_line "$1"
    while read -r spec; do
        [ -n "$spec" ] || continue
        # shellcheck disable=SC2086 # a spec is words
        quern run $spec --check --device "$device"
        # shellcheck disable=SC2086
        row "$2" $spec
    done <<< "$runs"
}

# d = a b^T of two arrays that NumPy wrote, and NumPy's own product beside it.
run_from_files() {
    from_file='gemm m=301 n=517 k=1033'
    "$python" - "$work" << 'END'
import sys
import numpy

draw = numpy.random.default_rng()
for name, shape in (("a", (301, 1033)), ("b", (517, 1033))):
    numpy.save(f"{sys.argv[1]}/{name}.npy", draw.standard_normal(shape, dtype=numpy.float32))
END
    head_line 'Arrays from files.'
    # shellcheck disable=SC2086 # a spec is words
    quern run $from_file --device "$device" --check \
        --in a="$work/a.npy" --in b="$work/b.npy" --out d="$work/d.npy"
    # shellcheck disable=SC2086
    row compiled $from_file
    "$python" - "$work" << 'END'
import sys
import numpy

a, b, d = (numpy.load(f"{sys.argv[1]}/{name}.npy") for name in "abd")
expected = a.astype(float) @ b.astype(float).T
error = numpy.linalg.norm(d - expected) / numpy.linalg.norm(expected)
print("  d.npy against NumPy's product: relative error %.1e" % error)
sys.exit(0 if error < 1e-5 else 1)
END
}

tune_all() {
    printf '\nTuning, %s s each.\n' "$tune_seconds"
    while read -r spec; do
        [ -n "$spec" ] || continue
        # shellcheck disable=SC2086 # a spec is words
        quern tune $spec --budget "$tune_seconds" --device "$device"
        "$python" - "$work/out.json" "$spec" << 'END'
import json
import sys

tune = json.load(open(sys.argv[1]))
print("  %s\n    %d candidates, %d failed; best %.1f us, heuristic %.1f us: %.2fx" % (
    sys.argv[2], tune["candidates"], tune["failed"], tune["best"]["time_us"],
    tune["heuristic"]["time_us"], tune["speedup"]))
END
    done <<< "$tuned"
}

# Tuning runs a call many times, and this one changes its arrays: a pool of states that NumPy wrote
# comes back bit for bit.
tune_in_place() {
    "$python" - "$work/pool.npy" "$in_place_shape" << 'END'
import sys
import numpy

shape = [int(extent) for extent in sys.argv[2].split(",")]
numpy.save(sys.argv[1], numpy.random.default_rng().standard_normal(shape, dtype=numpy.float32))
END
    # shellcheck disable=SC2086 # a spec is words
    quern tune $in_place --budget "$tune_seconds" --device "$device" \
        --in states="$work/pool.npy" --out states="$work/after.npy"
    "$python" - "$work" "$in_place" << 'END'
import json
import sys

tune = json.load(open(sys.argv[1] + "/out.json"))
pools = [open(f"{sys.argv[1]}/{name}.npy", "rb").read() for name in ("pool", "after")]
is_same = pools[0] == pools[1]
print("  %s\n    %d candidates, %d failed; best %.1f us, heuristic %.1f us: %.2fx; the pool %s" % (
    sys.argv[2], tune["candidates"], tune["failed"], tune["best"]["time_us"],
    tune["heuristic"]["time_us"], tune["speedup"],
    "of %.0f MB is as it was" % (len(pools[0]) / 1e6) if is_same else "HAS CHANGED"))
sys.exit(0 if is_same else 1)
END
}

demonstrate() { # device
    device=$1
    printf '\n==== --device %s\n' "$device"
    run_all 'An empty cache: what it lacks is compiled. Every output is checked.' 'compiled|disk'
    run_from_files
    tune_all
    tune_in_place
    run_all 'The same in new processes: nothing is compiled, tuned configs are used.' disk
}

build_elsewhere() {
    printf '\nFor GPUs that are not here: %s\n' "$elsewhere"
    # shellcheck disable=SC2086 # a spec is words
    quern build $elsewhere --target "$elsewhere_targets" --device cpu
    "$python" - "$work/out.json" "$elsewhere_targets" << 'END'
import json
import sys

builds = json.load(open(sys.argv[1]))["builds"]
for build in builds:
    steps = build["steps"]
    print("  %-8s  %-10s  %-8s  %6.0f ms  %s registers, %s bytes spilled" % (
        build["target"], build["variant"], build["artifact"],
        sum(step["compile_ms"] for step in steps), max(step["registers"] for step in steps),
        sum(step["spills"] for step in steps)))
sys.exit(0 if len(builds) == len(sys.argv[2].split(",")) else 1)
END
}

"$build/quern" doctor --cache "$cache" | sed 's/^/  /'
quern doctor
mv "$work/out.json" "$work/doctor.json"
has clang || has gpu || {
    echo 'demo: neither a compiler for the CPU nor a GPU is here' >&2
    exit 1
}
if has clang; then
    demonstrate cpu
else
    printf '\nNo clang here: the CPU is skipped.\n'
fi
if ! has nvrtc; then
    printf '\nNo NVRTC here (quern doctor says how to get it): GPUs are skipped.\n'
elif has gpu; then
    demonstrate cuda
else
    printf '\nNo usable GPU here (quern doctor says why): kernels are compiled, not run.\n'
    build_elsewhere
fi
printf '\nThe cache, %s:\n' "$cache"
"$build/quern" cache stats --cache "$cache" | sed 's/^/  /'
printf '\nTimes vary with what else the machine does; the checks and where kernels come from do not.\n'
