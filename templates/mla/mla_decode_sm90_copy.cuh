/* What mla_decode_sm90's blocks share, and the warpgroup that fills it: mla_decode_sm90.cu says who
 * waits for whom. Eight threads have a row, 16 bytes of each of its boxes a thread. */
#ifndef MLA_DECODE_SM90_COPY_CUH
#define MLA_DECODE_SM90_COPY_CUH
#include "common/cuda/mbarrier.cuh"
#include "common/cuda/tma.cuh"
#include "mla/mla_decode_items.cuh"
#include "mla/mla_decode_rows.cuh"

#define CONSUMERS 256
#define COPIERS 128
#define STAGES 2
#define BOXES (MLA_DK / 64)
#define BOX_BYTES (TILE * MLA_BOX_ROW)
#define PASSES (TILE / (COPIERS / 8)) /* rows that a thread copies a chunk of */
#define IS_E4M3 (KV_DTYPE == DT_E4M3)
#define GROUPS (MLA_DV / MLA_GROUP)

/* What is to be done with the rows of a stage. */
enum { JOB_FIRST = 1, JOB_LAST = 2, JOB_END = 4 }; /* tile of an item; there are no more */
struct job {
    struct part part;
    int kind, rows; /* rows of the cache that the sequence has from the tile's first on */
};
static_assert(sizeof(struct job) == MLA_SM90_JOB && sizeof(struct walk) == MLA_SM90_WALK,
              "as the plan counts shared memory");

struct shared {
    uint32_t queries, stages, full, empty;
    struct job *jobs;   /* [STAGES] */
    float *factors;     /* [STAGES][GROUPS][TILE]: of e4m3 */
    uint8_t *flags;     /* [STAGES][TILE]: there is such a row */
    struct walk *walks; /* of each copying warp: most of it is needed once an item */
};

__device__ __forceinline__ int copier_row(int pass)
{
    return pass * (COPIERS / 8) + threadIdx.x % COPIERS / 8;
}

__device__ __forceinline__ void look_ahead(const struct walk *walk, int (&entries)[PASSES])
{
    if (!walk_has(walk))
        return;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++)
        entries[pass] = table_entry(walk, walk->tile * TILE + copier_row(pass));
}

__device__ __forceinline__ void copy_tile(const struct mla_cuda_args *args,
                                          const struct shared *shared, const struct walk *walk,
                                          const int (&entries)[PASSES], int stage)
{
    const int chunk = threadIdx.x % 8;
    const uint32_t to = shared->stages + stage * BOXES * BOX_BYTES;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        const int row = copier_row(pass);
        const char *from = cache_row(args, walk, walk->tile * TILE + row, entries[pass]);
        if (HAS_TOPK && chunk == 0)
            shared->flags[stage * TILE + row] = from != nullptr;
        const char *at = (from ? from : (const char *)args->mla.kv_cache) + chunk * 16;
#pragma unroll
        for (int box = 0; box < BOXES; box++)
            copy_row_chunk<ALIGN_KV>(to + box * BOX_BYTES + row_chunk(TILE, row, chunk),
                                     at + box * MLA_BOX_ROW, from != nullptr);
    }
}

/* An eighth of a 656-byte token. */
struct eighth {
    uint32_t values[4][4], rotary[4];
    float factor;
    bool is_there;
};

__device__ __forceinline__ void load_eighth(const struct mla_cuda_args *args,
                                            const struct walk *walk, int entry, int pass,
                                            struct eighth *eighth)
{
    const int lane = threadIdx.x % 8;
    const char *from = cache_row(args, walk, walk->tile * TILE + copier_row(pass), entry);
#pragma unroll
    for (int i = 0; i < 4; i++)
        load_chunk_or_zeros<ALIGN_KV>(eighth->values[i], from, (lane + 8 * i) * 16);
    load_chunk_or_zeros<ALIGN_KV>(eighth->rotary, from, MLA_DV + 16 + lane * 16);
    eighth->is_there = from != nullptr;
    eighth->factor = from ? *(const float *)(from + MLA_DV + lane % GROUPS * 4) : 0.0f;
}

__device__ __forceinline__ void store_eighth(const struct shared *shared, int pass, int stage,
                                             const struct eighth *eighth)
{
    const int lane = threadIdx.x % 8, row = copier_row(pass);
    const uint32_t tile = shared->stages + stage * BOXES * BOX_BYTES;
#pragma unroll
    for (int i = 0; i < 4; i++)
        store_widened(tile + row_chunk(TILE, row, 2 * lane) + i * 2 * BOX_BYTES, eighth->values[i]);
    store_rotary(tile + row_chunk(TILE, row, MLA_DV / 8 + lane), eighth->rotary);
    if (lane < GROUPS)
        shared->factors[(stage * GROUPS + lane) * TILE + row] = eighth->factor;
    if (HAS_TOPK && lane == 0)
        shared->flags[stage * TILE + row] = eighth->is_there;
}

/* A tile of 656-byte tokens, of which the first pass is in registers. */
__device__ __forceinline__ void copy_tokens(const struct mla_cuda_args *args,
                                            const struct shared *shared, const struct walk *walk,
                                            const int (&entries)[PASSES], int stage,
                                            struct eighth *eighth)
{
    static_assert(PASSES == 4, "entries are picked by comparisons");
#pragma unroll 1
    for (int pass = 0; pass < PASSES; pass++) {
        store_eighth(shared, pass, stage, eighth);
        int entry = pass == 0 ? entries[1] : pass == 1 ? entries[2] : entries[3];
        if (pass + 1 < PASSES)
            load_eighth(args, walk, entry, pass + 1, eighth);
    }
}

__device__ __forceinline__ struct job job_of(const struct walk *walk)
{
    if (!walk_has(walk))
        return { {}, JOB_END, 0 };
    int kind = (walk->tile == walk->first_tile ? JOB_FIRST : 0) |
               (walk->tile + 1 == walk->tiles_end ? JOB_LAST : 0);
    return { walk_part(walk), kind, walk->length - walk->tile * TILE };
}

/* All TILE rows of a page, by one thread. */
__device__ __forceinline__ void copy_page_rows(const struct mla_cuda_args *args,
                                               const struct shared *shared, const struct walk *walk,
                                               int entry, int stage)
{
    const int first = walk->tile * TILE % PAGE;
    const int page = entry < 0 || entry >= args->mla.pages ? 0 : entry;
    const uint32_t to = shared->stages + stage * BOXES * BOX_BYTES, full = shared->full + 8 * stage;
    tma_store_fence(); /* what was read or written by ordinary accesses is overwritten */
    mbarrier_arrive_expect(full, BOXES * BOX_BYTES);
#pragma unroll
    for (int box = 0; box < BOXES; box++)
        tma_load_3d(to + box * BOX_BYTES, args->map, full, 64 * box, first, page);
}

/* By a warp whose lanes all have read what they wanted, and have the same. */
__device__ __forceinline__ void walk_put(struct walk *to, const struct walk &walk)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        *to = walk;
    __syncwarp();
}

/* All tiles of all items, and the end, by a warpgroup. */
__device__ __forceinline__ void copy_all(const struct mla_cuda_args *args,
                                         const struct shared *shared, struct walk *walk)
{
    int entries[PASSES];
    bool has_more = true;
    look_ahead(walk, entries);
#pragma unroll 1
    for (uint32_t turn = 0; has_more; turn++) {
        const int stage = turn % STAGES;
        has_more = walk_has(walk);
        struct eighth eighth;
        if (IS_E4M3 && has_more)
            load_eighth(args, walk, entries[0], 0, &eighth);
        mbarrier_wait(shared->empty + 8 * stage, turn / STAGES % 2 ^ 1);
        const bool is_first = threadIdx.x % COPIERS == 0;
        const bool by_map =
            USE_MAP && args->has_map && has_more && (walk->tile + 1) * TILE <= walk->length;
        if (is_first)
            shared->jobs[stage] = job_of(walk);
        if (by_map && is_first)
            copy_page_rows(args, shared, walk, entries[0], stage);
        if (IS_E4M3 && has_more)
            copy_tokens(args, shared, walk, entries, stage, &eighth);
        else if (!by_map && has_more)
            copy_tile(args, shared, walk, entries, stage);
        if (!by_map) {
            cp_async_commit();
            cp_async_wait<0>();
            tma_store_fence();
        }
        if (!by_map || !is_first)
            mbarrier_arrive(shared->full + 8 * stage);
        struct walk next = *walk;
        if (has_more)
            walk_next(&next, args);
        walk_put(walk, next);
        look_ahead(walk, entries);
    }
}
#endif
