/* set_kv_buffer: blocks walk over the items of all tokens in strides of the grid, an item a thread.
 *
 *     item     8 columns of one head: a multiple of 16 bytes of 16-bit arrays; of columns that
 *              rope=neox rotates, 8 and their 8 partners
 *
 *     token    | k, rotated | k, as it is | v | q, rotated |     TOKEN_ITEMS of them
 *
 * What divides is compiled in. Neighbouring threads have neighbouring columns. */
#include "kv_cache/kv_rows.cuh"

#define PAIRED (ROPE && !IS_GPTJ) /* an item has partners */
#define HEAD_ROTATED (PAIRED ? ROPE_DIM / 16 : ROPE_DIM / 8)
#define HEAD_PLAIN ((D - ROPE_DIM) / 8)
#define ROTATED_ITEMS (HKV * HEAD_ROTATED)
#define PLAIN_ITEMS (HKV * HEAD_PLAIN)
#define V_ITEMS (HKV * DV / 8)
#define TOKEN_ITEMS (ROTATED_ITEMS + PLAIN_ITEMS + V_ITEMS + HQ * HEAD_ROTATED)
#define AT_LEAST_1(n) ((n) > 0 ? (n) : 1) /* a divisor that no item reaches */

#define ITEM_BYTES (8 * SIZE)
#define ITEM_WORDS (2 * SIZE)
#define CACHE_SIZE DT_SIZE(KV_DTYPE)

/* 8 columns to a cache: as they are, or divided by factor and rounded. */
template <int ACCESS>
static __device__ __forceinline__ void put(char *to, const uint32_t *words, float factor)
{
    if (KV_DTYPE == DTYPE) {
        store_bytes<ITEM_BYTES, ACCESS>(to, words);
        return;
    }
    uint32_t codes[2] = { 0, 0 };
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float value = __fdiv_rn(word_as_f32(DTYPE, words, i), factor);
        codes[i / 4] |= (uint32_t)e4m3_from_f32(value) << i % 4 * 8;
    }
    store_bytes<8, ACCESS>(to, codes);
}

static __device__ __forceinline__ float factor_of(const float *factors, uint32_t head)
{
    return KV_SCALE ? factors[KV_SCALE == 2 ? head : 0] : 1.0f;
}

/* Rotated item `item` of a head's row: `first` its columns, `second` the partners of rope=neox. */
template <int ACCESS>
static __device__ __forceinline__ void rotate(const void *row, const void *angles, uint32_t item,
                                              uint32_t *first, uint32_t *second)
{
#if ROPE
    constexpr int count = IS_GPTJ ? 4 : 8; /* angles */
    constexpr int bytes = count * DT_SIZE(ROPE_DTYPE);
    uint32_t cosines[8], sines[8];
    float values[16]; /* those of first, then their partners */
    load_bytes<ITEM_BYTES, ACCESS>(first, (const char *)row + item * ITEM_BYTES);
    if (PAIRED)
        load_bytes<ITEM_BYTES, ACCESS>(second, (const char *)row + item * ITEM_BYTES + HALF * SIZE);
    load_bytes<bytes, COS_ACCESS>(cosines, element(ROPE_DTYPE, angles, item * count));
    load_bytes<bytes, COS_ACCESS>(sines, element(ROPE_DTYPE, angles, HALF + item * count));
#pragma unroll
    for (int i = 0; i < 8; i++) {
        values[i] = word_as_f32(DTYPE, first, i);
        values[8 + i] = PAIRED ? word_as_f32(DTYPE, second, i) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < count; i++)
        rotate_pair(values[PAIRED ? i : 2 * i], values[PAIRED ? 8 + i : 2 * i + 1],
                    word_as_f32(ROPE_DTYPE, cosines, i), word_as_f32(ROPE_DTYPE, sines, i));
    words_from_f32(DTYPE, first, values, 8);
    if (PAIRED)
        words_from_f32(DTYPE, second, values + 8, 8);
#endif
}

static __device__ __forceinline__ const void *head_row(const struct kv_rows &rows, int64_t token,
                                                       uint32_t head)
{
    return element(DTYPE, rows.data, token * rows.token + head * rows.head);
}

/* ---- The four kinds of items ----------------------------------------------------------------- */

static __device__ __forceinline__ void rotated_item(const struct set_kv_buffer_args &args,
                                                    int64_t token, int64_t row, uint32_t item)
{
    const uint32_t head = item / AT_LEAST_1(HEAD_ROTATED), part = item % AT_LEAST_1(HEAD_ROTATED);
    uint32_t first[ITEM_WORDS], second[ITEM_WORDS];
    rotate<K_ACCESS>(head_row(args.k, token, head), angles_of(args, token), part, first, second);
    const float factor = factor_of(args.k_scale, head);
    char *to = place(args.k_cache, row, head, CACHE_SIZE) + part * 8 * CACHE_SIZE;
    put<K_CACHE_ACCESS>(to, first, factor);
    if (PAIRED)
        put<K_CACHE_ACCESS>(to + HALF * CACHE_SIZE, second, factor);
}

static __device__ __forceinline__ void plain_item(const struct set_kv_buffer_args &args,
                                                  int64_t token, int64_t row, uint32_t item)
{
    const uint32_t head = item / AT_LEAST_1(HEAD_PLAIN);
    const uint32_t column = ROPE_DIM + item % AT_LEAST_1(HEAD_PLAIN) * 8;
    uint32_t words[ITEM_WORDS];
    const void *from = head_row(args.k, token, head);
    load_bytes<ITEM_BYTES, K_ACCESS>(words, element(DTYPE, from, column));
    put<K_CACHE_ACCESS>(place(args.k_cache, row, head, CACHE_SIZE) + column * CACHE_SIZE, words,
                        factor_of(args.k_scale, head));
}

static __device__ __forceinline__ void value_item(const struct set_kv_buffer_args &args,
                                                  int64_t token, int64_t row, uint32_t item)
{
    const uint32_t head = item / AT_LEAST_1(DV / 8), column = item % AT_LEAST_1(DV / 8) * 8;
    uint32_t words[ITEM_WORDS];
    const void *from = head_row(args.v, token, head);
    load_bytes<ITEM_BYTES, V_ACCESS>(words, element(DTYPE, from, column));
    put<V_CACHE_ACCESS>(place(args.v_cache, row, head, CACHE_SIZE) + column * CACHE_SIZE, words,
                        factor_of(args.v_scale, head));
}

static __device__ __forceinline__ void query_item(const struct set_kv_buffer_args &args,
                                                  int64_t token, uint32_t item)
{
    const uint32_t head = item / AT_LEAST_1(HEAD_ROTATED), part = item % AT_LEAST_1(HEAD_ROTATED);
    uint32_t first[ITEM_WORDS], second[ITEM_WORDS];
    char *row = (char *)head_row(args.q, token, head);
    rotate<Q_ACCESS>(row, angles_of(args, token), part, first, second);
    store_bytes<ITEM_BYTES, Q_ACCESS>(row + part * ITEM_BYTES, first);
    if (PAIRED)
        store_bytes<ITEM_BYTES, Q_ACCESS>(row + part * ITEM_BYTES + HALF * SIZE, second);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    set_kv_buffer(const __grid_constant__ struct set_kv_buffer_args args)
{
    const int64_t items = args.t * TOKEN_ITEMS;
    for (int64_t first = (int64_t)blockIdx.x * THREADS; first < items;
         first += (int64_t)gridDim.x * THREADS) {
        int64_t token = first / TOKEN_ITEMS;
        uint32_t item = (uint32_t)(first - token * TOKEN_ITEMS) + threadIdx.x;
        token += item / TOKEN_ITEMS;
        item %= TOKEN_ITEMS;
        if (token >= args.t)
            continue;
        const int64_t row = index_at(args.loc, token);
        const bool is_kept = row >= 0 && row < args.rows;
        if (item < ROTATED_ITEMS) {
            if (is_kept)
                rotated_item(args, token, row, item);
        } else if (item < ROTATED_ITEMS + PLAIN_ITEMS) {
            if (is_kept)
                plain_item(args, token, row, item - ROTATED_ITEMS);
        } else if (item < ROTATED_ITEMS + PLAIN_ITEMS + V_ITEMS) {
            if (is_kept)
                value_item(args, token, row, item - ROTATED_ITEMS - PLAIN_ITEMS);
        } else {
            query_item(args, token, item - ROTATED_ITEMS - PLAIN_ITEMS - V_ITEMS);
        }
    }
}
