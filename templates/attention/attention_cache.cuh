/* The prefix of attention_extend: keys and values in pages, each row of which is found by an id.
 *
 *     PREFIX 1    ids are page numbers, one for each page of the prefix: page_table
 *     PREFIX 2    ids are rows of the cache, one for each token: kv_indices
 *
 * The ids of a tile are copied to shared memory one tile ahead of its rows. A cache of e4m3 is
 * fetched into registers while a tile is multiplied, and put into shared memory as DTYPE behind
 * that, which is exact. Its factors are those of scores (k) and of sums (v); those that are not
 * finite have to meet each element and are applied in shared memory. */
#ifndef ATTENTION_CACHE_CUH
#define ATTENTION_CACHE_CUH

#define IS_CONVERTED (CACHE_DTYPE == DT_E4M3)
static_assert(STAGES == 2, "ids are copied one tile ahead");

static __shared__ int32_t tile_ids[2][BN];

__device__ __forceinline__ bool is_finite(float x)
{
    return fabsf(x) < -SOFTMAX_NONE;
}

__device__ __forceinline__ void find_cache(const struct attention_cuda_args *args,
                                           struct block *block)
{
    const struct block_rows *rows = &block->rows;
    block->prefix_tiles = (rows->prefix + BN - 1) / BN;
    block->ids =
        args->table + (PREFIX == 1 ? rows->sequence * args->table_row
                                   : clamp_to(args->lens[rows->sequence], 0, args->indices));
    block->k_cache = (const char *)args->k_cache.data + rows->kv_head * args->k_cache.head;
    block->v_cache = (const char *)args->v_cache.data + rows->kv_head * args->v_cache.head;
    if (KV_SCALE) {
        block->k_scale = args->k_cache.scale[KV_SCALE == 2 ? rows->kv_head : 0];
        block->v_scale = args->v_cache.scale[KV_SCALE == 2 ? rows->kv_head : 0];
        block->v_factor = is_finite(block->v_scale) ? block->v_scale : 1.0f;
    }
}

/* ---- Ids ------------------------------------------------------------------------------------- */

__device__ __forceinline__ void read_ids(const struct attention_cuda_args *args,
                                         const struct block *block, int tile)
{
    int line = thread_again(), key = tile * BN + line;
    if (line < BN && key < block->rows.prefix)
        cp_async_4((uint32_t)__cvta_generic_to_shared(&tile_ids[tile % 2][line]),
                   block->ids + (PREFIX == 1 ? key >> args->page_bits : key), 4);
}

/* Of the first two tiles. */
__device__ __forceinline__ void read_first_ids(const struct attention_cuda_args *args,
                                               const struct block *block)
{
    read_ids(args, block, block->begin);
    read_ids(args, block, block->begin + 1);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
}

/* ---- Rows ------------------------------------------------------------------------------------ */

/* Key `key` of a head whose row 0 is `head`. Ids outside the cache become its first or last. */
__device__ __forceinline__ const char *cache_at(const struct attention_cuda_args *args,
                                                const struct attention_cache *cache,
                                                const char *head, int key, int id)
{
    int mask = (1 << args->page_bits) - 1;
    int page = PREFIX == 1 ? id : id >> args->page_bits, place = (PREFIX == 1 ? key : id) & mask;
    if (PREFIX == 2 && (page < 0 || page >= args->pages))
        place = page < 0 ? 0 : mask;
    return head + clamp_to(page, 0, args->pages - 1) * cache->page + place * cache->token;
}

/* The row of line `line` of a tile, from its id; nullptr: zeros. */
__device__ __forceinline__ const char *row_of_line(const struct attention_cuda_args *args,
                                                   const struct attention_cache *cache,
                                                   const char *head, const struct block *block,
                                                   int tile, int line)
{
    int key = tile * BN + line;
    if (line >= BN || key >= block->rows.prefix)
        return nullptr;
    return cache_at(args, cache, head, key, tile_ids[tile % 2][line]);
}

/* A tile of the prefix, unless it is to be fetched. */
template <int pitch, int align>
__device__ __forceinline__ void copy_cache(uint32_t to, const struct attention_cuda_args *args,
                                           const struct attention_cache *cache, const char *head,
                                           const struct block *block, int tile)
{
    uint32_t thread = thread_again();
    int line = thread / GROUP_CHUNKS(pitch), chunk = thread % GROUP_CHUNKS(pitch);
    constexpr int passes = IS_CONVERTED ? 0 : PASSES(BN, pitch), at_once = align < 4 ? 1 : 16;
    to += tile_at<pitch>(line, chunk);
#pragma unroll(at_once)
    for (int pass = 0; pass < passes; pass++, line += PASS_LINES(pitch)) {
        const char *row = row_of_line(args, cache, head, block, tile, line);
        const char *from = (row ? row : head) + chunk * 16;
        if (BN % PASS_LINES(pitch) && line >= BN)
            break;
#pragma unroll
        for (int group = 0; group < pitch; group += GROUP_CHUNKS(pitch) * 16)
            copy_chunk<align>(to + pass * PASS_LINES(pitch) * pitch + group, from + group,
                              row != nullptr);
    }
}

/* ---- Conversion ------------------------------------------------------------------------------ */

#define FETCHED(pitch) (IS_CONVERTED ? PASSES(BN, pitch) * (pitch) / 16 / GROUP_CHUNKS(pitch) : 1)

/* A thread's share of a tile in e4m3, 8 elements to a chunk. */
struct fetched {
    uint32_t k[FETCHED(Q_PITCH)][2], v[FETCHED(V_PITCH)][2];
};

template <int pitch, int align>
__device__ __forceinline__ void fetch_rows(uint32_t (&chunks)[FETCHED(pitch)][2],
                                           const struct attention_cuda_args *args,
                                           const struct attention_cache *cache, const char *head,
                                           const struct block *block, int tile)
{
    uint32_t thread = thread_again();
    constexpr int groups = pitch / 16 / GROUP_CHUNKS(pitch), bytes = align < 8 ? align : 8;
#pragma unroll
    for (int i = 0; i < FETCHED(pitch); i++) {
        int line = thread / GROUP_CHUNKS(pitch) + i / groups * PASS_LINES(pitch);
        int chunk = thread % GROUP_CHUNKS(pitch) + i % groups * GROUP_CHUNKS(pitch);
        const char *row = row_of_line(args, cache, head, block, tile, line);
        chunks[i][0] = chunks[i][1] = 0;
#pragma unroll
        for (int byte = 0; byte < 8; byte += bytes) {
            uint32_t words[2] = { 0, 0 };
            if (row)
                load_words(words, row + chunk * 8 + byte, bytes);
            chunks[i][byte / 4] |= words[0] << byte % 4 * 8;
            chunks[i][1] |= words[1];
        }
    }
}

/* Two e4m3, in the low bytes of each half of a word, to DTYPE. Their exponent goes to the low bits
 * of the wider one, and a product rebiases it, denormals too. NaN has all other bits set. */
__device__ __forceinline__ uint32_t from_e4m3x2(uint32_t pair)
{
    uint32_t magnitude = pair & 0x007f007f, value;
    uint32_t is_nan = (magnitude + 0x00010001 & 0x00800080) >> 7;
    uint32_t bits = (pair & 0x00800080) << 8 | magnitude << (DTYPE == DT_BF16 ? 4 : 7);
    if (DTYPE == DT_BF16)
        asm("fma.rn.bf16x2 %0, %1, %2, %3;"
            : "=r"(value)
            : "r"(bits), "r"(0x7b807b80), "r"(0x80008000)); /* 2^120, -0 */
    else
        asm("fma.rn.f16x2 %0, %1, %2, %3;"
            : "=r"(value)
            : "r"(bits), "r"(0x5c005c00), "r"(0x80008000)); /* 2^8, -0 */
    return value | is_nan * 0x7fff;
}

template <int pitch>
__device__ __forceinline__ void put_rows(uint32_t to, const uint32_t (&chunks)[FETCHED(pitch)][2])
{
    uint32_t thread = thread_again();
    constexpr int groups = pitch / 16 / GROUP_CHUNKS(pitch);
#pragma unroll
    for (int i = 0; i < FETCHED(pitch); i++) {
        int line = thread / GROUP_CHUNKS(pitch) + i / groups * PASS_LINES(pitch);
        int chunk = thread % GROUP_CHUNKS(pitch) + i % groups * GROUP_CHUNKS(pitch);
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; w++)
            words[w] = from_e4m3x2(__byte_perm(chunks[i][w / 2], 0, w % 2 ? 0x4342 : 0x4140));
        if (BN % PASS_LINES(pitch) == 0 || line < BN)
            store_shared_16(to + tile_at<pitch>(line, chunk), words);
    }
}

__device__ __forceinline__ bool is_fetched(const struct block *block, int tile)
{
    return IS_CONVERTED && tile < block->end && is_of_prefix(block, tile);
}

__device__ __forceinline__ void fetch(struct fetched *fetched,
                                      const struct attention_cuda_args *args,
                                      const struct block *block, int tile)
{
    if (!is_fetched(block, tile))
        return;
    fetch_rows<Q_PITCH, ALIGN_K_CACHE>(fetched->k, args, &args->k_cache, block->k_cache, block,
                                       tile);
    fetch_rows<V_PITCH, ALIGN_V_CACHE>(fetched->v, args, &args->v_cache, block->v_cache, block,
                                       tile);
}

__device__ __forceinline__ void put_fetched(const struct fetched *fetched,
                                            const struct block *block, uint32_t stages, int tile)
{
    if (!is_fetched(block, tile))
        return;
    put_rows<Q_PITCH>(stage_of(stages, tile), fetched->k);
    put_rows<V_PITCH>(stage_of(stages, tile) + K_BYTES, fetched->v);
}

/* ---- Factors --------------------------------------------------------------------------------- */

/* Scores get k's factor with theirs if it is above 0, else ahead of it. */
__device__ __forceinline__ void multiply_factors(float *scale, float *sign, float *inner,
                                                 float k_scale)
{
    if (!is_finite(k_scale))
        return;
    if (HAS_SOFTCAP && *inner != 0.0f)
        *inner *= k_scale;
    else if (k_scale > 0.0f)
        *scale = fmaxf(*scale * k_scale, 1e-37f);
    else
        *sign *= k_scale;
}

/* The lines of a tile that are keys. */
__device__ __forceinline__ void multiply_lines(char *tile, int lines, int pitch, float factor)
{
    for (int i = thread_again() * 2; i < lines * pitch && !is_finite(factor); i += THREADS * 2)
        store_from_f32(DTYPE, tile + i, load_as_f32(DTYPE, tile + i) * factor);
}

/* By the whole block, of a tile of the prefix that is there. */
__device__ __forceinline__ void apply_wild_factors(const struct block *block, char *stages,
                                                   int tile)
{
    if (!KV_SCALE || !is_of_prefix(block, tile) ||
        (is_finite(block->k_scale) && is_finite(block->v_scale)))
        return;
    char *k = stages + tile % STAGES * STAGE_BYTES;
    int lines = min(BN, block->rows.prefix - tile * BN);
    multiply_lines(k, lines, Q_PITCH, block->k_scale);
    multiply_lines(k + K_BYTES, lines, V_PITCH, block->v_scale);
    __syncthreads();
}
#endif
