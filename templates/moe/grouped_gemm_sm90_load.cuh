/* The loading warpgroup of grouped_gemm_sm90: it fills the stages of the ring, through all tiles of
 * the block.
 *
 *     rows of b     by TMA, by one thread. With an activation the tile is, for each consumer that
 *                   has rows of b of its own (SWAP) or once, rows of the gate and as many of up
 *     rows of a     by TMA in the same way; GATHER: chosen rows, by all 128 threads with cp.async:
 *                   eight threads a row, 16 bytes each
 *
 * cp.async tells the stage's full barrier when it has landed; whoever multiplies orders it before
 * wgmma with a proxy fence. Rows of a tile beyond its segment belong to other experts, or are zeros
 * where they are gathered: they are multiplied and left out when d is stored. */
#ifndef GROUPED_GEMM_SM90_LOAD_CUH
#define GROUPED_GEMM_SM90_LOAD_CUH
#include "common/cuda/cp_async.cuh"
#include "common/cuda/gemm_mainloop_sm90.cuh"
#include "common/cuda/swizzle.cuh"
#include "moe/grouped_gemm_sm90_tiles.cuh"

/* Rows of b of a tile come in so many boxes: with an activation gate and up in turns. */
#define B_ROWS (SWAP ? BM : BN)
#define B_BOXES (ACTIVATION ? 2 * (SWAP ? BM / ROWS : 1) : 1)
#define B_BOX (B_ROWS / B_BOXES)
#define PASSES (TILE_ROWS / 16) /* rows that a thread gathers 16 bytes of */

/* What of a stage comes by cp.async tells the barrier by itself. */
#define FULL_ARRIVALS (GATHER ? 1 + 128 : 1)
#define TMA_BYTES (GATHER ? B_ROWS * ROW_BYTES : STAGE_BYTES)

__device__ __forceinline__ void load_b(const struct grouped_gemm_sm90_args *args,
                                       const struct tile *tile, uint32_t to, uint32_t full,
                                       int32_t k)
{
#pragma unroll
    for (int i = 0; i < B_BOXES; i++) {
        int32_t row = tile->column + i / 2 * B_BOX + (i % 2 ? args->n : 0);
        tma_load_3d(to + i * B_BOX * ROW_BYTES, args->map_b, full, k, row,
                    tile->expert * args->step_b);
    }
}

/* The rows of a that this thread gathers; -1: zeros. */
__device__ __forceinline__ void find_rows(const struct grouped_gemm_sm90_args *args,
                                          const struct tile *tile, int32_t (&rows)[PASSES])
{
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        int32_t at = tile->row + pass * 16 + threadIdx.x % 128 / 8;
        int32_t id = at < tile->end ? args->row_ids[at] : -1;
        int32_t row = id >= 0 ? (int32_t)((uint32_t)id / (uint32_t)args->share) : -1;
        rows[pass] = row < args->source_rows ? row : -1;
    }
}

__device__ __forceinline__ void gather_rows(const struct grouped_gemm_sm90_args *args,
                                            const int32_t (&rows)[PASSES], uint32_t to,
                                            uint32_t full, int32_t k)
{
    const int32_t chunk = threadIdx.x % 8, first = threadIdx.x % 128 / 8;
    const int32_t column = k + chunk * 8;
    const int32_t bytes = min(max((args->k - column) * 2, 0), 16);
    const uint16_t *from = (const uint16_t *)args->a + (bytes ? column : 0);
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        const uint16_t *row = from + max(rows[pass], 0) * args->a_row_stride;
        cp_async_16(to + swizzled<128>((pass * 16 + first) * ROW_BYTES + chunk * 16), row,
                    rows[pass] < 0 ? 0 : bytes);
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(full) : "memory");
}

/* By a warp, or with GATHER by the warpgroup. */
__device__ __forceinline__ void load_all(const struct grouped_gemm_sm90_args *args,
                                         const struct tiles *tiles, const struct ring *ring)
{
    const bool is_leader = threadIdx.x % 128 == 0;
    const int32_t count = (args->k + BK - 1) / BK;
    struct walk walk = walk_begin(args, tiles);
    struct tile tile;
    uint32_t step = 0;
    while (walk_next(args, tiles, &walk, &tile)) {
        if (tile.expert < 0)
            continue;
#if GATHER
        int32_t rows[PASSES];
        find_rows(args, &tile, rows);
#endif
        for (int32_t i = 0; i < count; i++, step++) {
            uint32_t stage = step % STAGES, full = ring->full + 8 * stage;
            uint32_t p = ring->tiles + stage * STAGE_BYTES, q = p + P_BYTES;
            if (!GATHER && !is_leader)
                continue;
            mbarrier_wait(ring->empty + 8 * stage, (step / STAGES & 1) ^ 1);
            if (is_leader) {
                mbarrier_arrive_expect(full, TMA_BYTES);
                load_b(args, &tile, SWAP ? p : q, full, i * BK);
                if (!GATHER)
                    tma_load_3d(SWAP ? q : p, args->map_a, full, i * BK, tile.row,
                                FORM == FORM_MASKED ? tile.expert * args->step_a : 0);
            }
#if GATHER
            gather_rows(args, rows, SWAP ? q : p, full, i * BK);
#endif
        }
        __syncwarp();
    }
}
#endif
