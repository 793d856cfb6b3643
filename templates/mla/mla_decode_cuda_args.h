/* What a block of the CUDA variants of mla_decode reads: the contract between mla_decode_cuda.c and
 * the device code. */
#ifndef MLA_DECODE_CUDA_ARGS_H
#define MLA_DECODE_CUDA_ARGS_H
#include "common/cuda/split_kv_args.h"
#include "mla/mla_decode_args.h"

struct mla_cuda_args {
    __attribute__((aligned(64))) uint8_t map[128]; /* mla_decode_sm90: of the cache */
    struct mla_decode_args mla;
    struct split_kv_space space;
    int32_t sequences; /* in the line that is cut: of each query, where it has indices of its own */
    int32_t least;     /* tiles of a share, at least */
    int32_t has_map;
};

/* deterministic=1: a sequence has as many pieces as its length says, each of as many tiles, at
 * least those of so many tokens. */
#define MLA_PIECE_TOKENS 1024
#define MLA_MOST_PIECES 16

/* Bytes of a row of keys in shared memory, and of 64 columns of one. */
#define MLA_ROW (2 * MLA_DK)
#define MLA_BOX_ROW 128

/* Shared memory of mla_decode_sm80: queries but for 16 rows, then tiles of keys, or one such tile
 * and a ring of what the cache has; scores of each share of the products; flags of rows. */
#define MLA_SM80_SCORES(bm, tile, shares) ((shares) * (bm) * ((tile) + 8) * 4)
#define MLA_SM80_SHARED(bm, tile, shares, stages, is_e4m3)                                         \
    (((bm) > 16 ? (bm)*MLA_ROW : 0) +                                                              \
     ((is_e4m3) ? MLA_ROW + (stages)*MLA_TOKEN_BYTES : (stages)*MLA_ROW) * (tile) +                \
     MLA_SM80_SCORES(bm, tile, shares) + (stages) * (tile))

/* Of mla_decode_sm90: queries; two stages of 64 rows, each with two barriers, a job, factors and
 * flags; where each of four warps is. */
#define MLA_SM90_JOB 24
#define MLA_SM90_WALK 72
#define MLA_SM90_STAGE (64 * MLA_ROW + 2 * 8 + MLA_SM90_JOB + MLA_DV / MLA_GROUP * 64 * 4 + 64)
#define MLA_SM90_SHARED (64 * MLA_ROW + 2 * MLA_SM90_STAGE + 4 * MLA_SM90_WALK)
#endif
