/* Columns of a token: its rows weighed and added in f32 in their order, rounded once.
 *
 *     out[t] = scaling * sum over j of factors[t, j] row(t, j)
 *
 * A thread issues the loads of `unroll` rows and only then adds them. */
#ifndef MOE_COMBINE_CUH
#define MOE_COMBINE_CUH
#include "common/cuda/load.cuh"
#include "moe/moe_combine_args.h"

#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef OUT_DTYPE
#define OUT_DTYPE DTYPE
#endif

/* Where row j of the token is from column `column` on; NULL: it adds nothing. */
static __device__ __forceinline__ const void *moe_combine_row(const struct moe_combine_args &args,
                                                              int64_t token, int j, int column)
{
    int64_t row = j;
    if (j >= args.topk)
        return nullptr;
    if (args.perm) {
        row = args.perm[token * args.perm_token + j];
        if (row < 0 || row >= args.rows)
            return nullptr;
    }
    return element(DTYPE, args.in, token * args.in_token + row * args.in_row + column);
}

/* The columns that `bytes` of a row hold, from `column` on. */
template <int bytes, int unroll>
static __device__ __forceinline__ void moe_combine_columns(const struct moe_combine_args &args,
                                                           int64_t token, int column)
{
    constexpr int count = bytes / DT_SIZE(DTYPE), words_each = (bytes + 3) / 4;
    constexpr int out_bytes = count * DT_SIZE(OUT_DTYPE);
    float sums[count] = {};
    uint32_t result[(out_bytes + 3) / 4];
    for (int first = 0; first < args.topk; first += unroll) {
        uint32_t words[unroll][words_each] = {};
        float factors[unroll];
#pragma unroll
        for (int u = 0; u < unroll; u++) {
            const void *from = moe_combine_row(args, token, first + u, column);
            factors[u] = from ? 1.0f : 0.0f;
            if (from)
                load_words(words[u], from, bytes);
            if (from && args.factors)
                factors[u] = args.factors[token * args.factors_token + first + u];
        }
#pragma unroll
        for (int u = 0; u < unroll; u++) {
#pragma unroll
            for (int i = 0; i < count; i++)
                sums[i] += factors[u] * word_as_f32(DTYPE, words[u], i);
        }
    }
#pragma unroll
    for (int i = 0; i < count; i++)
        sums[i] *= args.scaling;
    words_from_f32(OUT_DTYPE, result, sums, count);
    store_words((void *)element(OUT_DTYPE, args.out, token * args.out_token + column), result,
                out_bytes);
}
#endif
