/* kda_prefill_state: the serial part. A block has BV columns of a value head's state and takes the
 * chunks of a sequence, or of a segment of it (kda_segments.cuh), in order.
 *
 * The same walk without o, its queries and outputs, tells where a segment's state ends
 * (kda_join.cuh): `is_end`. There a block may have columns of the segment's map instead, which
 * begins as 1 and has no u. */
#ifndef KDA_STATE_CUH
#define KDA_STATE_CUH
#if WGMMA
#include "kda_walk_wgmma.cuh"
#else
#include "kda_walk_mma.cuh"
#endif

/* Block: a slab of a value head of a segment, slabs first. */
extern "C" __global__ void __launch_bounds__(STATE_THREADS)
    kda_prefill_state(const __grid_constant__ struct kda_prefill_cuda_args args)
{
    extern __shared__ __align__(128) char shared[];
    const int slabs = VALUE_WIDTH / BV;
    int64_t unit = blockIdx.x / slabs;
    struct segment segment = segment_of(&args, unit / args.hv);
    if (segment.number >= segment.count)
        return;
    struct walk walk = walk_of(&args, &segment.run, unit % args.hv, blockIdx.x % slabs, shared);
    int64_t place = place_of(&args, segment.index);
    struct sums state[OWN_TILES];
    if (copies_for_others<false>(&walk))
        return;
    if (segment.count == 1)
        load_before(&walk, place, state);
    else
        load_begin(&walk, &segment, state);
    walk.offset = segment.number * SEGMENT * CHUNK;
    int64_t row = (segment.run.begin - walk.offset) / 64 + segment.index + (walk.offset + 63) / 64;
    walk.chunk_state =
        (char *)element(DTYPE, args.chunk_states, row * args.chunks_n + walk.head * args.chunks_h);
    walk_chunks<false>(&walk, &segment.run, state);
    if (HAS_AFTER && place >= 0 && segment.number == segment.count - 1)
        store_state<STATE_DTYPE, ALIGN_AFTER>(
            &walk,
            (char *)element(STATE_DTYPE, args.after,
                            place * args.after_n + walk.head * args.after_h),
            args.after_row, state);
}
#endif
