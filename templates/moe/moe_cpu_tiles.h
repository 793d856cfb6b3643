/* Many tokens of an expert: 32 rows of weights, as two strips of 16, times panels of MOE_TILE of
 * them,
 *
 *     sums[strip][16][MOE_TILE]  (+)=  strip[16][k]  panel[k][MOE_TILE]        for each panel
 *
 * Panels are made beforehand, by moe_cpu_gather and, for the second product, by moe_cpu_up. Strips
 * are packed here, CHUNK elements of k at a time, for all panels of a job; AMX multiplies those of
 * bf16 where they lie, but at an edge. Past the edges of the weights there are zeros. */
#ifndef MOE_CPU_TILES_H
#define MOE_CPU_TILES_H
#include "moe/moe_cpu_args.h"
#include "moe/moe_cpu_load.h"

enum { STRIP = 16 };
#define PACKED_DTYPE (IS_I8 ? (IS_PAIRED ? DT_BF16 : DT_F32) : W_DTYPE)

#define NR MOE_TILE
#define PANEL MOE_TILE
#define B_IS_STREAMED 0
#if AMX
#define CHUNK 2048
#define MR STRIP
#else
#define CHUNK 256
#if defined(__AVX512F__)
#define MR 16
#elif defined(__AVX2__) || defined(__aarch64__)
#define MR 4
#else
#define MR 2
#endif
#endif
#define KU (CHUNK / UNIT_K)
#include "common/cpu/gemm_tile.h"

typedef float tile_sums[2][STRIP][MOE_TILE];

struct strips {
    const char *row[2]; /* the first of each */
    int64_t rows[2];    /* what there is of 16 */
    int64_t stride;     /* in bytes */
    int64_t k;
};

#if IS_I8
/* A row of k elements to PACKED_DTYPE, with zeros up to whole vectors. */
APART void widen_row(char *dst, const char *src, int64_t k)
{
    for (int64_t p = 0; p < k; p += VW) {
        uint32_t part[VW / 4] = { 0 };
        const void *from = src + p;
        if (k - p < VW) {
            __builtin_memcpy(part, from, k - p);
            from = part;
        }
        store_from_f32(PACKED_DTYPE, dst + p * DT_SIZE(PACKED_DTYPE), f32_from_i8(from));
    }
}

/* The strip's elements from `done` on, `k` of them, at most CHUNK, to rows of CHUNK elements. */
static void widen_strip(char *dst, const struct strips *strips, int s, int64_t done, int64_t k)
{
    for (int64_t r = 0; r < STRIP && r < strips->rows[s]; r++)
        widen_row(dst + r * CHUNK * DT_SIZE(PACKED_DTYPE),
                  strips->row[s] + r * strips->stride + done, k);
}
#endif

/* Both strips from `done` on, `k` of them, packed as gemm_tile.h has tiles of a. */
APART void pack_strips(uint32_t *packed, const struct strips *strips, int64_t done, int64_t k)
{
    for (int s = 0; s < 2; s++) {
        const char *from = strips->row[s] + done * W_SIZE;
        int64_t stride = strips->stride / W_SIZE, rows = strips->rows[s];
#if IS_I8
        char wide[STRIP * CHUNK * DT_SIZE(PACKED_DTYPE)];
        widen_strip(wide, strips, s, done, k);
        from = wide;
        stride = CHUNK;
#endif
        for (int64_t r = 0; r < STRIP; r += MR, packed += A_TILE_UNITS) {
            int64_t left = rows - r < 0 ? 0 : rows - r < MR ? rows - r : MR;
            pack_a_tile(packed, PACKED_DTYPE,
                        left ? from + r * stride * DT_SIZE(PACKED_DTYPE) : from, stride, left, k);
        }
    }
}

#if AMX
/* One panel by one strip: sixteen rows of weights are read at a time, as many streams as the
 * hardware follows. */
INLINE void multiply_amx_strip(const char *a, int64_t stride, const u32_any *b, int64_t units,
                               float sums[STRIP][MOE_TILE], int is_first)
{
    enum { ROW = MOE_TILE * 4 };
    TILE_ZERO(0);
    if (!is_first)
        TILE_LOAD(0, sums, ROW);
    for (int64_t p = 0; p < units; p += TILE_UNITS) {
        TILE_LOAD(4, a + p * 4, stride);
        TILE_LOAD(6, b + p * MOE_TILE, ROW);
        TILE_MULTIPLY(0, 4, 6);
    }
    TILE_STORE(0, sums, ROW);
}

/* Two panels by both strips: a row of each strip every `stride` bytes. */
INLINE void multiply_amx(const char *const a[2], int64_t stride, const u32_any *const b[2],
                         int64_t units, tile_sums *sums, int is_first)
{
    enum { ROW = MOE_TILE * 4 };
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    if (!is_first) {
        TILE_LOAD(0, sums[0][0], ROW);
        TILE_LOAD(1, sums[0][1], ROW);
        TILE_LOAD(2, sums[1][0], ROW);
        TILE_LOAD(3, sums[1][1], ROW);
    }
    for (int64_t p = 0; p < units; p += TILE_UNITS) {
        TILE_LOAD(4, a[0] + p * 4, stride);
        TILE_LOAD(6, b[0] + p * MOE_TILE, ROW);
        TILE_MULTIPLY(0, 4, 6);
        TILE_LOAD(5, a[1] + p * 4, stride);
        TILE_MULTIPLY(1, 5, 6);
        TILE_LOAD(7, b[1] + p * MOE_TILE, ROW);
        TILE_MULTIPLY(2, 4, 7);
        TILE_MULTIPLY(3, 5, 7);
    }
    TILE_STORE(0, sums[0][0], ROW);
    TILE_STORE(1, sums[0][1], ROW);
    TILE_STORE(2, sums[1][0], ROW);
    TILE_STORE(3, sums[1][1], ROW);
}

APART void multiply_amx_panels(const char *const a[2], int64_t stride, const u32_any *panel,
                               int64_t panel_units, int64_t panels, int64_t units, tile_sums *sums,
                               int is_first)
{
    for (; panels > 1; panels -= 2, panel += 2 * panel_units, sums += 2) {
        const u32_any *const b[2] = { panel, panel + panel_units };
        multiply_amx(a, stride, b, units, sums, is_first);
    }
    for (int s = 0; s < 2 && panels; s++)
        multiply_amx_strip(a[s], stride, panel, units, sums[0][s], is_first);
}
#endif

/* The chunk of both strips from `done` on, where it lies or packed, by all panels. Returns how
 * many elements of k that was. */
static int64_t multiply_chunk(const struct strips *strips, int64_t done, const u32_any *panel,
                              int64_t panel_units, int64_t panels, tile_sums *sums)
{
    __attribute__((aligned(64))) uint32_t packed[2 * STRIP / MR * A_TILE_UNITS + VW];
    int64_t k = strips->k - done < CHUNK ? strips->k - done : CHUNK;
    panel += done / UNIT_K * MOE_TILE;
#if AMX
    if (!IS_I8 && strips->rows[0] >= STRIP && strips->rows[1] >= STRIP &&
        strips->k - done >= PACKED_K) {
        const char *const a[2] = { strips->row[0] + done * W_SIZE, strips->row[1] + done * W_SIZE };
        k = (strips->k - done) / PACKED_K * PACKED_K;
        multiply_amx_panels(a, strips->stride, panel, panel_units, panels, k / UNIT_K, sums,
                            done == 0);
        return k;
    }
    pack_strips(packed, strips, done, k);
    const char *const a[2] = { (const char *)packed, (const char *)(packed + A_TILE_UNITS) };
    multiply_amx_panels(a, A_STRIDE * 4, panel, panel_units, panels, units_of(k), sums, done == 0);
#else
    pack_strips(packed, strips, done, k);
    for (int64_t t = 0; t < panels; t++, panel += panel_units)
        for (int64_t r = 0; r < 2 * STRIP; r += MR)
            multiply_tile(packed + r / MR * A_TILE_UNITS, panel, units_of(k),
                          sums[t][r / STRIP][r % STRIP], done == 0);
#endif
    return k;
}

APART void multiply_strips(const struct strips *strips, const u32_any *panel, int64_t panel_units,
                           int64_t panels, tile_sums *sums)
{
    for (int64_t done = 0; done < strips->k;)
        done += multiply_chunk(strips, done, panel, panel_units, panels, sums);
}
#endif
