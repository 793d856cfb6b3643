/* Values in vectors of f32: rows of v, each read once, times the weights of RT rows. */
#ifndef DECODE_VALUES_H
#define DECODE_VALUES_H

/* Adds `count` tokens of `chunks` chunks of columns from `column` on to the sums of a tile of rows.
 * is_asking: and asks for a row of the next tile at each token. */
INLINE void add_columns(const char *const rows[V_TILE], int64_t offset, int64_t count,
                        const float *weights, int column, const int chunks, float *sums,
                        struct ahead *ahead)
{
    vec_f32 acc[RT][CHUNKS * PER_CHUNK];
    UNROLL
    for (int r = 0; r < RT; r++) {
        UNROLL
        for (int c = 0; c < chunks * PER_CHUNK; c++)
            acc[r][c] = *(vec_f32_any *)(sums + r * DV + column + c * VW);
    }
    for (int64_t i = 0; i < count; i++) {
        const char *row = kv_element(KV_DTYPE, rows[i] + offset, column);
        if (ahead)
            ask(ahead, DV * KV_SIZE(KV_DTYPE));
        UNROLL
        for (int c = 0; c < chunks; c++) {
            vec_f32 value[PER_CHUNK];
            load_chunk(kv_element(KV_DTYPE, row, c * CHUNK), value);
            UNROLL
            for (int r = 0; r < RT; r++) {
                UNROLL
                for (int half = 0; half < PER_CHUNK; half++)
                    acc[r][c * PER_CHUNK + half] += WEIGHT(weights, i, r) * value[half];
            }
        }
    }
    UNROLL
    for (int r = 0; r < RT; r++) {
        UNROLL
        for (int c = 0; c < chunks * PER_CHUNK; c++)
            *(vec_f32_any *)(sums + r * DV + column + c * VW) = acc[r][c];
    }
}

INLINE void values(const struct decode_args *args, const struct piece *piece,
                   const struct piece *after, struct scratch *scratch)
{
    (void)after;
    const int64_t head_bytes = args->v.head * KV_SIZE(KV_DTYPE);
    const char *rows[V_TILE], *next[V_TILE];
    __builtin_memset(scratch->sums, 0,
                     piece->heads * piece->tiles * (int64_t)sizeof(scratch->sums[0]));
    find_rows(args, &args->v, piece, 0, V_TILE, next);
    for (int64_t first = 0; first < piece->count; first += V_TILE) {
        const int64_t left = piece->count - first, count = left < V_TILE ? left : V_TILE;
        struct ahead ahead = ahead_of(next, piece, &args->v, V_TILE, 1);
        __builtin_memcpy(rows, next, sizeof(rows));
        find_rows(args, &args->v, piece, first + V_TILE, V_TILE, next);
        for (int64_t h = 0; h < piece->heads; h++) {
            for (int64_t t = 0; t < piece->tiles; t++) {
                int64_t tile = h * piece->tiles + t;
                const float *weights = weights_of(scratch, piece, h, t, first);
                float *sums = scratch->sums[tile];
                int column = CHUNKS * CHUNK;
                add_columns(rows, h * head_bytes, count, weights, 0, CHUNKS, sums,
                            t == 0 ? &ahead : 0);
                for (; column + CHUNKS * CHUNK <= DV; column += CHUNKS * CHUNK)
                    add_columns(rows, h * head_bytes, count, weights, column, CHUNKS, sums, 0);
                if (CHUNKS_LEFT)
                    add_columns(rows, h * head_bytes, count, weights, column, CHUNKS_LEFT, sums, 0);
            }
        }
    }
}

INLINE void store_sums(float *to, const struct scratch *scratch, const struct piece *piece,
                       int64_t head, int64_t tile, int64_t row)
{
    store_from_chunks(to, scratch->sums[head * piece->tiles + tile] + row * DV);
}
#endif
