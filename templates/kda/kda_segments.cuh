/* Segments: where heads are few and a sequence is long, its chunks are split into runs of SEGMENT
 * chunks that are walked side by side. A run is an affine map of the state that it begins with,
 *
 *     S_end = map S_begin + end            map: k x k, end: what S_end is from S_begin = 0
 *
 * so that three kernels take the place of the serial one, and the longest chain is two segments and
 * a product of k x k for each:
 *
 *     kda_prefill_ends     each segment but a sequence's last: its end and its map       (parallel)
 *     kda_prefill_join     end[i] += map[i] end[i - 1], in order                         (a chain)
 *     kda_prefill_state    each segment, from end[i - 1]: o, and the state after         (parallel)
 *
 * The first segment begins with the state before the call, so that its end needs no map. In the
 * workspace a segment of a head has a slot: k v f32 of its end, then k k of its map, rounded and
 * the rounded rest. Sequence i has its slots from first / SEGMENT + i on, one for each segment,
 * which never reach those of the next, since ceil(c / s) <= floor((f + c) / s) - floor(f / s) + 1.
 * The last segment's end is not needed; in its place is the state before the call, which in a pool
 * the last segment may overwrite before the first has read it. SEGMENT = 0: nothing is split. */
#ifndef KDA_SEGMENTS_CUH
#define KDA_SEGMENTS_CUH
#include "kda_chunks.cuh"
#include "kda_tile.cuh"

#define K_TILES (KEY_WIDTH / 16)
#define END_BYTES KDA_END_BYTES(KEY_WIDTH, VALUE_WIDTH)
#define SEGMENT_BYTES KDA_SEGMENT_BYTES(KEY_WIDTH, VALUE_WIDTH)

struct segment {
    int64_t index;         /* of its sequence */
    int64_t slot;          /* in the workspace */
    int64_t number, count; /* which one of the sequence, of how many; number >= count: none */
    struct sequence run;   /* its tokens and chunks */
};

#if SEGMENT
__device__ __forceinline__ int64_t first_slot(const struct kda_prefill_cuda_args *args,
                                              int64_t index)
{
    int64_t chunks = VARLEN ? 0 : (args->t / args->n + CHUNK - 1) / CHUNK;
    return (VARLEN ? args->first[index] : index * chunks) / SEGMENT + index;
}

__device__ __forceinline__ struct segment segment_of(const struct kda_prefill_cuda_args *args,
                                                     int64_t slot)
{
    struct segment segment;
    int64_t low = 0, high = args->n;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (first_slot(args, middle) <= slot)
            low = middle;
        else
            high = middle;
    }
    struct sequence *run = &segment.run;
    *run = sequence_of(args, low);
    segment.index = low;
    segment.slot = slot;
    segment.number = slot - first_slot(args, low);
    segment.count = max((int64_t)1, (run->chunks + SEGMENT - 1) / SEGMENT);
    run->first += segment.number * SEGMENT;
    run->chunks = max((int64_t)0, min((int64_t)SEGMENT, run->chunks - segment.number * SEGMENT));
    run->begin += segment.number * SEGMENT * CHUNK;
    run->end = min(run->end, run->begin + run->chunks * CHUNK);
    return segment;
}

/* ---- Ends and maps in the workspace -------------------------------------------------------- */

__device__ __forceinline__ char *end_of(const struct kda_prefill_cuda_args *args, int64_t slot,
                                        int head)
{
    return args->segments + (slot * args->hv + head) * (int64_t)SEGMENT_BYTES;
}

/* Tile `tile` of the state's 16 columns `columns`, as a warp has it. */
__device__ __forceinline__ struct sums load_end(const char *end, int columns, int tile)
{
    struct sums sums;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float4 four = *(const float4 *)(end + ((columns * K_TILES + tile) * 2 + i) * 512 +
                                        threadIdx.x % 32 * 16);
        sums.d[i][0] = four.x, sums.d[i][1] = four.y, sums.d[i][2] = four.z, sums.d[i][3] = four.w;
    }
    return sums;
}

__device__ __forceinline__ void store_end(char *end, int columns, int tile, const struct sums &sums)
{
#pragma unroll
    for (int i = 0; i < 2; i++)
        *(float4 *)(end + ((columns * K_TILES + tile) * 2 + i) * 512 + threadIdx.x % 32 * 16) =
            make_float4(sums.d[i][0], sums.d[i][1], sums.d[i][2], sums.d[i][3]);
}

/* Place of the map's tile: rows `to`, columns `from`. */
__device__ __forceinline__ int map_tile(int to, int from)
{
    return 2 * (to * K_TILES + from);
}
#else
__device__ __forceinline__ struct segment segment_of(const struct kda_prefill_cuda_args *args,
                                                     int64_t slot)
{
    struct segment segment;
    segment.index = segment.slot = slot;
    segment.number = 0;
    segment.count = 1;
    segment.run = sequence_of(args, slot);
    return segment;
}
#endif
#endif
