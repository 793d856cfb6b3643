/* Rows of a token weighed and added: one block of the grid has args->block tokens.
 *
 *     1. the rows that the token adds, and their factors
 *     2. columns, STRIPE vectors at a time: all rows in their order, then one rounding */
#include "common/cpu/dtype.h"
#include "moe/moe_combine_args.h"

#ifndef DTYPE
#define DTYPE DT_BF16
#endif

#define STRIPE 4
#define TOPK_MOST 1024

struct terms {
    int count;
    const char *rows[TOPK_MOST];
    float factors[TOPK_MOST];
};

static void find_terms(const struct moe_combine_args *args, int64_t token, struct terms *terms)
{
    terms->count = 0;
    for (int64_t j = 0; j < args->topk; j++) {
        int64_t row = args->perm ? args->perm[token * args->perm_token + j] : j;
        if (args->perm && (row < 0 || row >= args->rows))
            continue;
        terms->rows[terms->count] =
            element(DTYPE, args->in, token * args->in_token + row * args->in_row);
        terms->factors[terms->count++] =
            args->factors ? args->factors[token * args->factors_token + j] : 1.0f;
    }
}

/* `vectors` vectors of columns from `first`, or with `part` that many columns of one. */
INLINE void add_columns(const struct moe_combine_args *args, const struct terms *terms, char *out,
                        int64_t first, int vectors, int64_t part)
{
    vec_f32 sums[STRIPE];
    UNROLL
    for (int v = 0; v < vectors; v++)
        sums[v] = (vec_f32){ 0 };
    for (int j = 0; j < terms->count; j++) {
        const char *row = terms->rows[j] + first * DT_SIZE(DTYPE);
        UNROLL
        for (int v = 0; v < vectors; v++) {
            const char *from = row + (int64_t)v * VW * DT_SIZE(DTYPE);
            sums[v] += terms->factors[j] *
                       (part ? load_part_as_f32(DTYPE, from, part) : load_as_f32(DTYPE, from));
        }
    }
    UNROLL
    for (int v = 0; v < vectors; v++) {
        char *to = out + (first + (int64_t)v * VW) * DT_SIZE(DTYPE);
        if (part)
            store_part_from_f32(DTYPE, to, args->scaling * sums[v], part);
        else
            store_from_f32(DTYPE, to, args->scaling * sums[v]);
    }
}

void moe_combine_main(const struct moe_combine_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    int64_t begin = (int64_t)x * args->block, end = begin + args->block;
    struct terms terms;
    (void)y, (void)z;
    end = end < args->tokens ? end : args->tokens;
    for (int64_t token = begin; token < end; token++) {
        char *out = (char *)element(DTYPE, args->out, token * args->out_token);
        int64_t i = 0;
        find_terms(args, token, &terms);
        for (; i + STRIPE * VW <= args->width; i += STRIPE * VW)
            add_columns(args, &terms, out, i, STRIPE, 0);
        for (; i + VW <= args->width; i += VW)
            add_columns(args, &terms, out, i, 1, 0);
        if (i < args->width)
            add_columns(args, &terms, out, i, 1, args->width - i);
    }
}
