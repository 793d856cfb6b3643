/* set_kv_buffer, layout=mla: a warp makes a token of 656 bytes, or rotates one head of q.
 *
 *     columns 0 - 511     16 of each lane, so that 8 lanes have a group of 128: its largest
 *                         magnitude by shuffles, / 448 its factor, the quotients as e4m3
 *     columns 512 - 575   2 of each lane, a pair of the rotation
 *
 * Warps walk over the tokens and heads in strides of the grid. */
#include "kv_cache/kv_rows.cuh"

#define LANE_CODES (KV_MLA_CODES / 32)
#define LANE_BYTES (LANE_CODES * SIZE)
#define WARPS (THREADS / 32)

/* The columns of the tail that a lane has: l and l + 32, or 2 l and 2 l + 1. */
#define TAIL_LEFT(lane) (ROPE == 1 ? (lane) : 2 * (lane))
#define TAIL_RIGHT(lane) (ROPE == 1 ? 32 + (lane) : 2 * (lane) + 1)

/* A lane's pair of the 64 columns at `row`, rotated. */
static __device__ __forceinline__ void load_tail(const struct set_kv_buffer_args &args,
                                                 int64_t token, const void *row, uint32_t lane,
                                                 float &left, float &right)
{
    left = load_as_f32(DTYPE, element(DTYPE, row, TAIL_LEFT(lane)));
    right = load_as_f32(DTYPE, element(DTYPE, row, TAIL_RIGHT(lane)));
    if (ROPE) {
        const void *angles = angles_of(args, token);
        rotate_pair(left, right, load_as_f32(ROPE_DTYPE, element(ROPE_DTYPE, angles, lane)),
                    load_as_f32(ROPE_DTYPE, element(ROPE_DTYPE, angles, 32 + lane)));
    }
}

/* f32 to dtype and from there to bf16: not at once, which would round otherwise. NaN is 0x7fff. */
static __device__ __forceinline__ uint16_t tail_bits(float value)
{
    if (DTYPE == DT_F16)
        value = f32_from_f16(f16_from_f32(value));
    return bf16_from_f32(value);
}

/* The pair as bf16; what is bf16 and not rotated is moved as bits. */
static __device__ __forceinline__ uint32_t tail_pair(const struct set_kv_buffer_args &args,
                                                     int64_t token, const void *row, uint32_t lane)
{
    if (!ROPE && DTYPE == DT_BF16) {
        const uint16_t *bits = (const uint16_t *)row;
        return bits[TAIL_LEFT(lane)] | (uint32_t)bits[TAIL_RIGHT(lane)] << 16;
    }
    float left, right;
    load_tail(args, token, row, lane, left, right);
    return tail_bits(left) | (uint32_t)tail_bits(right) << 16;
}

static __device__ __forceinline__ void make_token(const struct set_kv_buffer_args &args,
                                                  int64_t token, int64_t row, uint32_t lane)
{
    const void *k = element(DTYPE, args.k.data, token * args.k.token);
    char *to = place(args.k_cache, row, 0, 1);
    uint32_t words[LANE_BYTES / 4], codes[LANE_CODES / 4];
    float most = 0;

    load_bytes<LANE_BYTES, K_ACCESS>(words, (const char *)k + lane * LANE_BYTES);
    const uint32_t pair = tail_pair(args, token, element(DTYPE, k, KV_MLA_CODES), lane);
#pragma unroll
    for (int i = 0; i < LANE_CODES; i++)
        most = fmaxf(most, fabsf(word_as_f32(DTYPE, words, i)));
#pragma unroll
    for (int apart = 4; apart > 0; apart /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, apart));
    const float factor = fmaxf(__fdiv_rn(most, 448.0f), 0x1p-126f);
#pragma unroll
    for (int i = 0; i < LANE_CODES; i++) {
        float value = __fdiv_rn(word_as_f32(DTYPE, words, i), factor);
        uint32_t code = (uint32_t)e4m3_from_f32(value) << i % 4 * 8;
        codes[i / 4] = i % 4 ? codes[i / 4] | code : code;
    }
    store_bytes<LANE_CODES, K_CACHE_ACCESS>(to + lane * LANE_CODES, codes);
    if (lane % 8 == 0) {
        uint32_t bits = __float_as_uint(factor);
        store_bytes<4, K_CACHE_ACCESS>(to + KV_MLA_CODES + lane / 2, &bits);
    }
    char *tail = to + KV_MLA_BYTES - 2 * KV_MLA_TAIL;
    const uint32_t high = pair >> 16;
    if (ROPE == 1) {
        store_bytes<2, K_CACHE_ACCESS>(tail + 2 * TAIL_LEFT(lane), &pair);
        store_bytes<2, K_CACHE_ACCESS>(tail + 2 * TAIL_RIGHT(lane), &high);
    } else {
        store_bytes<4, K_CACHE_ACCESS>(tail + 4 * lane, &pair);
    }
}

static __device__ __forceinline__ void rotate_query(const struct set_kv_buffer_args &args,
                                                    int64_t token, int64_t head, uint32_t lane)
{
    char *row =
        (char *)args.q.data + (token * args.q.token + head * args.q.head + KV_MLA_CODES) * SIZE;
    float left, right;
    load_tail(args, token, row, lane, left, right);
    store_from_f32(DTYPE, row + TAIL_LEFT(lane) * SIZE, left);
    store_from_f32(DTYPE, row + TAIL_RIGHT(lane) * SIZE, right);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    set_kv_buffer_mla(const __grid_constant__ struct set_kv_buffer_args args)
{
    const uint32_t lane = threadIdx.x % 32;
    for (int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; i < args.t * (1 + HQ);
         i += (int64_t)gridDim.x * WARPS) {
        const int64_t token = i / (1 + HQ), head = i % (1 + HQ) - 1;
        if (head >= 0) {
            rotate_query(args, token, head, lane);
            continue;
        }
        const int64_t row = index_at(args.loc, token);
        if (row >= 0 && row < args.rows)
            make_token(args, token, row, lane);
    }
}
