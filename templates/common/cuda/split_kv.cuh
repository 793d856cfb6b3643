/* Attention whose sequences are cut into pieces for as many blocks as there are: who computes what,
 * decided on the device from lengths that only it knows, and the sum of the pieces. sm_80 and up.
 *
 * A unit is what one block would compute of one sequence: ROWS rows of o (the query heads of a
 * cache head, query tokens times heads). All sequences have as many units. A unit has as many tiles
 * as its sequence; the tiles of all units, sequence by sequence, stand in one line, which is cut
 * into equal shares, one for each block:
 *
 *     sequence 0         sequence 1                       sequence 2
 *     unit 0   unit 1    unit 0         unit 1            unit 0
 *     |ttttttt|ttttttt|  |tttttttttttt|tttttttttttttt|    |ttt ...
 *     |  block 0    |  block 1    |  block 2    |  block 3  ...
 *                   ^ a cut
 *
 * so a block has the end of one unit, some whole ones and the beginning of another. What is whole
 * is stored as it is; of a piece the partial state goes to a slot of the workspace,
 *
 *     m[row], l[row]    the largest score, times log2 e, and the sum of exp2(score - m)
 *     o[row, column]    the sum of exp2(score - m) v
 *
 * slot 2 j for the piece that block j begins with, 2 j + 1 for the one that it ends with. Cuts are
 * few, at most one a block: the combine has a block for each, which learns the unit from
 * space.cuts, and does nothing unless it is the unit's first cut. The kernel:
 *
 *     auto tiles = [&](int sequence) { ... };                  tiles of a unit of this sequence
 *     total = split_sum(tiles, 0, sequences) * units;
 *     share = split_share(total, gridDim.x, least);
 *     x = blockIdx.x * share;
 *     unit = split_find(tiles, sequences, units, x);
 *     split_record(space, unit, share);                        one thread
 *     for (end = min(x + share, total); x < end; x = unit.first + unit.tiles, split_next(...)) {
 *         tiles x - unit.first up to min(end - unit.first, unit.tiles) of unit
 *         is it all of unit.tiles? store it : to slot split_slot(x, share)
 *     }
 *
 * and the combine, a grid of as many blocks as the kernel had, times the rows of a unit:
 *
 *     if (split_pieces(space, blockIdx.x, &unit, &pieces))
 *         split_combine<THREADS, DV>(space, pieces.count, at, write);
 *
 * where at(i) is pieces(i) * ROWS + row.
 *
 * Kernels that give every piece a slot of its own (fixed pieces, for bits that depend on nothing
 * else) use shares of pieces instead of tiles, and split_record_before(), from which a combine
 * block for each unit reads where its pieces are. All of this is arithmetic that each warp does by
 * itself: no barrier, and nothing that the host would have to know. */
#ifndef QN_CUDA_SPLIT_KV_CUH
#define QN_CUDA_SPLIT_KV_CUH
#include "common/cuda/split_kv_args.h"

#define SPLIT_NONE __int_as_float(0xff800000) /* the maximum of no scores */

struct split_kv_unit {
    int64_t first; /* its first tile, in the line of all */
    int sequence, unit, tiles;
};

/* By a whole warp: the sum of tiles(i) of sequences [from, to). */
template <class Tiles> __device__ __forceinline__ int64_t split_sum(Tiles tiles, int from, int to)
{
    int64_t sum = 0;
#pragma unroll 4
    for (int i = from + threadIdx.x % 32; i < to; i += 32)
        sum += tiles(i);
#pragma unroll
    for (int apart = 16; apart; apart /= 2)
        sum += __shfl_xor_sync(~0u, sum, apart);
    return sum;
}

/* The sum over the lanes up to this one. */
__device__ __forceinline__ int64_t split_scan(int64_t value)
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
        int64_t below = __shfl_up_sync(~0u, value, apart);
        value += lane >= apart ? below : 0;
    }
    return value;
}

/* Of numbers that are not negative; most fit 32 bits, which takes a fraction of the time. */
__device__ __forceinline__ int64_t split_divide(int64_t a, int64_t b)
{
    return (a | b) >> 32 ? a / b : (int64_t)((uint32_t)a / (uint32_t)b);
}

/* Tiles for each of `blocks`, at least `least`: fewer would cost more to combine than they save. */
__device__ __forceinline__ int64_t split_share(int64_t total, int blocks, int least)
{
    int64_t share = split_divide(total + blocks - 1, blocks);
    return share > least ? share : least;
}

/* By a whole warp: the unit that holds tile x; past the last tile one of no tiles. */
template <class Tiles>
__device__ __forceinline__ struct split_kv_unit split_find(Tiles tiles, int sequences, int units,
                                                           int64_t x)
{
    int64_t before = 0;
    for (int i = 0; i < sequences; i += 32) {
        int sequence = i + threadIdx.x % 32;
        int count = sequence < sequences ? tiles(sequence) : 0;
        int64_t up_to = before + split_scan((int64_t)count * units);
        uint32_t after = __ballot_sync(~0u, up_to > x);
        before = __shfl_sync(~0u, up_to, 31);
        if (!after)
            continue;
        int lane = __ffs(after) - 1;
        count = __shfl_sync(~0u, count, lane);
        int64_t first = __shfl_sync(~0u, up_to, lane) - (int64_t)count * units;
        int unit = (int)split_divide(x - first, count);
        return { first + (int64_t)unit * count, i + lane, unit, count };
    }
    return { before, sequences, 0, 0 };
}

/* The unit after it. */
template <class Tiles>
__device__ __forceinline__ void split_next(struct split_kv_unit *unit, Tiles tiles, int sequences,
                                           int units)
{
    unit->first += unit->tiles;
    if (++unit->unit < units)
        return;
    unit->unit = 0;
    unit->tiles = 0;
    while (!unit->tiles && ++unit->sequence < sequences)
        unit->tiles = tiles(unit->sequence);
}

/* The slot of the piece that begins with tile x. */
__device__ __forceinline__ int64_t split_slot(int64_t x, int64_t share)
{
    int64_t block = split_divide(x, share);
    return 2 * block + (x != block * share);
}

__device__ __forceinline__ void split_record(const struct split_kv_space &space,
                                             const struct split_kv_unit &unit, int64_t share,
                                             uint32_t block = blockIdx.x)
{
    space.cuts[block] = { share, unit.first, unit.sequence, unit.unit, unit.tiles, 0 };
}

/* By the first warps of all blocks: space.before. */
template <class Tiles>
__device__ __forceinline__ void split_record_before(const struct split_kv_space &space, Tiles tiles,
                                                    int sequences)
{
    for (int64_t i = (int64_t)blockIdx.x * 32; i <= sequences; i += (int64_t)gridDim.x * 32) {
        int sequence = (int)i + threadIdx.x % 32;
        int count = sequence < sequences ? tiles(sequence) : 0;
        int64_t before = split_sum(tiles, 0, (int)i) + split_scan(count) - count;
        if (sequence <= sequences)
            space.before[sequence] = before;
    }
}

/* The slots of a unit's pieces. */
struct split_kv_pieces {
    int64_t first;
    int count;
    __device__ __forceinline__ int64_t operator()(int piece) const
    {
        return piece ? first - first % 2 + 2 * piece : first;
    }
};

/* For the block of the combine that has cut `block`: whether the cut is in a unit, and the first
 * one there; which unit that is, and its pieces. */
__device__ __forceinline__ bool split_pieces(const struct split_kv_space &space, int64_t block,
                                             struct split_kv_unit *unit,
                                             struct split_kv_pieces *pieces)
{
    const struct split_kv_cut cut = space.cuts[block];
    if (!cut.tiles || cut.first == block * cut.share || cut.first < (block - 1) * cut.share)
        return false;
    int64_t last = split_divide(cut.first + cut.tiles - 1, cut.share);
    *unit = { cut.first, cut.sequence, cut.unit, cut.tiles };
    *pieces = { split_slot(cut.first, cut.share),
                (int)(last - split_divide(cut.first, cut.share)) + 1 };
    return true;
}

/* ---- Partial states ------------------------------------------------------------------------ */

__device__ __forceinline__ float split_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* What sums below maximum m become below `most`, which is not smaller. */
__device__ __forceinline__ float split_factor(float m, float most)
{
    return split_exp2(m - (most == SPLIT_NONE ? 0.0f : most));
}

/* A row's state, and four columns of its o. */
struct split_kv_state {
    float m, l, o[4];
};

__device__ __forceinline__ void split_add(struct split_kv_state *to,
                                          const struct split_kv_state &more)
{
    float m = fmaxf(to->m, more.m);
    float keep = split_factor(to->m, m), take = split_factor(more.m, m);
    to->m = m;
    to->l = to->l * keep + more.l * take;
#pragma unroll
    for (int i = 0; i < 4; i++)
        to->o[i] = to->o[i] * keep + more.o[i] * take;
}

/* The sum of several, all scaled at once: with no chain of exponentials. */
template <int count>
__device__ __forceinline__ struct split_kv_state
split_add_all(const struct split_kv_state (&states)[count])
{
    struct split_kv_state sum = { states[0].m, 0.0f, {} };
#pragma unroll
    for (int i = 1; i < count; i++)
        sum.m = fmaxf(sum.m, states[i].m);
#pragma unroll
    for (int i = 0; i < count; i++) {
        float factor = split_factor(states[i].m, sum.m);
        sum.l += states[i].l * factor;
#pragma unroll
        for (int j = 0; j < 4; j++)
            sum.o[j] += states[i].o[j] * factor;
    }
    return sum;
}

/* By a block: one row, of which piece i stands at row at(i) of the states of all slots. dv / 4
 * threads have a piece each at a time, as many pieces as fit are under way; then theirs are added,
 * all in a fixed order. write(column, state) gets four columns from `column` on. May be called
 * again after it. */
template <int threads, int dv, class At, class Write>
__device__ __forceinline__ void split_combine(const struct split_kv_space &space, int pieces, At at,
                                              Write write)
{
    constexpr int lanes = dv / 4, teams = threads / lanes;
    static_assert(teams > 0, "a thread has four columns");
    __shared__ struct split_kv_state states[teams][lanes];
    int team = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    constexpr int batch = 4;
    struct split_kv_state some[1 + batch];
    some[0] = { SPLIT_NONE, 0.0f, {} };
#pragma unroll 1
    for (int piece = team; piece < (team < teams ? pieces : 0); piece += batch * teams) {
#pragma unroll
        for (int i = 0; i < batch; i++) {
            some[1 + i] = { SPLIT_NONE, 0.0f, {} };
            if (piece + i * teams >= pieces)
                continue;
            int64_t row = at(piece + i * teams);
            float2 sums = *(const float2 *)(space.sums + row * 2);
            float4 o = *(const float4 *)(space.o + row * dv + lane * 4);
            some[1 + i] = { sums.x, sums.y, { o.x, o.y, o.z, o.w } };
        }
        some[0] = split_add_all(some);
    }
    __syncthreads();
    if (team < teams)
        states[team][lane] = some[0];
    __syncthreads();
    if (team)
        return;
    for (int i = 1; i < (pieces < teams ? pieces : teams); i++)
        split_add(&some[0], states[i][lane]);
    write(lane * 4, some[0]);
}
#endif
