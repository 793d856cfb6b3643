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
# Packed sequences with a tail each; pages of a token and of several; pieces that are added up.
clean_both attention_prefill_sm80 attention_prefill b=5 sq=200 sk=230 hq=4 hkv=2 d=64 varlen=1 \
    causal=1 lse=1
clean_both attention_prefill_sm80 attention_prefill b=2 sq=70 hq=2 d=192 window=33 sinks=1
clean_both attention_extend_sm80 attention_extend b=3 t=90 hq=4 hkv=2 d=64 page=16 pages=30
clean_both attention_extend_sm80 attention_extend b=3 t=90 hq=2 hkv=2 d=128 page=1 pages=200 \
    kv_dtype=e4m3 kv_scale=head
decode="attention_decode b=5 hq=8 hkv=2 d=64 lse=1"
clean_both attention_decode_sm80 $decode page=16 pages=120
clean_both attention_decode_sm80 $decode page=1 pages=900 kv_dtype=e4m3 kv_scale=tensor
clean_both attention_decode_sm80 $decode page=16 pages=120 shared_pages=9 deterministic=1
clean_both attention_decode_sm80 attention_decode b=1 hq=8 hkv=2 page=16 pages=40
clean_both mla_decode_sm80 mla_decode b=3 hq=16 page=64 pages=20
clean_both mla_decode_sm80 mla_decode b=2 hq=20 sq=2 page=1 pages=500 kv_dtype=e4m3
clean_both set_kv_buffer_cuda set_kv_buffer t=30 hkv=2 d=64 page=16 pages=20 kv_dtype=e4m3 \
    kv_scale=head rope=neox max_position=50 hq=3
clean_both merge_states_cuda merge_state t=33 h=3 d=72
clean_both mla_concat_cuda concat_mla_k t=33 h=5
if ! grep -q sm_90a <<< "$doctor"; then
    skip "no sm_90a here: gemm_sm90, kda_prefill and mla_decode by wgmma"
    finish
fi
for config in chunk=64,wgmma=1,bv=64,split=1,stages=2,segment=0 \
    chunk=32,wgmma=1,bv=64,split=1,stages=3,segment=2; do
    clean_both kda_prefill_sm80 $prefill gate=softplus dt_bias=1 --config "$config"
done
clean_both attention_prefill_sm90 attention_prefill b=3 sq=300 sk=330 hq=4 hkv=2 varlen=1 \
    causal=1 lse=1
clean_both attention_prefill_sm90 attention_prefill b=2 sq=600 hq=2 window=300
clean_both mla_decode_sm90 mla_decode b=2 hq=64 sq=2 page=64 pages=9
clean_both mla_decode_sm90 mla_decode b=3 hq=128 page=1 pages=300 kv_dtype=e4m3
clean_both mla_decode_sm90 mla_decode b=2 hq=64 page=16 pages=9 topk=70
clean_both gemm_sm90 gemm m=300 n=520 k=200 a=bf16 b=bf16 d=bf16 accumulate=1 bias=f32
clean_both gemm_sm90 gemm m=16 n=768 k=1024 a=bf16 b=bf16 d=f32
# Experts without rows, ids that are out of range, tails.
clean_both moe_route_cuda topk_softmax tokens=13 experts=67 topk=5
clean_both moe_route_cuda moe_fused_gate tokens=9 experts=64 topk=6 groups=8 topk_group=3
clean_both moe_align_cuda moe_align_block_size tokens=33 topk=4 experts=24 block=16
clean_both moe_align_cuda moe_align_block_size tokens=3000 topk=8 experts=64 block=64
clean_both moe_combine_cuda moe_sum_reduce tokens=9 topk=3 hidden=83 weighted=1
grouped="grouped_gemm experts=7 m=67 n=40 k=136"
clean_both grouped_gemm_sm80 $grouped gather=1 source_rows=19
clean_both grouped_gemm_sm80 $grouped form=masked activation=silu
for config in swap=0,bn=32,bm=64 swap=1,bn=16,bm=128; do
    clean_both grouped_gemm_sm90 $grouped gather=1 source_rows=19 activation=silu \
        --config "$config"
done
layer="moe experts=16 topk=4 hidden=136 inter=72"
clean_both moe_stream $layer tokens=6
clean_both moe_stream $layer tokens=30 mapped=1 local=7 inplace=1
clean_both moe_grouped_sm80 $layer tokens=40 shared=1
clean_both moe_grouped_sm90 $layer tokens=40 mapped=1 local=7
clean_both silu_and_mul_cuda silu_and_mul tokens=7 width=256 quantize=e4m3 group=128
clean_both fused_qk_norm_rope_cuda fused_qk_norm_rope tokens=7 hq=4 hk=2 hv=2 d=64
for config in \
    bm=128,bn=256,stages=4,consumers=2,pingpong=0,shared_p=1,shared_q=2,split_k=1,swap=0,blocks=1 \
    bm=128,bn=128,stages=6,consumers=2,pingpong=1,shared_p=2,shared_q=1,split_k=1,swap=0,blocks=1 \
    bm=192,bn=96,stages=5,consumers=3,pingpong=0,shared_p=1,shared_q=1,split_k=4,swap=1,blocks=1
do
    clean_both gemm_sm90 gemm m=300 n=520 k=1000 a=bf16 b=bf16 d=bf16 --config "$config"
done
finish
