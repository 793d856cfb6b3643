#!/bin/bash
# compute-sanitizer on a case of each CUDA variant: no access outside its memory, no race in shared
# memory. gemm_sm90 has one of each way in which its blocks work together.
. "$(dirname "$0")/../checks.sh"
quern=$build/quern
doctor=$("$quern" doctor)
if ! command -v compute-sanitizer > /dev/null; then
    skip "no compute-sanitizer"
    finish
fi

clean() { # tool, what is run...
    local tool=$1 summary='(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)'
    shift
    compute-sanitizer --tool "$tool" "$quern" run "$@" --check --iters 1 --device cuda \
        --cache "$scratch/quern.db" > "$scratch/log" 2>&1
    local status=$?
    cat "$scratch/log"
    [ $status = 0 ] && grep -qE "$summary" "$scratch/log"
}

clean_both() { # variant, what is run...
    local variant=$1
    shift
    for tool in memcheck racecheck; do
        check "$tool: $variant: $*" clean $tool "$@" --variant "$variant"
    done
}

clean_both copy_cuda copy n=12345 dtype=f32 inplace=1 alpha=-1.25
clean_both gemm_ffma gemm m=67 n=131 k=257
clean_both gemm_sm80 gemm m=67 n=131 k=257 a=bf16 b=bf16 d=bf16 bias=bf16
clean_both gemm_sm80 gemm m=256 n=384 k=512 math=tf32
# The pool in place; sequences of no, one and several chunks; records loaded ahead, or not.
prefill="kda_prefill t=300 n=6 h=1 hv=2 k=64 v=64 varlen=1 pool=1 capacity=9 l2norm=1"
for config in chunk=64,wgmma=0,bv=16,split=4,stages=2,segment=0 \
    chunk=32,wgmma=0,bv=64,split=1,stages=1,segment=2; do
    clean_both kda_prefill_sm80 $prefill gate=softplus dt_bias=1 --config "$config"
done
clean_both kda_prefill_sm80 $prefill layout=vk state=bf16 gate=bounded lower_bound=-5
clean_both kda_prefill_sm80 kda_prefill t=130 h=1 hv=1 initial=1 decay=scalar dtype=f16
clean_both kda_decode_cuda kda_decode n=7 h=1 hv=2 k=64 v=64 pool=1 capacity=9 gate=softplus
clean_both kda_decode_cuda kda_decode n=5 steps=4 h=1 hv=1 k=64 v=64 layout=vk initial=1 \
    save=states tree=1
clean_both causal_conv1d_cuda causal_conv1d t=300 n=6 d=72 varlen=1 pool=1 capacity=9
clean_both causal_conv1d_update_cuda causal_conv1d_update n=7 d=72 steps=3 capacity=9
clean_both kda_gate_cumsum_cuda kda_gate_cumsum t=300 n=6 hv=2 k=64 varlen=1 gate=softplus
step="kda_step h=1 hv=2 k=64 v=64 capacity=9 gate=softplus"
clean_both kda_step_cuda $step n=7
clean_both kda_step_cuda $step n=1 layout=vk
if ! grep -q sm_90a <<< "$doctor"; then
    skip "no sm_90a here: gemm_sm90, kda_prefill by wgmma"
    finish
fi
for config in chunk=64,wgmma=1,bv=64,split=1,stages=2,segment=0 \
    chunk=32,wgmma=1,bv=64,split=1,stages=3,segment=2; do
    clean_both kda_prefill_sm80 $prefill gate=softplus dt_bias=1 --config "$config"
done
clean_both gemm_sm90 gemm m=300 n=520 k=200 a=bf16 b=bf16 d=bf16 accumulate=1 bias=f32
clean_both gemm_sm90 gemm m=16 n=768 k=1024 a=bf16 b=bf16 d=f32
for config in \
    bm=128,bn=256,stages=4,consumers=2,pingpong=0,shared_p=1,shared_q=2,split_k=1,swap=0,blocks=1 \
    bm=128,bn=128,stages=6,consumers=2,pingpong=1,shared_p=2,shared_q=1,split_k=1,swap=0,blocks=1 \
    bm=192,bn=96,stages=5,consumers=3,pingpong=0,shared_p=1,shared_q=1,split_k=4,swap=1,blocks=1
do
    clean_both gemm_sm90 gemm m=300 n=520 k=1000 a=bf16 b=bf16 d=bf16 --config "$config"
done
finish
