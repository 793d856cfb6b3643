/* Rows in another order: blocks walk over the accesses of the output in strides of the grid, so a
 * grid of any size is right.
 *
 *     access   ACCESS bytes, as wide as the alignment of in and out allows; the last of a row may
 *              have fewer, which are moved one by one
 *     tile     THREADS * UNROLL accesses, one block's at a time
 *
 * A thread first issues UNROLL loads and only then stores. One division of 64 bits a tile gives its
 * first row; what a thread divides then is 32 bits. */
#include "common/cuda/launch.cuh"
#include "common/cuda/load.cuh"
#include "moe/shuffle_rows_args.h"

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

/* Bytes [byte, byte + ACCESS) of a row of out, and where they come from; NULL: zeros. */
struct place {
    const char *from;
    char *to; /* NULL: beyond the rows */
    int left; /* bytes of the row from here on */
};

static __device__ __forceinline__ struct place place_of(const struct shuffle_rows_args &args,
                                                        int64_t row, uint32_t access)
{
    const int byte = (int)access * ACCESS;
    if (row >= args.rows)
        return { nullptr, nullptr, 0 };
    const int64_t from = args.map[row];
    const bool is_row = from >= 0 && from < args.inputs;
    return { is_row ? args.in + from * args.in_row + byte : nullptr,
             args.out + row * args.out_row + byte, args.width - byte };
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    shuffle_rows(const __grid_constant__ struct shuffle_rows_args args)
{
    const int64_t tile = THREADS * UNROLL;
    const uint32_t each = (args.width + ACCESS - 1) / ACCESS;
    const int64_t accesses = args.rows * each;
#if __CUDA_ARCH__ >= 900
    launch_wait();
    launch_dependents();
#endif
    for (int64_t first = blockIdx.x * tile; first < accesses; first += gridDim.x * tile) {
        const int64_t row = first / each;
        const uint32_t rest = (uint32_t)(first - row * each) + threadIdx.x;
        uint32_t words[UNROLL][WORDS] = {};
        struct place places[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const uint32_t at = rest + u * THREADS, ahead = at / each;
            places[u] = place_of(args, row + ahead, at - ahead * each);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (places[u].from && places[u].left >= ACCESS)
                load_words(words[u], places[u].from, ACCESS);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (places[u].left >= ACCESS)
                store_words(places[u].to, words[u], ACCESS);
            for (int i = 0; places[u].left < ACCESS && i < places[u].left; i++)
                places[u].to[i] = places[u].from ? places[u].from[i] : 0;
        }
    }
}
