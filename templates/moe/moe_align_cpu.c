/* Slots sorted by expert: a counting sort, one block of the grid for each chunk of slots.
 *
 *     moe_align_count   1. how many slots of its chunk are in each bucket
 *     moe_align_sort    1. how many there are of each bucket, and in the chunks ahead
 *                       2. where each bucket starts
 *                       3. every slot of the chunk to its row
 *                       4. a share of the rows that no slot has, and of expert_ids
 *                       5. block 0: what there is one of
 *
 * Bucket 0 has the slots of no expert, bucket e + 1 those of expert e. */
#include "common/cpu/vec.h"
#include "moe/moe_align_args.h"

#define BUCKETS_MOST 1025

struct buckets {
    int32_t total[BUCKETS_MOST];     /* slots of each */
    int32_t start[BUCKETS_MOST + 1]; /* its first row; then the rows in use */
    int32_t next[BUCKETS_MOST];      /* row of its next slot in this chunk */
};

/* A slot, and where its token's are. */
struct cursor {
    int32_t slot, token, j;
};

INLINE struct cursor cursor_at(const struct moe_align_args *args, int64_t slot)
{
    int32_t token = (int32_t)(slot / args->topk);
    return (struct cursor){ (int32_t)slot, token, (int32_t)(slot % args->topk) };
}

INLINE void advance(const struct moe_align_args *args, struct cursor *at)
{
    at->slot++;
    if (++at->j == args->topk)
        at->token++, at->j = 0;
}

INLINE int32_t bucket_of(const struct moe_align_args *args, const struct cursor *at)
{
    uint32_t id = (uint32_t)args->ids[at->token * args->ids_token + at->j];
    if (args->expert_map)
        id = id < (uint32_t)args->global ? (uint32_t)args->expert_map[id] : (uint32_t)-1;
    return id < (uint32_t)args->experts ? (int32_t)id + 1 : 0;
}

INLINE int32_t chunk_end(const struct moe_align_args *args, uint32_t chunk)
{
    int64_t end = ((int64_t)chunk + 1) * args->chunk;
    return end < args->slots ? (int32_t)end : args->slots;
}

void moe_align_count(const struct moe_align_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    int32_t *counts = args->counts + (int64_t)x * (args->experts + 1);
    (void)y, (void)z;
    for (int32_t b = 0; b <= args->experts; b++)
        counts[b] = 0;
    struct cursor at = cursor_at(args, x * (int64_t)args->chunk);
    for (const int32_t end = chunk_end(args, x); at.slot < end; advance(args, &at))
        counts[bucket_of(args, &at)]++;
}

/* Without counts there is one chunk. */
static void count_all(const struct moe_align_args *args, uint32_t chunk, struct buckets *buckets)
{
    const int32_t count = args->experts + 1;
    const uint32_t chunks = (uint32_t)(((int64_t)args->slots + args->chunk - 1) / args->chunk);
    for (int32_t b = 0; b < count; b++)
        buckets->total[b] = buckets->next[b] = 0;
    for (struct cursor at = { 0 }; !args->counts && at.slot < args->slots; advance(args, &at))
        buckets->total[bucket_of(args, &at)]++;
    for (uint32_t c = 0; args->counts && c < chunks; c++) {
        for (int32_t b = 0; b < count; b++) {
            int32_t found = args->counts[(int64_t)c * count + b];
            buckets->total[b] += found;
            buckets->next[b] += c < chunk ? found : 0;
        }
    }
}

static void lay_out(const struct moe_align_args *args, struct buckets *buckets)
{
    int32_t row = 0;
    for (int32_t b = 0; b <= args->experts; b++) {
        int32_t padded = (buckets->total[b] + args->block - 1) / args->block * args->block;
        buckets->start[b] = row;
        buckets->next[b] += row;
        row += b || args->is_filtered_kept ? padded : 0;
    }
    buckets->start[args->experts + 1] = row;
}

static void scatter(const struct moe_align_args *args, uint32_t chunk, struct buckets *buckets)
{
    struct cursor at = cursor_at(args, chunk * (int64_t)args->chunk);
    for (const int32_t end = chunk_end(args, chunk); at.slot < end; advance(args, &at)) {
        int32_t b = bucket_of(args, &at), has_row = b || args->is_filtered_kept;
        int32_t row = has_row ? buckets->next[b]++ : -1;
        if (has_row && args->sorted)
            args->sorted[row] = args->share == 1 ? at.slot : at.token;
        if (args->positions)
            args->positions[at.token * args->positions_token + at.j] = row;
    }
}

/* Rows [begin, end) of `sorted` and the blocks that begin there. */
static void fill(const struct moe_align_args *args, const struct buckets *buckets, int32_t begin,
                 int32_t end)
{
    for (int32_t b = 0; b <= args->experts + 1; b++) {
        int32_t is_end = b > args->experts;
        int32_t first = buckets->start[b], last = is_end ? args->rows : buckets->start[b + 1];
        int32_t empty = is_end || first == last ? first : first + buckets->total[b];
        last = last < end ? last : end;
        for (int32_t row = empty > begin ? empty : begin; args->sorted && row < last; row++)
            args->sorted[row] = args->padding;
        first = first > begin ? first : begin;
        for (int32_t i = (first + args->block - 1) / args->block;
             args->expert_ids && i < (last + args->block - 1) / args->block; i++)
            args->expert_ids[i] = is_end ? -1 : b - 1;
    }
}

static void write_sizes(int32_t *sizes, int64_t row, int32_t m, int32_t n, int32_t k)
{
    if (!sizes)
        return;
    sizes[row] = m, sizes[row + 1] = n, sizes[row + 2] = k;
}

static void write_tables(const struct moe_align_args *args, const struct buckets *buckets)
{
    int32_t padded = 0;
    if (args->rows_used)
        args->rows_used[0] = buckets->start[args->experts + 1];
    for (int32_t e = 0; e < args->experts; e++) {
        int32_t m = buckets->total[e + 1];
        if (args->offsets)
            args->offsets[e] = buckets->start[e + 1];
        if (args->blockscale_offsets)
            args->blockscale_offsets[e] = padded;
        padded += (m + 127) / 128 * 128;
        write_sizes(args->problem_sizes1, e * args->sizes1_row, m, 2 * args->n, args->k);
        write_sizes(args->problem_sizes2, e * args->sizes2_row, m, args->k, args->n);
    }
    if (args->offsets)
        args->offsets[args->experts] = buckets->start[args->experts + 1];
    if (args->blockscale_offsets)
        args->blockscale_offsets[args->experts] = padded;
}

void moe_align_sort(const struct moe_align_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    const int64_t chunks = args->slots ? ((int64_t)args->slots + args->chunk - 1) / args->chunk : 1;
    struct buckets buckets;
    (void)y, (void)z;
    count_all(args, x, &buckets);
    lay_out(args, &buckets);
    scatter(args, x, &buckets);
    fill(args, &buckets, (int32_t)(args->rows * (int64_t)x / chunks),
         (int32_t)(args->rows * ((int64_t)x + 1) / chunks));
    if (x == 0)
        write_tables(args, &buckets);
}
