/* Rows of two arrays behind each other: blocks walk over the accesses of the output in strides of
 * the grid, so a grid of any size is right.
 *
 *     access   ACCESS bytes, as wide as the alignment of the three arrays allows: part of one row
 *              of left or right, since both widths are multiples of 16 bytes
 *     tile     THREADS * UNROLL accesses, one block's at a time
 *
 * A thread first issues UNROLL loads and only then stores. One division of 64 bits a tile gives its
 * first token; what a thread divides then is 32 bits, by constants. */
#include "common/cuda/load.cuh"
#include "mla/mla_concat_args.h"

#ifndef HEADS
#define HEADS 128
#endif
#ifndef LEFT
#define LEFT 128
#endif
#ifndef RIGHT
#define RIGHT 64
#endif
#ifndef SIZE
#define SIZE 2
#endif
#ifndef ACCESS
#define ACCESS 16
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef UNROLL
#define UNROLL 4
#endif

#define WORDS ((ACCESS + 3) / 4)
#define LEFT_ACCESSES (LEFT * SIZE / ACCESS)
#define ROW_ACCESSES ((LEFT + RIGHT) * SIZE / ACCESS)
#define TOKEN_ACCESSES (HEADS * ROW_ACCESSES)

/* Access number `rest` of a token and those after it. */
struct place {
    int64_t token;
    uint32_t head, access;
};

static __device__ __forceinline__ struct place place_of(int64_t token, uint32_t rest)
{
    uint32_t row = rest / ROW_ACCESSES;
    return { token + row / HEADS, row % HEADS, rest % ROW_ACCESSES };
}

static __device__ __forceinline__ const char *source(const struct mla_concat_args &args,
                                                     const struct place &at)
{
    const char *left =
        (const char *)args.left + (at.token * args.left_token + at.head * args.left_head) * SIZE;
    const char *right =
        (const char *)args.right + (at.token * args.right_token + at.head * args.right_head) * SIZE;
    return at.access < LEFT_ACCESSES ? left + at.access * ACCESS
                                     : right + (at.access - LEFT_ACCESSES) * ACCESS;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    mla_concat(const __grid_constant__ struct mla_concat_args args)
{
    const int64_t tile = THREADS * UNROLL, accesses = args.t * TOKEN_ACCESSES;
    for (int64_t first = blockIdx.x * tile; first < accesses; first += gridDim.x * tile) {
        const int64_t token = first / TOKEN_ACCESSES;
        const uint32_t rest = (uint32_t)(first - token * TOKEN_ACCESSES) + threadIdx.x;
        uint32_t words[UNROLL][WORDS];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            struct place at = place_of(token, rest + u * THREADS);
            if (at.token < args.t)
                load_words(words[u], source(args, at), ACCESS);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            struct place at = place_of(token, rest + u * THREADS);
            char *out =
                (char *)args.out + (at.token * args.out_token + at.head * args.out_head) * SIZE;
            if (at.token < args.t)
                store_words(out + at.access * ACCESS, words[u], ACCESS);
        }
    }
}
