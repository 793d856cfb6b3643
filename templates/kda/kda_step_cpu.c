/* A token of each sequence through filter, gated delta rule and norm. A block of the grid is a
 * group (a head of q and k, x, with its HV / H value heads) of some sequences (y):
 *
 *     1. The filter of q and k is transposed once, then for each sequence it gives the group's
 *        query and key, and its state moves on.
 *     2. Then each value head: the filter of v, and for each sequence
 *        2a. the value, gate and norms of query and key, as the recurrence takes them
 *        2b. the head's state, BV columns at a time, from memory and back (kda_decode_work.h)
 *        2c. o, rounded to DTYPE, normalised and gated (kda_norm_row.h)
 *
 * Nobody else reads what a group's filter overwrites: that is why a block has all of one. Memory is
 * what it waits for: 128 KiB a head of 128 by 128 f32, there and back. A sequence whose slot is
 * outside the pools gets zeros for o and nothing else is touched. */
#define STEPS 1
#define POOL 1
#define HAS_FROM 1
#define HAS_TO 1
#define SAVE 0
#define TREE 0
#include "conv_filter.h"
#include "kda_decode_work.h"
#include "kda_norm_row.h"
#include "kda_step_args.h"

#ifndef SHARE
#define SHARE 16 /* sequences of a block, at most */
#endif
#ifndef NORM_ACT
#define NORM_ACT KDA_NORM_SIGMOID /* KDA_NORM_UNGATED: no norm */
#endif
#ifndef Z_DTYPE
#define Z_DTYPE DT_BF16
#endif
#ifndef NORM_WEIGHT
#define NORM_WEIGHT DT_F32
#endif

#define HEADS (HV / H) /* of a group */

/* Rows of DTYPE, in room for any. */
typedef uint32_t key_row[K];
typedef uint32_t value_row[V];

/* A sequence of the block. */
struct member {
    int64_t sequence, slot;
    int is_used;
    key_row query, key;
};

/* ---- The filter ------------------------------------------------------------------------------ */

INLINE char *conv_row(const struct kda_step_args *args, const struct member *of, int row,
                      int64_t channel)
{
    return (char *)element(DTYPE, args->conv_states,
                           of->slot * args->conv_slot + row * args->conv_row + channel);
}

/* `count` channels from `channel` on, those of `filter`; then their state moves on. */
INLINE void convolve(const struct kda_step_args *args, const struct member *of,
                     const struct filter *filter, int64_t channel, const int count, void *out)
{
    const void *rows[W], *now = element(DTYPE, args->x, of->sequence * args->x_sequence + channel);
    for (int j = 0; j < W - 1; j++)
        rows[j] = conv_row(args, of, j, channel);
    rows[W - 1] = now;
    filter_one(filter, rows, &out, count);
    for (int j = 0; j < W - 1; j++)
        __builtin_memcpy(conv_row(args, of, j, channel), rows[j + 1], count * DT_SIZE(DTYPE));
}

INLINE void load_filter(const struct kda_step_args *args, struct filter *filter, int64_t channel,
                        int count)
{
    filter_load(filter, element(WEIGHT, args->weight, channel * args->weight_pitch),
                args->weight_pitch, BIAS ? element(BIAS, args->bias, channel) : 0, count);
}

/* ---- 1. -------------------------------------------------------------------------------------- */

APART void members_begin(const struct kda_step_args *args, int64_t key_head, struct member *members,
                         int count)
{
    struct filter q, k;
    load_filter(args, &q, key_head * K, K);
    load_filter(args, &k, (H + key_head) * K, K);
    for (int i = 0; i < count; i++) {
        if (!members[i].is_used)
            continue;
        convolve(args, &members[i], &q, key_head * K, K, members[i].query);
        convolve(args, &members[i], &k, (H + key_head) * K, K, members[i].key);
    }
}

/* ---- 2. -------------------------------------------------------------------------------------- */

INLINE struct kda_rows row_at(const void *data)
{
    return (struct kda_rows){ .data = data };
}

/* Where the state begins that comes after member i's of a value head: the next member's, or the
 * first's of the next head, which may be another block's; NULL: not known. */
INLINE const char *state_after(const struct kda_step_args *args, const struct member *members,
                               int i, int count, int64_t head)
{
    for (int j = i + 1; j < i + 1 + count; j++) {
        const struct member *next = &members[j % count];
        const struct place at = { .head = head + (j >= count) };
        if (next->is_used)
            return at.head < HV ? slab_of(&args->decode.from, next->slot, 0, &at) : 0;
    }
    return 0;
}

/* The recurrence of one value head, o to `to`. */
INLINE void recur(const struct kda_step_args *args, const struct member *of, int64_t head,
                  const void *value, const char *next, void *to)
{
    struct kda_decode_args decode = args->decode;
    struct place at = { of->sequence, of->slot, of->slot, head, 0 };
    struct token token;
    float o[1][BV];
    decode.q = row_at(of->query);
    decode.k = row_at(of->key);
    decode.v = row_at(value);
    load_factors(&decode, &at, 0, &token);
    for (; at.column < V; at.column += BV) {
        const char *right = element(STATE, slab_of(&decode.from, of->slot, 0, &at), BV);
        load_value(&decode, &at, 0, &token);
        slab_advance(&decode, &at, &token, at.column + BV < V ? right : next, o);
        for (int c = 0; c < BV; c += VW)
            store_from_f32(DTYPE, (void *)element(DTYPE, to, at.column + c),
                           *(const vec_f32_any *)(o[0] + c));
    }
}

APART void head_step(const struct kda_step_args *args, int64_t head, const struct member *members,
                     int count)
{
    const struct norm_row norm = { DTYPE, Z_DTYPE, NORM_WEIGHT, NORM_ACT, V };
    const int64_t channel = 2 * H * K + head * V;
    struct filter filter;
    load_filter(args, &filter, channel, V);
    for (int i = 0; i < count; i++) {
        const struct member *of = &members[i];
        void *out = (void *)row_of(DTYPE, &args->decode.o, of->sequence, 0, head);
        value_row value, o;
        if (!of->is_used) {
            __builtin_memset(out, 0, V * DT_SIZE(DTYPE));
            continue;
        }
        convolve(args, of, &filter, channel, V, value);
        recur(args, of, head, value, state_after(args, members, i, count, head),
              NORM_ACT == KDA_NORM_UNGATED ? out : o);
        if (NORM_ACT != KDA_NORM_UNGATED)
            normalise(norm, o, row_of(Z_DTYPE, &args->z, of->sequence, 0, head), args->norm_weight,
                      out, args->eps);
    }
}

/* ---- The block ------------------------------------------------------------------------------- */

void kda_step_main(const struct kda_step_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    struct member members[SHARE];
    int64_t first = y * args->share, left = args->decode.n - first;
    int count = (int)(left < args->share ? left : args->share);
    (void)z;
    for (int i = 0; i < count; i++) {
        int64_t slot = args->decode.slots[first + i];
        members[i].sequence = first + i;
        members[i].slot = slot;
        members[i].is_used = slot >= 0 && slot < args->decode.capacity;
    }
    members_begin(args, x, members, count);
    for (int r = 0; r < HEADS; r++)
        head_step(args, x * HEADS + r, members, count);
}
