/* moe for few tokens: weights are streamed, each once for up to 8 slots of its expert.
 *
 *     route   one block: tiles of slots (moe_stream_table.cuh); IS_SELF: every block makes them
 *     up      work: a tile, 8 rows of gate and the 8 of up; h = act(gate) up
 *     down    work of a block: 16 columns of out, of all tiles; a warp takes tiles, or PARTS of
 *             them, in turns, and adds what it finds to sums of its own; they are added in order
 *
 * Products are m16n8k16: 16 rows of weights, 8 slots. A lane multiplies only what it has loaded:
 * with g = lane / 4 and t = lane % 4, of every 32 elements those at 8 t, of rows g and g + 8 and of
 * slot g. That is an order of k that both factors share. So a lane has a ring of its own in shared
 * memory, filled by cp.async, without barriers:
 *
 *     stage   row g: 8 of the first 32 elements, 8 of the next ...; row g + 8: the same; slot g
 *
 * It runs ahead over the end of one piece of work into the next. With IS_SELF down starts while up
 * runs, and fills its rings with weights before it waits for h. One token's x or h is not in the
 * rings: blocks copy it once (IS_ONE).
 *
 * Rows beyond the end, elements beyond a row's and slots that are none are zeros that are not read.
 * sm_80 and up. */
#include "common/cuda/activation.cuh"
#include "common/cuda/cp_async.cuh"
#include "common/cuda/launch.cuh"
#include "common/cuda/load.cuh"
#include "common/cuda/mma.cuh"

#ifndef EXPERTS
#define EXPERTS 256
#define TOPK 8
#define SHARED 0
#define LOCAL 256
#define HIDDEN 512
#define INTER 128
#define MAPPED 0
#define DTYPE DT_BF16
#endif
#ifndef IS_SELF
#define IS_SELF 0
#endif
#ifndef ACTIVATION
#define ACTIVATION ACTIVATION_SILU
#endif
#ifndef KERNEL
#define KERNEL MOE_STREAM_ALL
#endif
#ifndef MOST_TOKENS
#define MOST_TOKENS 64
#endif
#ifndef WARPS
#define WARPS 8
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef PARTS
#define PARTS 1 /* down: of a row of w2 */
#endif
#ifndef STEP
#define STEP 64 /* elements of a row that are loaded together */
#endif
#ifndef ACCESS
#define ACCESS 16 /* bytes to which the weights and, for up, x are aligned */
#endif

#include "moe/moe_stream_table.cuh"

#define PITCH MOE_STREAM_PITCH(INTER)
#define ROW_GROUPS ((INTER + 7) / 8)
#define COLUMN_TILES ((HIDDEN + 15) / 16)
#define STEPS_OF(width) (((width) + STEP - 1) / STEP)
#define PART_STEPS ((STEPS_OF(INTER) + PARTS - 1) / PARTS)

#define CHUNKS (STEP / 32)
#define TABLE_BYTES MOE_STREAM_TABLE(EXPERTS, SHARED, MOST_TOKENS *SLOTS)
#define IS_ONE (MOST_TOKENS == 1)
#define STAGE_BYTES MOE_STREAM_STAGE(STEP, IS_ONE)
#define VECTOR_BYTES(width) MOE_STREAM_VECTOR(width, STEP)

/* ---- A lane's ring ------------------------------------------------------------------------- */

/* 16 bytes of a row, of which `valid` exist. */
template <int access>
static __device__ __forceinline__ void copy_16(uint32_t to, const char *from, int valid)
{
    if constexpr (access == 16) {
        cp_async_16(to, from, max(min(valid, 16), 0));
    } else if constexpr (access >= 4) {
#pragma unroll
        for (int i = 0; i < 16; i += access) {
            int bytes = max(min(valid - i, access), 0);
            if constexpr (access == 8)
                cp_async_8(to + i, bytes ? from + i : from, bytes);
            else
                cp_async_4(to + i, bytes ? from + i : from, bytes);
        }
    } else {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t low = 4 * i < valid ? *(const uint16_t *)(from + 4 * i) : 0;
            uint32_t high = 4 * i + 2 < valid ? *(const uint16_t *)(from + 4 * i + 2) : 0;
            words[i] = low | high << 16;
        }
        store_shared_16(to, words);
    }
}

static __device__ __forceinline__ void read_16(uint32_t (&words)[4], uint32_t from)
{
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
}

/* What a lane reads next. A row that is none has an end before its beginning. */
struct streams {
    const char *low, *high, *slot;   /* at k = 0 of the lane's 8 */
    int low_end, high_end, slot_end; /* bytes from there to the end of the row */
};

/* `at` is the lane's place in the stage; `from` the bytes ahead of the step in a row. */
template <int access>
static __device__ __forceinline__ void load_weights(uint32_t at, const struct streams &s, int from)
{
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        copy_16<access>(at + i * 512, s.low + from + i * 64, s.low_end - from - i * 64);
        copy_16<access>(at + (CHUNKS + i) * 512, s.high + from + i * 64,
                        s.high_end - from - i * 64);
    }
}

template <int access>
static __device__ __forceinline__ void load_slot(uint32_t at, const struct streams &s, int from)
{
#pragma unroll
    for (int i = 0; i < (IS_ONE ? 0 : CHUNKS); i++)
        copy_16<access>(at + (2 * CHUNKS + i) * 512, s.slot + from + i * 64,
                        s.slot_end - from - i * 64);
}

static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1)
{
    if (DTYPE == DT_BF16)
        mma_bf16(d, a, b0, b1);
    else
        mma_f16(d, a, b0, b1);
}

/* With IS_ONE `vector` is where the lane's elements of the step begin, for the one slot. */
static __device__ __forceinline__ void multiply_stage(uint32_t at, uint32_t vector,
                                                      float (&sums)[2][4])
{
    const bool is_slot = !IS_ONE || threadIdx.x % 32 < 4;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        uint32_t low[4], high[4], slot[4] = {};
        read_16(low, at + i * 512);
        read_16(high, at + (CHUNKS + i) * 512);
        if (is_slot)
            read_16(slot, IS_ONE ? vector + i * 64 : at + (2 * CHUNKS + i) * 512);
        const uint32_t first[4] = { low[0], high[0], low[1], high[1] };
        const uint32_t second[4] = { low[2], high[2], low[3], high[3] };
        multiply(sums[0], first, slot[0], slot[1]);
        multiply(sums[1], second, slot[2], slot[3]);
    }
}

/* Bytes from a lane's first element to the end of a row; -1: no row. */
static __device__ __forceinline__ int bytes_of(bool is_row, int width)
{
    return is_row ? 2 * (width - (int)threadIdx.x % 4 * 8) : -1;
}

/* ---- Work: a sequence of pieces, each some steps ------------------------------------------- */

/* A piece of a warp's work and the step in it. What a lane reads and writes there is found when a
 * piece begins. */
struct work {
    int group; /* down: the 16 columns; up: unused */
    int piece; /* up: tile x rows; down: tile x part */
    int step;
    int slot; /* of this lane's g */
    struct streams streams;
};

struct up {
    static constexpr int access = ACCESS, slot_access = ACCESS;
    static constexpr bool is_early = false; /* ahead of what it multiplies */
    const struct moe_stream_args &args;
    const struct moe_tiles &tiles;
    int pieces;

    __device__ __forceinline__ int steps(const struct work &) const
    {
        return STEPS_OF(HIDDEN);
    }
    __device__ __forceinline__ bool is_done(const struct work &w) const
    {
        return w.piece >= pieces;
    }
    __device__ __forceinline__ void next(struct work &w) const
    {
        w.piece += gridDim.x * WARPS;
    }
    __device__ __forceinline__ void enter(struct work &w) const
    {
        const int g = threadIdx.x % 32 / 4, k = threadIdx.x % 4 * 8;
        const int tile = w.piece / ROW_GROUPS, row = w.piece % ROW_GROUPS * 8 + g;
        const char *weights =
            (const char *)args.moe.w13 + 2 * (tiles.experts[tile] * args.moe.w13_expert + k);
        w.slot = tiles.slots[tile * MOE_STREAM_MEMBERS + g];
        w.streams.low = weights + (row < INTER ? 2 * row * args.moe.w13_row : 0);
        w.streams.high = w.streams.low + (row < INTER ? 2 * INTER * args.moe.w13_row : 0);
        w.streams.slot =
            (const char *)args.moe.x + 2 * ((w.slot < 0 ? 0 : w.slot / SLOTS) * args.moe.x_row + k);
        w.streams.low_end = w.streams.high_end = bytes_of(row < INTER, HIDDEN);
        w.streams.slot_end = bytes_of(w.slot >= 0, HIDDEN);
    }
};

struct down {
    static constexpr int access = ACCESS, slot_access = 16;
    static constexpr bool is_early = IS_SELF;
    const struct moe_stream_args &args;
    const struct moe_tiles &tiles;
    int pieces;

    __device__ __forceinline__ int part(const struct work &w) const
    {
        return w.piece % PARTS;
    }
    __device__ __forceinline__ int steps(const struct work &w) const
    {
        return min(STEPS_OF(INTER) - part(w) * PART_STEPS, PART_STEPS);
    }
    __device__ __forceinline__ bool is_done(const struct work &w) const
    {
        return w.group >= COLUMN_TILES;
    }
    __device__ __forceinline__ void next(struct work &w) const
    {
        w.piece += WARPS;
        if (w.piece >= pieces) {
            w.piece = moe_warp();
            w.group += gridDim.x;
        }
    }
    __device__ __forceinline__ void enter(struct work &w) const
    {
        const int g = threadIdx.x % 32 / 4, k = threadIdx.x % 4 * 8, skipped = part(w) * PART_STEPS;
        const int tile = w.piece / PARTS, row = w.group * 16 + g, from = 2 * STEP * skipped;
        const char *weights =
            (const char *)args.moe.w2 + 2 * (tiles.experts[tile] * args.moe.w2_expert + k) + from;
        w.slot = tiles.slots[tile * MOE_STREAM_MEMBERS + g];
        w.streams.low = weights + (row < HIDDEN ? 2 * row * args.moe.w2_row : 0);
        w.streams.high = weights + (row + 8 < HIDDEN ? 2 * (row + 8) * args.moe.w2_row : 0);
        w.streams.slot =
            (const char *)args.h + 2 * ((int64_t)(w.slot < 0 ? 0 : w.slot) * PITCH + k) + from;
        w.streams.low_end = bytes_of(row < HIDDEN, INTER) - from;
        w.streams.high_end = bytes_of(row + 8 < HIDDEN, INTER) - from;
        w.streams.slot_end = bytes_of(w.slot >= 0, INTER) - from;
    }
};

/* To the next step; at a piece's end to the next piece, of which there is one unless is_done(). */
template <class kind> static __device__ __forceinline__ void advance(const kind &k, struct work &w)
{
    if (++w.step < k.steps(w))
        return;
    w.step = 0;
    k.next(w);
    if (!k.is_done(w))
        k.enter(w);
}

/* The lane's ring, and where in the work its end is. */
struct ring {
    uint32_t first; /* the lane's place in stage 0 */
    int stage;      /* the one that is read next */
    struct work ahead;
};

static __device__ __forceinline__ uint32_t place_of(const struct ring &ring, int stage)
{
    return ring.first + stage * STAGE_BYTES;
}

template <class kind>
static __device__ __forceinline__ void load_ahead(const kind &k, struct ring &ring, int stage)
{
    const uint32_t at = place_of(ring, stage);
    if (!k.is_done(ring.ahead)) {
        load_weights<kind::access>(at, ring.ahead.streams, 2 * STEP * ring.ahead.step);
        load_slot<kind::slot_access>(at, ring.ahead.streams, 2 * STEP * ring.ahead.step);
        advance(k, ring.ahead);
    }
    cp_async_commit();
}

/* The first STAGES steps. `wait` runs before what is multiplied is read; with is_early weights are
 * on their way by then. */
template <class kind, class waiting>
static __device__ __forceinline__ void fill(const kind &k, struct ring &ring, const waiting &wait)
{
    struct work weights = ring.ahead;
    ring.stage = 0;
    if (IS_ONE || !kind::is_early) {
        for (int i = 0; i < STAGES; i++)
            load_ahead(k, ring, i);
        wait();
        return;
    }
    for (int i = 0; i < STAGES && !k.is_done(weights); i++) {
        load_weights<kind::access>(place_of(ring, i), weights.streams, 2 * STEP * weights.step);
        advance(k, weights);
    }
    wait();
    for (int i = 0; i < STAGES; i++) {
        if (!k.is_done(ring.ahead)) {
            load_slot<kind::slot_access>(place_of(ring, i), ring.ahead.streams,
                                         2 * STEP * ring.ahead.step);
            advance(k, ring.ahead);
        }
        cp_async_commit();
    }
}

/* Multiplies the next step, and loads the one that takes its stage. */
template <class kind>
static __device__ __forceinline__ void turn(const kind &k, struct ring &ring, uint32_t vector,
                                            float (&sums)[2][4])
{
    cp_async_wait<STAGES - 1>();
    multiply_stage(place_of(ring, ring.stage), vector, sums);
    load_ahead(k, ring, ring.stage);
    ring.stage = ring.stage + 1 == STAGES ? 0 : ring.stage + 1;
}

/* ---- Kernels ------------------------------------------------------------------------------- */

extern __shared__ __align__(16) char shared_space[];

static __device__ __forceinline__ uint32_t shared_at(int offset)
{
    return (uint32_t)__cvta_generic_to_shared(shared_space) + offset;
}

/* The lane's place in its warp's ring. */
static __device__ __forceinline__ uint32_t ring_of_lane(void)
{
    return shared_at(threadIdx.x / 32 * (STAGES * STAGE_BYTES) + threadIdx.x % 32 * 16);
}

/* Starts to copy `rows` rows of `width` elements to shared memory, zeros behind each. */
template <int access>
static __device__ __forceinline__ void copy_vectors(uint32_t to, const void *from, int rows,
                                                    int64_t row_bytes, int width)
{
    const int each = VECTOR_BYTES(width) / 16;
    for (int i = threadIdx.x; i < rows * each; i += WARPS * 32) {
        const int row = i / each, at = i % each * 16;
        const char *begin = (const char *)from + row * row_bytes;
        copy_16<access>(to + i * 16, at < 2 * width ? begin + at : begin, 2 * width - at);
    }
    cp_async_commit();
}

static __device__ __forceinline__ struct moe_tiles make_tiles(const struct moe_stream_args &args,
                                                              int ahead)
{
    if (!IS_SELF)
        return args.tiles;
    struct moe_table table = moe_table_in(shared_space + ahead, (int)args.moe.tokens * SLOTS);
    moe_table_make(args, table, WARPS * 32);
    return table.tiles;
}

#if KERNEL == MOE_STREAM_ALL || KERNEL == MOE_STREAM_ROUTE
extern "C" __global__ void __launch_bounds__(512)
    moe_stream_route(const __grid_constant__ struct moe_stream_args args)
{
    struct moe_table table = moe_table_in(shared_space, (int)args.moe.tokens * SLOTS);
#if __CUDA_ARCH__ >= 900
    launch_dependents();
#endif
    struct moe_tiles inside = table.tiles;
    moe_table_make(args, table, 512);
    for (int i = threadIdx.x; i < (int)args.moe.tokens * SLOTS; i += 512)
        args.tiles.weights[i] = inside.weights[i];
    for (int i = threadIdx.x; i < *inside.count; i += 512)
        args.tiles.experts[i] = inside.experts[i];
    for (int i = threadIdx.x; i < *inside.count * MOE_STREAM_MEMBERS; i += 512)
        args.tiles.slots[i] = inside.slots[i];
    if (threadIdx.x == 0)
        *args.tiles.count = *inside.count;
}
#endif

/* Slot 2 t + c of the tile: columns of it are in sums[][c] and sums[][2 + c]. */
static __device__ __forceinline__ int member_slot(int slot, int t, int c)
{
    return __shfl_sync(0xffffffff, slot, (t * 2 + c) * 4);
}

#if KERNEL == MOE_STREAM_ALL || KERNEL == MOE_STREAM_UP
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
    moe_stream_up(const __grid_constant__ struct moe_stream_args args)
{
    const int warp = moe_warp(), g = threadIdx.x % 32 / 4;
#if __CUDA_ARCH__ >= 900
    launch_dependents();
    launch_wait();
#endif
    const int tiles_at = WARPS * STAGES * STAGE_BYTES;
    const uint32_t x = shared_at(tiles_at + TABLE_BYTES);
    if (IS_ONE)
        copy_vectors<ACCESS>(x, args.moe.x, 1, 0, HIDDEN);
    const struct moe_tiles tiles = make_tiles(args, tiles_at);
    if (IS_ONE) {
        cp_async_wait<0>();
        __syncthreads();
    }
    const struct up kind = { args, tiles, moe_uniform(*tiles.count) * ROW_GROUPS };
    struct ring ring = { ring_of_lane() };
    struct work now = {};
    now.piece = warp * gridDim.x + blockIdx.x;
    if (kind.is_done(now))
        return;
    kind.enter(now);
    ring.ahead = now;
    fill(kind, ring, [] {});

    for (;;) {
        float sums[2][4] = {};
        for (int step = 0; step < STEPS_OF(HIDDEN); step++)
            turn(kind, ring, x + threadIdx.x % 4 * 16 + 2 * STEP * step, sums);
        const int row = now.piece % ROW_GROUPS * 8 + g;
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int slot = member_slot(now.slot, threadIdx.x % 4, c);
            float gate = sums[0][c] + sums[1][c], above = sums[0][2 + c] + sums[1][2 + c];
            if (slot >= 0 && row < INTER)
                store_from_f32(DTYPE, (uint16_t *)args.h + (int64_t)slot * PITCH + row,
                               activate(ACTIVATION, gate, above, args.moe.limit, ACTIVATION_ALPHA));
        }
        kind.next(now);
        if (kind.is_done(now))
            return;
        now.slot = tiles.slots[now.piece / ROW_GROUPS * MOE_STREAM_MEMBERS + g];
    }
}

#endif

#if KERNEL == MOE_STREAM_ALL || KERNEL == MOE_STREAM_DOWN
/* Adds a piece to the warp's sums [tokens][16]. */
static __device__ __forceinline__ void add_piece(const struct moe_tiles &tiles, float *totals,
                                                 int slot_of_g, const float (&sums)[2][4])
{
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        int slot = member_slot(slot_of_g, threadIdx.x % 4, c);
        if (slot >= 0) {
            float weight = tiles.weights[slot], *row = totals + slot / SLOTS * 16 + g;
            row[0] += weight * (sums[0][c] + sums[1][c]);
            row[8] += weight * (sums[0][2 + c] + sums[1][2 + c]);
        }
    }
    __syncwarp();
}

/* 16 columns of out from all warps' sums, which become 0. */
static __device__ __forceinline__ void store_group(const struct moe_args &moe, float *totals,
                                                   int group)
{
    __syncthreads();
    for (int i = threadIdx.x; i < (int)moe.tokens * 16; i += WARPS * 32) {
        const int64_t token = i / 16, column = group * 16 + i % 16;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            sum += totals[warp * MOST_TOKENS * 16 + i];
            totals[warp * MOST_TOKENS * 16 + i] = 0;
        }
        if (column < HIDDEN)
            store_from_f32(DTYPE, (uint16_t *)moe.out + token * moe.out_row + column, sum);
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
    moe_stream_down(const __grid_constant__ struct moe_stream_args args)
{
    const int warp = moe_warp(), g = threadIdx.x % 32 / 4;
    const int totals_at = WARPS * STAGES * STAGE_BYTES;
    float *totals = (float *)(shared_space + totals_at);
    for (int i = threadIdx.x; i < WARPS * MOST_TOKENS * 16; i += WARPS * 32)
        totals[i] = 0;
    __syncthreads();
#if __CUDA_ARCH__ >= 900
    if (!IS_SELF)
        launch_wait();
#endif
    const int tiles_at = totals_at + WARPS * MOST_TOKENS * 64;
    const struct moe_tiles tiles = make_tiles(args, tiles_at);
    const uint32_t h = shared_at(tiles_at + TABLE_BYTES);
    const struct down kind = { args, tiles, moe_uniform(*tiles.count) * PARTS };
    const bool has_work = warp < kind.pieces;
    struct ring ring = { ring_of_lane() };
    struct work now = {};
    now.group = has_work ? blockIdx.x : COLUMN_TILES;
    now.piece = warp;
    if (has_work)
        kind.enter(now);
    ring.ahead = now;
    fill(kind, ring, [&] {
#if __CUDA_ARCH__ >= 900
        if (IS_SELF)
            launch_wait();
#endif
        if (IS_ONE) {
            copy_vectors<16>(h, args.h, SLOTS, 2 * PITCH, INTER);
            cp_async_wait<0>();
            __syncthreads();
        }
    });

    for (int group = blockIdx.x; group < COLUMN_TILES; group += gridDim.x) {
        for (int piece = warp; piece < kind.pieces; piece += WARPS) {
            float sums[2][4] = {};
            now.piece = piece;
            now.slot = tiles.slots[piece / PARTS * MOE_STREAM_MEMBERS + g];
            const int from = member_slot(now.slot, 0, 0) * VECTOR_BYTES(INTER) +
                             kind.part(now) * PART_STEPS * 2 * STEP;
            for (int step = 0; step < kind.steps(now); step++)
                turn(kind, ring, h + threadIdx.x % 4 * 16 + from + 2 * STEP * step, sums);
            add_piece(tiles, totals + warp * MOST_TOKENS * 16, now.slot, sums);
        }
        store_group(args.moe, totals, group);
    }
}
#endif
