/* fused_qk_norm_rope: one block of the grid handles args->block tokens. Of each
 *
 *     1. cosines and sines of all pairs, for all heads
 *     2. a head into a row of f32 on the stack, its sum of squares on the way
 *     3. times 1 / root of the mean square and the weight
 *     4. pairs rotated; interleaved ones are taken apart before and put together afterwards
 *     5. back to where it came from */
#include "common/cpu/dtype.h"
#include "common/cpu/exp.h"
#include "norm_rope/fused_qk_norm_rope_args.h"

#ifndef D
#define D 128
#endif
#ifndef ROTARY_DIM
#define ROTARY_DIM D
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef IS_INDEX_64
#define IS_INDEX_64 0
#endif
#ifndef IS_INTERLEAVED
#define IS_INTERLEAVED 0
#endif

#define HALF (ROTARY_DIM / 2)

typedef double vec_f64 __attribute__((vector_size(8 * VW)));

/* Of a token; HALF is a multiple of 8, a vector may be 16 wide. */
struct angles {
    float cosine[HALF + VW], sine[HALF + VW];
};

/* Sines and cosines of the angles: of the angle less the nearest quarters of a turn by polynomials,
 * then exchanged and negated as those quarters say. In f64 up to what is left of a turn, so that
 * large angles lose nothing. */
INLINE void sine_cosine(vec_f32 angle, vec_f32 *sine, vec_f32 *cosine)
{
    const double shift = 0x1.8p52;
    vec_f64 quarters = __builtin_convertvector(angle, vec_f64) * 0.6366197723675814;
    vec_f64 whole = (quarters + shift) - shift;
    vec_f64 bounded = whole - 4 * (((whole * 0.25) + shift) - shift); /* -2 to 2 */
    vec_i32 turn = __builtin_convertvector(__builtin_convertvector(bounded, vec_f32), vec_i32);
    vec_f32 x = __builtin_convertvector((quarters - whole) * 1.5707963267948966, vec_f32);
    vec_f32 square = x * x;
    vec_f32 s =
        ((-1.9515296e-4f * square + 8.3321609e-3f) * square - 1.6666655e-1f) * square * x + x;
    vec_f32 c =
        ((2.4433157e-5f * square - 1.3887316e-3f) * square + 4.1666646e-2f) * square * square -
        0.5f * square + 1.0f;
    vec_i32 is_odd = (turn & 1) != 0;
    vec_u32 sine_sign = (vec_u32)(turn & 2) << 30, cosine_sign = (vec_u32)((turn + 1) & 2) << 30;
    *sine = (vec_f32)((vec_u32)select_f32(is_odd, c, s) ^ sine_sign);
    *cosine = (vec_f32)((vec_u32)select_f32(is_odd, s, c) ^ cosine_sign);
}

static void load_angles(struct angles *angles, const struct fused_qk_norm_rope_args *args,
                        int64_t token)
{
    const float position = IS_INDEX_64 ? (float)((const int64_t *)args->positions)[token]
                                       : (float)((const int32_t *)args->positions)[token];
    for (int i = 0; i < HALF; i += VW) {
        vec_f32 turns = HALF - i >= VW ? (vec_f32)load_u32(args->turns + i)
                                       : load_part_as_f32(DT_F32, args->turns + i, HALF - i);
        vec_f32 sine, cosine;
        sine_cosine(turns * position, &sine, &cosine);
        store_u32(angles->sine + i, (vec_u32)(sine * args->attention_factor));
        store_u32(angles->cosine + i, (vec_u32)(cosine * args->attention_factor));
    }
}

/* The head in f32, normalised. */
static void normalise(float *values, const void *head, const void *weight, float eps)
{
    vec_f32 sums = splat_f32(0);
    for (int i = 0; i < D; i += VW) {
        vec_f32 x = load_as_f32(DTYPE, element(DTYPE, head, i));
        store_u32(values + i, (vec_u32)x);
        sums += x * x;
    }
    const vec_f32 factor = rsqrt_f32(splat_f32(sum_lanes(sums) / D + eps));
    for (int i = 0; i < D; i += VW) {
        vec_f32 x = (vec_f32)load_u32(values + i);
        store_u32(values + i,
                  (vec_u32)(x * factor * load_as_f32(DTYPE, element(DTYPE, weight, i))));
    }
}

INLINE vec_f32 load_some(const float *p, int count)
{
    return count >= VW ? (vec_f32)load_u32(p) : load_part_as_f32(DT_F32, p, count);
}

INLINE void store_some(float *p, vec_f32 value, int count)
{
    if (count >= VW)
        store_u32(p, (vec_u32)value);
    else
        store_part_from_f32(DT_F32, p, value, count);
}

/* HALF pairs (a, b). */
INLINE void rotate_pairs(float *a, float *b, const struct angles *angles)
{
    for (int i = 0; i < HALF; i += VW) {
        vec_f32 left = load_some(a + i, HALF - i), right = load_some(b + i, HALF - i);
        vec_f32 cosine = (vec_f32)load_u32(angles->cosine + i);
        vec_f32 sine = (vec_f32)load_u32(angles->sine + i);
        store_some(a + i, left * cosine - right * sine, HALF - i);
        store_some(b + i, right * cosine + left * sine, HALF - i);
    }
}

/* The first ROTARY_DIM values. */
static void rotate(float *values, const struct angles *angles)
{
    float a[HALF + 1], b[HALF + 1];
    if (!IS_INTERLEAVED) {
        rotate_pairs(values, values + HALF, angles);
        return;
    }
    for (int i = 0; i < HALF; i++)
        a[i] = values[2 * i], b[i] = values[2 * i + 1];
    rotate_pairs(a, b, angles);
    for (int i = 0; i < HALF; i++)
        values[2 * i] = a[i], values[2 * i + 1] = b[i];
}

void fused_qk_norm_rope_main(const struct fused_qk_norm_rope_args *args, uint32_t x, uint32_t y,
                             uint32_t z)
{
    (void)y, (void)z;
    int64_t begin = (int64_t)x * args->block, end = begin + args->block;
    for (int64_t token = begin; token < end && token < args->tokens; token++) {
        struct angles angles;
        load_angles(&angles, args, token);
        for (int64_t h = 0; h < args->heads; h++) {
            void *head = (void *)element(DTYPE, args->qkv, token * args->token + h * args->head);
            float values[D];
            normalise(values, head, h < args->hq ? args->q_weight : args->k_weight, args->eps);
            rotate(values, &angles);
            for (int i = 0; i < D; i += VW)
                store_from_f32(DTYPE, (void *)element(DTYPE, head, i),
                               (vec_f32)load_u32(values + i));
        }
    }
}
