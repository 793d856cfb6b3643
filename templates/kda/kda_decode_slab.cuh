/* What kda_decode_cuda.cu is made of: accesses, sums over lanes, and the slab of a state that a
 * block has in registers, of which that file draws the picture. */
#ifndef KDA_DECODE_SLAB_CUH
#define KDA_DECODE_SLAB_CUH
#include "common/cuda/load.cuh"
#include "kda_decode_args.h"

#define THREADS (32 * WARPS)
#define SLABS (V / BV)
#define VEC (ACCESS / DT_SIZE(STATE)) /* elements of an access */
#define INNER (IS_VK ? K : BV)
#define OUTER (IS_VK ? BV : K)
#define LANES (INNER / VEC < 32 ? INNER / VEC : 32)
#define GROUPS (32 / LANES)
#define PER (INNER / LANES)           /* elements of a row that a lane has */
#define ROWS (OUTER / WARPS / GROUPS) /* rows that it has a part of */
#define ROUNDS_STATE (TREE && STATE != DT_F32)
static_assert(ROWS >= 1 && PER >= VEC, "a warp reads whole rows, a lane whole accesses");

/* ---- Elements and sums ----------------------------------------------------------------------- */

/* COUNT consecutive elements, loaded in accesses of at most `access` bytes. */
template <int dtype, int count> struct run {
    uint32_t words[(count * DT_SIZE(dtype) + 3) / 4];

    __device__ __forceinline__ void load(const void *p, int access)
    {
        const int bytes = count * DT_SIZE(dtype), piece = access < bytes ? access : bytes;
        if (piece == 2) {
#pragma unroll
            for (int i = 0; i < count; i++) {
                uint32_t bits = ((const uint16_t *)p)[i];
                words[i / 2] = i % 2 ? words[i / 2] | bits << 16 : bits;
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < bytes; i += piece)
            load_words(words + i / 4, (const char *)p + i, piece);
    }

    __device__ __forceinline__ float operator[](int i) const
    {
        return word_as_f32(dtype, words, i);
    }
};

/* x[0..count) summed over the `lanes` lanes that are `stride` apart. Each is left with held() sums,
 * those from first(lane) on, in x[0...]; where there are more lanes than sums, several have one. */
template <int count, int lanes, int stride> struct reduction {
    static const int held = count > lanes ? count / lanes : 1;
    static const int share = lanes > count ? lanes / count : 1;

    static __device__ __forceinline__ int first(int lane)
    {
        return lane / stride % lanes / share * held;
    }

    static __device__ __forceinline__ bool is_leader(int lane)
    {
        return lane / stride % share == 0;
    }

    static __device__ __forceinline__ void sum(float (&x)[count], int lane)
    {
        int left = count;
#pragma unroll
        for (int width = lanes / 2; width > 0; width /= 2) {
            const bool is_upper = lane / stride & width;
            const int half = left / 2;
#pragma unroll
            for (int i = 0; i < count / 2; i++) {
                if (i < half) {
                    float send = is_upper ? x[i] : x[i + half];
                    float keep = is_upper ? x[i + half] : x[i];
                    x[i] = keep + __shfl_xor_sync(0xffffffff, send, width * stride);
                }
            }
            if (left == 1)
                x[0] += __shfl_xor_sync(0xffffffff, x[0], width * stride);
            else
                left = half;
        }
    }
};

/* ---- Where things are ------------------------------------------------------------------------ */

/* What a thread works on. */
struct place {
    int64_t sequence, slot;
    int head, column; /* column: of v, the block's first */
    int warp, lane;
};

template <int dtype>
__device__ __forceinline__ const void *row_of(const struct kda_rows &rows, const struct place &at,
                                              int token, int head)
{
    return element(dtype, rows.data,
                   at.sequence * rows.sequence + token * rows.token + head * rows.head);
}

/* The thread's first element of a slab. */
__device__ __forceinline__ char *slab_of(const struct kda_states &states, const struct place &at,
                                         int64_t sequence, int token)
{
    int outer = at.warp * (OUTER / WARPS) + at.lane / LANES + (IS_VK ? at.column : 0);
    int inner = at.lane % LANES * VEC + (IS_VK ? 0 : at.column);
    return (char *)element(STATE, states.data,
                           sequence * states.sequence + token * states.token +
                               at.head * states.head + outer * states.row + inner);
}

/* Element e of a lane's part of a row, within the row. */
__device__ __forceinline__ int inner_of(int e, int lane)
{
    return e / VEC * (LANES * VEC) + lane % LANES * VEC + e % VEC;
}

/* ---- The slab -------------------------------------------------------------------------------- */

typedef float slab[ROWS][PER];

__device__ __forceinline__ void slab_load(slab &s, const char *from, int64_t row)
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int e = 0; e < PER; e += VEC) {
            uint32_t words[(ACCESS + 3) / 4];
            load_words(words, element(STATE, from, r * GROUPS * row + e * LANES), ACCESS);
#pragma unroll
            for (int i = 0; i < VEC; i++)
                s[r][e + i] = word_as_f32(STATE, words, i);
        }
    }
}

__device__ __forceinline__ void slab_store(slab &s, char *to, int64_t row)
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int e = 0; e < PER; e += VEC) {
            uint32_t words[(ACCESS + 3) / 4];
            words_from_f32(STATE, words, &s[r][e], VEC);
            store_words((void *)element(STATE, to, r * GROUPS * row + e * LANES), words, ACCESS);
#pragma unroll
            for (int i = 0; ROUNDS_STATE && i < VEC; i++)
                s[r][e + i] = word_as_f32(STATE, words, i);
        }
    }
}

__device__ __forceinline__ void slab_begin(slab &s, const struct kda_decode_args &args,
                                           const struct place &at)
{
#pragma unroll
    for (int i = 0; !HAS_FROM && i < ROWS * PER; i++)
        s[i / PER][i % PER] = 0.0f;
    if (HAS_FROM)
        slab_load(s, slab_of(args.from, at, at.slot, 0), args.from.row);
}

/* What a token begins from, where that is not what the token before left. */
__device__ __forceinline__ void slab_branch(slab &s, const struct kda_decode_args &args,
                                            const struct place &at, int token)
{
    int parent = args.parents[at.sequence * args.parents_sequence + token];
    if (parent < 0 || parent >= token)
        slab_begin(s, args, at);
    else if (parent < token - 1)
        slab_load(s, slab_of(args.to, at, at.sequence, parent), args.to.row);
}
#endif
