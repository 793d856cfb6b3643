/* Rows of a paged cache, copied to shared memory by one warp. sm_80 and up.
 *
 * Token i of a sequence is row i % PAGE of page table[i / PAGE]. A warp copies `rows` tokens at a
 * time; lane l holds the page of token l % rows, which it has loaded one tile ahead, so that the
 * copies need not wait for the table. What a table holds is never trusted: a page outside the cache
 * is read as page 0, and tokens that are not seen become zeros without a read of either.
 *
 *     struct kv_span span = { table, begin, end, pages };
 *     int page = kv_page<PAGE, rows>(span, first);                        ahead
 *     kv_copy<PAGE, rows, bytes, align>(to, cache, span, first, page);    cp_async_commit() is the
 *                                                                         caller's
 *
 * In shared memory a row of `bytes` (a multiple of 32) has a pitch of bytes + 16, so that the eight
 * rows of an ldmatrix lie in different banks. */
#ifndef QN_CUDA_KV_PAGES_CUH
#define QN_CUDA_KV_PAGES_CUH
#include "common/cuda/cp_async.cuh"
#include "common/cuda/load.cuh"

#define KV_PITCH(bytes) ((bytes) + 16)

/* Tokens [begin, end) that are seen; pages: of the cache. */
struct kv_span {
    const int32_t *table;
    int begin, end, pages;
};

/* One head of a cache; strides in bytes. */
struct kv_rows {
    const char *data;
    int64_t page, token;
};

/* The page of this lane's token of the tile from token `first` on. */
template <int page_tokens, int rows>
__device__ __forceinline__ int kv_page(const struct kv_span &span, int first)
{
    int token = first + (page_tokens < rows ? threadIdx.x % rows : 0);
    if (page_tokens >= rows)
        token = max(token, span.begin);
    if (token < span.begin || token >= span.end)
        return 0;
    int page = span.table[token / page_tokens];
    return (uint32_t)page < (uint32_t)span.pages ? page : 0;
}

/* 16 bytes, in accesses of what both sides are aligned to; zeros unless `is_seen`. */
template <int align>
__device__ __forceinline__ void kv_copy_chunk(uint32_t to, const char *from, bool is_seen)
{
    if (align == 16)
        cp_async_16(to, from, is_seen ? 16 : 0);
#pragma unroll
    for (int i = 0; align == 8 && i < 16; i += 8)
        cp_async_8(to + i, from + i, is_seen ? 8 : 0);
#pragma unroll
    for (int i = 0; align == 4 && i < 16; i += 4)
        cp_async_4(to + i, from + i, is_seen ? 4 : 0);
    if (align < 4) {
        uint32_t words[4] = {};
#pragma unroll
        for (int i = 0; i < 16; i += align) {
            uint32_t part = 0;
            if (is_seen)
                load_words(&part, from + i, align);
            words[i / 4] |= part << i % 4 * 8;
        }
        store_shared_16(to, words);
    }
}

/* Where a pass of the warp is whole rows of one page, the next pass is a step away; else each row
 * is found by itself. is_whole: all tokens are seen. */
template <int page_tokens, int rows, int bytes, int align, bool is_whole>
__device__ __forceinline__ void kv_copy_rows(uint32_t to, const struct kv_rows &cache,
                                             const struct kv_span &span, int first, int page)
{
    constexpr int chunks = bytes / 16, pass = 32 / chunks;
    constexpr bool is_even = pass * chunks == 32 && page_tokens >= rows;
    const int lane = threadIdx.x % 32;
    const char *from = cache.data;
    if (page_tokens >= rows)
        from += page * cache.page + first % page_tokens * cache.token;
    if (is_even)
        from += lane / chunks * cache.token + lane % chunks * 16;
#pragma unroll(align < 4 ? 1 : 64)
    for (int i = 0; i < rows * chunks; i += 32) {
        int row = (i + lane) / chunks, chunk = (i + lane) % chunks;
        const char *at = from;
        if (!is_even && page_tokens >= rows)
            at += row * cache.token + chunk * 16;
        if (page_tokens < rows) {
            int64_t of_row = __shfl_sync(~0u, page, row);
            at += of_row * cache.page + row % page_tokens * cache.token + chunk * 16;
        }
        bool is_seen = is_whole || (first + row >= span.begin && first + row < span.end);
        kv_copy_chunk<align>(to + row * KV_PITCH(bytes) + chunk * 16, is_seen ? at : cache.data,
                             is_seen);
        if (is_even)
            from += pass * cache.token;
    }
}

/* Tokens [first, first + rows) to `to`; first is a multiple of rows, rows a power of two up to 32.
 * Pages of at least as many tokens then hold all of them. */
template <int page_tokens, int rows, int bytes, int align>
__device__ __forceinline__ void kv_copy(uint32_t to, const struct kv_rows &cache,
                                        const struct kv_span &span, int first, int page)
{
    static_assert(rows * (bytes / 16) % 32 == 0, "all lanes copy as much");
    if (first >= span.begin && first + rows <= span.end)
        kv_copy_rows<page_tokens, rows, bytes, align, true>(to, cache, span, first, page);
    else
        kv_copy_rows<page_tokens, rows, bytes, align, false>(to, cache, span, first, page);
}
#endif
