/* A warp's part of a piece: ROWS query rows against tiles of WARP_TOKENS tokens, by mma.sync with
 * the tokens as rows, so that a few queries fill a fragment:
 *
 *     S^T = K Q^T      a: 16 tokens x 16 of d, from shared memory    b: 16 of d x 8 queries, kept
 *     P^T = exp2(S^T - m), as b: 16 tokens x 8 queries               movmatrix turns it around
 *     O^T += V^T P^T   a: 16 of dv x 16 tokens, V read transposed
 *
 * A lane has queries 2 (lane % 4) and the next of every eight, in S^T, in P^T and in O^T alike: the
 * maximum and the sum of a query are of the lane, and nothing is sent about to rescale O^T.
 *
 * A cache of e4m3 is multiplied as f16, which holds all its values. An 8x8 fragment of 16-bit
 * elements that ldmatrix loads is then one of 16 bytes a row: K's has 4 of d a lane (FRAGMENT_D),
 * of which the two fragments along d take two each, V's two of dv in two tokens, for rows g and
 * g + 8 of a fragment. Queries, and columns of o, are where that puts them. A query of bf16 is
 * divided by a power of two, so that f16 holds it; its scores are multiplied by that. */
#ifndef DECODE_WARP_CUH
#define DECODE_WARP_CUH
#include "common/cuda/kv_pages.cuh"
#include "common/cuda/ldmatrix.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/split_kv.cuh"

#define KV_SIZE DT_SIZE(KV_DTYPE)
#define IS_FP8 (KV_DTYPE == DT_E4M3)
#define M_TILES (WARP_TOKENS / 16)
#define K_BYTES (D * KV_SIZE)
#define V_BYTES (DV * KV_SIZE)
#define STAGE_K (WARP_TOKENS * KV_PITCH(K_BYTES))
#define STAGE_BYTES (STAGE_K + WARP_TOKENS * KV_PITCH(V_BYTES))
#define HAS_SHARED_WINDOW (HAS_SHARED && HAS_WINDOW)
/* f16 has 2^-24 to 2^15 for exponentials. */
#define P_SHIFT (KV_DTYPE == DT_BF16 ? 0.0f : 15.0f)
#define P_LEAST 0x1p-24f
#define LOG2E 1.4426950408889634f

/* What a warp has of the queries: fragments, and what scores are multiplied by. */
struct queries {
    uint32_t b[D / 16][N_TILES][2];
    float scale[N_TILES][2];
};

/* What it has of o, and m and l of it; l is this lane's share. */
struct sums {
    float o[DV / 16][N_TILES][4];
    float m[N_TILES][2], l[N_TILES][2];
};

__device__ __forceinline__ void mma_kv(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2])
{
    if (KV_DTYPE == DT_BF16)
        mma_bf16(d, a, b[0], b[1]);
    else
        mma_f16(d, a, b[0], b[1]);
}

/* An 8x8 matrix of 16-bit elements, transposed among the lanes. */
__device__ __forceinline__ uint32_t transposed(uint32_t matrix)
{
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(matrix));
    return matrix;
}

/* Four e4m3 to f16, two by two. */
__device__ __forceinline__ void f16_from_e4m3(uint32_t &low, uint32_t &high, uint32_t bytes)
{
#if __CUDA_ARCH__ >= 890
    asm("{\n"
        ".reg .b16 l, h;\n"
        "mov.b32 {l, h}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, l;\n"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n"
        "}"
        : "=r"(low), "=r"(high)
        : "r"(bytes));
#else
    /* Exponent and mantissa in place, rebiased by a product: denormals come out right, and NaN is
     * put in by hand. */
    uint32_t *to[2] = { &low, &high };
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t bits = __byte_perm(bytes, 0, i ? 0x3424 : 0x1404);
        uint32_t nan = ((bits & 0x7f007f00) + 0x01000100) >> 15 & 0x00010001;
        asm("mul.rn.f16x2 %0, %1, %2;"
            : "=r"(*to[i])
            : "r"((bits & 0x80008000) | (bits >> 1 & 0x3f803f80)), "r"(0x5c005c00));
        *to[i] |= nan * 0x7fff;
    }
#endif
}

/* ---- Queries ------------------------------------------------------------------------------- */

/* The pair that starts at element `at` of a row. */
__device__ __forceinline__ uint32_t load_pair(const void *row, int at)
{
    const uint16_t *from = (const uint16_t *)row + at;
    if (ALIGN_Q >= 4)
        return *(const uint32_t *)from;
    return from[0] | (uint32_t)from[1] << 16;
}

/* The exponent to divide a query by. A row of bf16 stands in four lanes. */
__device__ __forceinline__ float power_of_query(const struct queries &q, int tile)
{
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < D / 16 * 2; i++) {
        uint32_t pair = q.b[i / 2][tile][i % 2] & 0x7fff7fff;
        most = max(most, max(pair << 16, pair & 0xffff0000));
    }
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    most &= 0x7f800000;
    return most == 0 || most == 0x7f800000 ? 1.0f : __uint_as_float(min(most, 253u << 23));
}

/* Pairs of bf16 divided by a power of two, as f16. */
__device__ __forceinline__ void to_f16(struct queries &q, int tile, float power)
{
    float factor = __uint_as_float((254u << 23) - __float_as_uint(power));
#pragma unroll
    for (int i = 0; i < D / 16 * 2; i++) {
        uint32_t pair = q.b[i / 2][tile][i % 2];
        q.b[i / 2][tile][i % 2] = f16x2_from_f32(__uint_as_float(pair << 16) * factor,
                                                 __uint_as_float(pair & 0xffff0000) * factor);
    }
}

/* row_of(i): query i of the unit, NULL for none, which reads as zeros. `scale` goes with all. */
template <class Row>
__device__ __forceinline__ void queries_load(struct queries &q, Row row_of, float scale)
{
    int group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int tile = 0; tile < N_TILES; tile++) {
        const void *row = row_of(tile * 8 + group);
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            int first = i * 16 + (IS_FP8 ? 4 : 2) * t;
            q.b[i][tile][0] = row ? load_pair(row, first) : 0;
            q.b[i][tile][1] = row ? load_pair(row, first + (IS_FP8 ? 2 : 8)) : 0;
        }
        float power = 1.0f;
        if (IS_FP8 && DTYPE == DT_BF16) {
            power = power_of_query(q, tile);
            to_f16(q, tile, power);
        }
#pragma unroll
        for (int j = 0; j < 2; j++)
            q.scale[tile][j] = scale * __shfl_sync(~0u, power, (2 * t + j) * 4);
    }
}

/* ---- One tile ------------------------------------------------------------------------------ */

/* S^T of 16 tokens whose rows begin at k. */
__device__ __forceinline__ void multiply_k(float (&s)[N_TILES][4], const struct queries &q,
                                           uint32_t k)
{
    int lane = threadIdx.x % 32;
    uint32_t row = k + lane % 16 * KV_PITCH(K_BYTES) + lane / 16 * 16;
    float odd[N_TILES][4] = {};
#pragma unroll
    for (int i = 0; i < K_BYTES / 32; i++) {
        uint32_t a[4];
        ldmatrix_x4(a, row + i * 32);
        if (IS_FP8) {
            uint32_t low[4], high[4];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                f16_from_e4m3(low[j], low[2 + j], a[j]);
                f16_from_e4m3(high[j], high[2 + j], a[2 + j]);
            }
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                mma_kv(s[n], low, q.b[2 * i % (D / 16)][n]);
                mma_kv(odd[n], high, q.b[(2 * i + 1) % (D / 16)][n]);
            }
            continue;
        }
#pragma unroll
        for (int n = 0; n < N_TILES; n++)
            mma_kv(i % 2 ? odd[n] : s[n], a, q.b[i % (D / 16)][n]);
    }
#pragma unroll
    for (int i = 0; i < 4 * N_TILES; i++)
        s[i / 4][i % 4] += odd[i / 4][i % 4];
}

/* V^T of 16 tokens and 32 bytes of dv: two fragments of e4m3, else one. row: this lane's, of the
 * chunk of the first 16 bytes. */
__device__ __forceinline__ void load_v(uint32_t (&a)[1 + IS_FP8][4], uint32_t row)
{
    uint32_t words[4];
    ldmatrix_x4_transposed(words, row);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (IS_FP8)
            f16_from_e4m3(a[i / 2 * IS_FP8][i % 2 * 2], a[i / 2 * IS_FP8][i % 2 * 2 + 1],
                          __byte_perm(words[i], 0, 0x3120));
        else
            a[0][i] = words[i];
    }
}

/* Where lane reads V from, transposed, of 16 tokens whose rows begin at v. */
__device__ __forceinline__ uint32_t row_of_v(uint32_t v)
{
    int lane = threadIdx.x % 32;
    int token = IS_FP8 ? lane % 16 : lane % 8 + lane / 16 * 8;
    int chunk = IS_FP8 ? lane / 16 : lane / 8 % 2;
    return v + token * KV_PITCH(V_BYTES) + chunk * 16;
}

/* O^T += V^T P^T of 16 tokens whose rows begin at v. */
__device__ __forceinline__ void multiply_v(struct sums &sums, const uint32_t (&p)[N_TILES][2],
                                           uint32_t v)
{
    uint32_t row = row_of_v(v), a[1 + IS_FP8][4];
#pragma unroll
    for (int i = 0; i < DV / 16; i++) {
        if (i % (1 + IS_FP8) == 0)
            load_v(a, row + i / (1 + IS_FP8) * 32);
#pragma unroll
        for (int n = 0; n < N_TILES; n++)
            mma_kv(sums.o[i][n], a[i % (1 + IS_FP8)], p[n]);
    }
}

/* The same with a window over the prefix. Where it begins there (is_mixed), at another token for
 * each sequence, it is a query at a time, since a value that one does not see may be NaN, and 0 NaN
 * is not 0; else all at once. */
__device__ __forceinline__ void multiply_v_window(struct sums &sums,
                                                  const uint32_t (&p)[N_TILES][2], uint32_t v,
                                                  int token, int seen_from, bool is_mixed)
{
    const int t = threadIdx.x % 4;
    uint32_t row = row_of_v(v);
#pragma unroll 1
    for (int query = 0; query < (is_mixed ? ROWS : 1); query++) {
        int from = is_mixed ? __shfl_sync(~0u, seen_from, query) : token;
        uint32_t a[1 + IS_FP8][4], seen[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int at = token + t * 2 + i * 8;
            seen[i] = (at >= from ? 0xffff : 0) | (at + 1 >= from ? 0xffff0000 : 0);
        }
#pragma unroll
        for (int i = 0; i < DV / 16; i++) {
            if (i % (1 + IS_FP8) == 0)
                load_v(a, row + i / (1 + IS_FP8) * 32);
            uint32_t(&all)[4] = a[i % (1 + IS_FP8)];
            uint32_t of_query[4] = { all[0] & seen[0], all[1] & seen[0], all[2] & seen[1],
                                     all[3] & seen[1] };
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                float o[4] = {};
                mma_kv(o, of_query, p[n]);
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sums.o[i][n][j] += !is_mixed || n * 8 + t * 2 + j % 2 == query ? o[j] : 0.0f;
            }
        }
    }
}

/* Scores as exponents of two: scaled, capped, those that are not seen away. */
__device__ __forceinline__ void scores_finish(float (&s)[M_TILES][N_TILES][4],
                                              const struct queries &q, float softcap, int token,
                                              const struct kv_span &span, int seen_from)
{
    bool is_whole = token >= span.begin && token + WARP_TOKENS <= span.end && !HAS_SHARED_WINDOW;
    int first = token + threadIdx.x % 32 / 4, query = threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int i = 0; i < 4 * N_TILES; i++) {
            float &score = s[m][i / 4][i % 4];
            score *= q.scale[i / 4][i % 2];
            if (HAS_SOFTCAP && softcap > 0.0f) {
                float twice = split_exp2(score * (2 * LOG2E / softcap));
                score = softcap * LOG2E * (1.0f - __fdividef(2.0f, twice + 1.0f));
            }
            int at = first + m * 16 + i % 4 / 2 * 8, from = span.begin;
            if (HAS_SHARED_WINDOW)
                from = __shfl_sync(~0u, seen_from, i / 4 * 8 + query + i % 2);
            if (!is_whole && (at < from || at >= span.end))
                score = SPLIT_NONE;
        }
    }
}

__device__ __forceinline__ void sums_clear(struct sums &sums)
{
    sums = {};
#pragma unroll
    for (int i = 0; i < 2 * N_TILES; i++)
        sums.m[i / 2][i % 2] = SPLIT_NONE;
}

/* The maximum over the tile, and what was summed before made to fit it. */
__device__ __forceinline__ void sums_rescale(struct sums &sums,
                                             const float (&s)[M_TILES][N_TILES][4])
{
    float keep[N_TILES][2];
    bool is_same = true;
#pragma unroll
    for (int i = 0; i < 2 * N_TILES; i++) {
        int n = i / 2, j = i % 2;
        float most = sums.m[n][j];
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
            most = fmaxf(most, fmaxf(s[m][n][j], s[m][n][j + 2]));
#pragma unroll
        for (int apart = 4; apart < 32; apart *= 2)
            most = fmaxf(most, __shfl_xor_sync(~0u, most, apart));
        keep[n][j] = split_factor(sums.m[n][j], most);
        is_same &= most == sums.m[n][j];
        sums.m[n][j] = most;
        sums.l[n][j] *= keep[n][j];
    }
    if (__all_sync(~0u, is_same))
        return;
#pragma unroll
    for (int i = 0; i < DV / 16 * N_TILES * 4; i++)
        sums.o[i / 4 / N_TILES][i / 4 % N_TILES][i % 4] *= keep[i / 4 % N_TILES][i % 2];
}

/* Exponentials of scores below their maxima, 2^P_SHIFT times as large; of what is seen none is 0,
 * so that an infinite value shows. */
__device__ __forceinline__ void exponentiate(float (&e)[4], const float (&s)[4], struct sums &sums,
                                             int n)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float m = sums.m[n][i % 2];
        e[i] = split_exp2(s[i] - ((m == SPLIT_NONE ? 0.0f : m) - P_SHIFT));
        if (KV_DTYPE != DT_BF16)
            e[i] = e[i] < P_LEAST && s[i] > SPLIT_NONE ? P_LEAST : e[i];
        sums.l[n][i % 2] += e[i];
    }
}

/* The warp's tile from `token` on, at `stage`. seen_from: with a window over the prefix, the first
 * token that query `lane` sees. */
__device__ __forceinline__ void attend(struct sums &sums, const struct queries &q, uint32_t stage,
                                       float softcap, int token, const struct kv_span &span,
                                       int seen_from)
{
    float s[M_TILES][N_TILES][4] = {};
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
        multiply_k(s[m], q, stage + m * 16 * KV_PITCH(K_BYTES));
    scores_finish(s, q, softcap, token, span, seen_from);
    sums_rescale(sums, s);
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        uint32_t p[N_TILES][2];
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
            float e[4];
            exponentiate(e, s[m][n], sums, n);
#pragma unroll
            for (int i = 0; i < 2; i++)
                p[n][i] = transposed(KV_DTYPE == DT_BF16 ? bf16x2_from_f32(e[2 * i], e[2 * i + 1])
                                                         : f16x2_from_f32(e[2 * i], e[2 * i + 1]));
        }
        const uint32_t v = stage + STAGE_K + m * 16 * KV_PITCH(V_BYTES);
        /* Not whether others' windows begin here decides how a sequence is summed. */
        if (HAS_SHARED_WINDOW)
            multiply_v_window(sums, p, v, token + m * 16, seen_from,
                              DETERMINISTIC || __any_sync(~0u, token + m * 16 < seen_from));
        else
            multiply_v(sums, p, v);
    }
}
#endif
