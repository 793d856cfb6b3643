/* Facts about a warp's fragments and about number formats that kernels rely on, one a test:
 * ldmatrix, stmatrix, mma.sync, cp.async; and every conversion between f32 and a narrow type, over
 * all 16-bit and 8-bit values, and over f32 values on and beside every tie. The kernels are in
 * fact_warp.cu and fact_convert.cu. sm_80 and up. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/dtype.h"
#include "tests/gpu_arrays.h"
#include "tests/gpu_kernel.h"

static struct quern_context *ctx;
static struct gpu_kernel kernel;
static uint64_t seed;

static void setup(void)
{
    ctx = gpu_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

/* Runs `entry` with args.a = a (and args.b = b) and reads args.out. */
struct buffers {
    const void *a, *b;
    size_t a_bytes, b_bytes;
    void *out;
    size_t out_bytes;
};

static void run(const char *source, const char *entry, struct fact_args *args, int blocks,
                int threads, const struct buffers *with)
{
    void *a = gpu_memory_make(ctx, with->a, with->a_bytes);
    void *b = with->b ? gpu_memory_make(ctx, with->b, with->b_bytes) : NULL;
    args->a = a;
    args->b = b;
    args->out = gpu_memory_make(ctx, NULL, with->out_bytes);
    gpu_kernel_open(&kernel, ctx, source, entry);
    gpu_kernel_shape(&kernel, 0, blocks, threads, 0, 0);
    gpu_kernel_run(&kernel, args);
    gpu_kernel_close(&kernel);
    gpu_memory_take(ctx, with->out, args->out, with->out_bytes);
    quern_memory_free(ctx, a, with->a_bytes);
    quern_memory_free(ctx, b, with->b_bytes);
}

/* ---- Matrices ------------------------------------------------------------------------------ */

/* Element of matrix i, row r, column c. */
static uint16_t numbered(int i, int r, int c)
{
    return (uint16_t)(64 * i + 8 * r + c);
}

/* What half `half` of lane `lane`'s register i holds. */
static uint16_t fragment(int lane, int i, int half, bool is_transposed)
{
    int row = lane / 4, column = 2 * (lane % 4) + half;
    return is_transposed ? numbered(i, column, row) : numbered(i, row, column);
}

START_TEST(ldmatrix_gives_a_lane_two_of_its_row_or_transposed_of_its_column)
{
    uint16_t matrices[256], registers[256];
    struct fact_args args = { .n = _i };
    const struct buffers buffers = { matrices, NULL,      sizeof(matrices),
                                     0,        registers, sizeof(registers) };
    for (int at = 0; at < 256; at++)
        matrices[at] = (uint16_t)at;
    run("fact_warp.cu", "read_matrices", &args, 1, 32, &buffers);
    for (int at = 0; at < 256; at++) {
        int lane = at / 8, i = at / 2 % 4;
        assert_each(registers[at] == fragment(lane, i, at % 2, _i),
                    "lane %d register %d half %d is %d", lane, i, at % 2, registers[at]);
    }
}
END_TEST

START_TEST(stmatrix_is_the_reverse_of_ldmatrix)
{
    uint16_t matrices[256], registers[256];
    struct fact_args args = { .n = _i };
    const struct buffers buffers = { registers, NULL,     sizeof(registers),
                                     0,         matrices, sizeof(matrices) };
    for (int at = 0; at < 256; at++)
        registers[at] = fragment(at / 8, at / 2 % 4, at % 2, _i);
    run("fact_warp.cu", "write_matrices", &args, 1, 32, &buffers);
    for (int at = 0; at < 256; at++)
        assert_each(matrices[at] == at, "matrix %d row %d column %d is %d", at / 64, at / 8 % 8,
                    at % 8, matrices[at]);
}
END_TEST

START_TEST(fragments_from_ldmatrix_multiply_as_documented)
{
    static const int dtypes[] = { QUERN_BF16, QUERN_F16, QUERN_F32 };
    double a[16][16] = { { 0 } }, b[16][16] = { { 0 } };
    unsigned char operands[2][16][32];
    float d[16][16];
    size_t element = quern_dtype_bytes(dtypes[_i]);
    int k = 32 / (int)element;
    struct fact_args args = { .n = _i };
    const struct buffers buffers = { operands[0], operands[1], 512, 512, d, sizeof(d) };
    for (int at = 0; at < 16 * k; at++) {
        a[at / k][at % k] = (double)common_between(&seed, -4, 4);
        b[at / k][at % k] = (double)common_between(&seed, -4, 4);
        size_t byte = (size_t)(at % k) * element;
        qn_dtype_encode(dtypes[_i], &a[at / k][at % k], 1, operands[0][at / k] + byte);
        qn_dtype_encode(dtypes[_i], &b[at / k][at % k], 1, operands[1][at / k] + byte);
    }
    run("fact_warp.cu", "multiply", &args, 1, 32, &buffers);
    for (int at = 0; at < 256; at++) {
        double wanted = 0;
        for (int i = 0; i < k; i++)
            wanted += a[at / 16][i] * b[at % 16][i];
        assert_each((double)d[at / 16][at % 16] == wanted, "%s: row %d column %d is %g, not %g",
                    quern_dtype_name(dtypes[_i]), at / 16, at % 16, (double)d[at / 16][at % 16],
                    wanted);
    }
}
END_TEST

START_TEST(cp_async_reads_what_it_was_told_to_and_zeroes_the_rest)
{
    static const int sizes[] = { 16, 8, 4 };
    unsigned char from[32][16], slots[32][16];
    struct fact_args args = { .n = sizes[_i] };
    const struct buffers buffers = { from, NULL, sizeof(from), 0, slots, sizeof(slots) };
    for (int i = 0; i < 512; i++)
        from[i / 16][i % 16] = (unsigned char)common_between(&seed, 1, 0xed);
    run("fact_warp.cu", "copy_parts", &args, 1, 32, &buffers);
    for (int i = 0; i < 512; i++) {
        int slot = i / 16, byte = i % 16;
        bool is_copied = slot <= sizes[_i] && byte < sizes[_i];
        int wanted = !is_copied ? 0xee : byte < slot ? from[slot][byte] : 0;
        assert_each(slots[slot][byte] == wanted, "%d of %d bytes: byte %d is %#x, not %#x", slot,
                    sizes[_i], byte, slots[slot][byte], wanted);
    }
}
END_TEST

/* ---- Conversions --------------------------------------------------------------------------- */

static const int narrow[] = { QUERN_BF16, QUERN_F16, QUERN_E4M3, QUERN_E5M2 };
enum { NARROW_COUNT = sizeof(narrow) / sizeof(narrow[0]), RANDOM_COUNT = 1 << 18 };
/* Of each 16-bit value: itself, the ties with the next, and one f32 to each side of them. */
enum { AROUND = 9, VALUE_COUNT = 65536 * AROUND + RANDOM_COUNT };

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

START_TEST(every_narrow_value_decodes_to_its_f32)
{
    static float decoded[65536];
    static double wanted[65536];
    static unsigned char codes[2 * 65536];
    size_t element = quern_dtype_bytes(narrow[_i]);
    int count = element == 1 ? 256 : 65536;
    struct fact_args args = { .n = count, .x = narrow[_i] };
    const struct buffers buffers = { codes, NULL,    (size_t)count * element,
                                     0,     decoded, (size_t)count * sizeof(float) };
    for (int i = 0; i < count; i++)
        memcpy(codes + (size_t)i * element, &i, element);
    run("fact_convert.cu", "decode", &args, count / 256, 256, &buffers);
    qn_dtype_decode(narrow[_i], codes, count, wanted);
    for (int i = 0; i < count; i++)
        assert_each(isnan(wanted[i]) ? isnan(decoded[i])
                                     : bits_of(decoded[i]) == bits_of((float)wanted[i]),
                    "%s: %#x is %g, not %g", quern_dtype_name(narrow[_i]), i, (double)decoded[i],
                    wanted[i]);
}
END_TEST

static void values_around(float value, float *at)
{
    at[0] = value;
    at[1] = nextafterf(value, INFINITY);
    at[2] = nextafterf(value, -INFINITY);
}

/* Values of dtype, what lies halfway to the next (past the largest: to what would be the next),
 * what lies beside either, and any f32. */
static void values_make(int dtype, float *values)
{
    int codes = quern_dtype_bytes(dtype) == 1 ? 256 : 65536;
    for (int i = 0; i < 65536; i++) {
        int code = i % codes, next = (code + 1) % codes, previous = (code + codes - 1) % codes;
        double value = qn_dtype_get(dtype, &code);
        values_around((float)value, values + AROUND * i);
        values_around((float)((value + qn_dtype_get(dtype, &next)) / 2), values + AROUND * i + 3);
        values_around((float)(value + (value - qn_dtype_get(dtype, &previous)) / 2),
                      values + AROUND * i + 6);
    }
    for (int i = 65536 * AROUND; i < VALUE_COUNT; i++) {
        uint32_t bits = (uint32_t)common_random(&seed);
        memcpy(&values[i], &bits, sizeof(bits));
    }
}

/* In fp8 what is too large becomes the largest: so convert.cuh has it. */
static double saturated(int dtype, double value)
{
    double most = dtype == QUERN_E4M3 ? 448 : dtype == QUERN_E5M2 ? 57344 : INFINITY;
    return value > most ? most : value < -most ? -most : value;
}

static void check_encoded(int dtype, const float *values, const unsigned char *codes,
                          const char *how)
{
    size_t element = quern_dtype_bytes(dtype);
    for (int i = 0; i < VALUE_COUNT; i++) {
        double value = saturated(dtype, (double)values[i]);
        unsigned wanted = 0, got = 0;
        qn_dtype_encode(dtype, &value, 1, &wanted);
        memcpy(&got, codes + (size_t)i * element, element);
        bool is_right = isnan(value) ? isnan(qn_dtype_get(dtype, &got)) : got == wanted;
        assert_each(is_right, "%s %s: %a gives %#x, not %#x", how, quern_dtype_name(dtype),
                    (double)values[i], got, wanted);
    }
}

static void check_encoder(const char *entry, int dtype)
{
    static float values[VALUE_COUNT];
    static unsigned char codes[2 * VALUE_COUNT];
    size_t element = quern_dtype_bytes(dtype);
    struct fact_args args = { .n = VALUE_COUNT, .x = dtype };
    const struct buffers buffers = {
        values, NULL, sizeof(values), 0, codes, VALUE_COUNT * element
    };
    values_make(dtype, values);
    run("fact_convert.cu", entry, &args, VALUE_COUNT / 256, 256, &buffers);
    check_encoded(dtype, values, codes, entry);
}

START_TEST(f32_is_rounded_once_to_nearest_even)
{
    check_encoder("encode", narrow[_i]);
}
END_TEST

START_TEST(a_pair_is_rounded_like_its_members_the_first_one_low)
{
    check_encoder("encode_pairs", narrow[_i]);
}
END_TEST

START_TEST(fp8_without_the_instruction_is_the_same)
{
    check_encoder("encode_by_hand", narrow[_i]);
}
END_TEST

/* Normal numbers: ten bits of mantissa, ties away from zero. */
START_TEST(tf32_is_rounded_to_nearest_and_ties_away)
{
    enum { COUNT = 1 << 16 };
    static uint32_t values[COUNT], codes[COUNT];
    struct fact_args args = { .n = COUNT };
    const struct buffers buffers = { values, NULL, sizeof(values), 0, codes, sizeof(codes) };
    for (int i = 0; i < COUNT; i++) {
        uint32_t sign = (uint32_t)common_between(&seed, 0, 1) << 31;
        uint32_t exponent = (uint32_t)common_between(&seed, 1, 253) << 23;
        uint32_t mantissa = (uint32_t)common_between(&seed, 0, (1 << 23) - 1);
        values[i] = sign | exponent | (i % 4 ? mantissa : (mantissa | 0x1fff) ^ 0xfff);
    }
    run("fact_convert.cu", "encode_tf32", &args, COUNT / 256, 256, &buffers);
    for (int i = 0; i < COUNT; i++)
        assert_each((codes[i] & ~UINT32_C(0x1fff)) == ((values[i] + 0x1000) & ~UINT32_C(0x1fff)),
                    "%#x gives %#x", values[i], codes[i]);
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("warp_gpu");
    TCase *tcase = tcase_create("warp_gpu");
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, ldmatrix_gives_a_lane_two_of_its_row_or_transposed_of_its_column, 0,
                        2);
    if (gpu_serves("sm_90"))
        tcase_add_loop_test(tcase, stmatrix_is_the_reverse_of_ldmatrix, 0, 2);
    tcase_add_loop_test(tcase, fragments_from_ldmatrix_multiply_as_documented, 0, 3);
    tcase_add_loop_test(tcase, cp_async_reads_what_it_was_told_to_and_zeroes_the_rest, 0, 3);
    tcase_add_loop_test(tcase, every_narrow_value_decodes_to_its_f32, 0, NARROW_COUNT);
    tcase_add_loop_test(tcase, f32_is_rounded_once_to_nearest_even, 0, NARROW_COUNT);
    tcase_add_loop_test(tcase, a_pair_is_rounded_like_its_members_the_first_one_low, 0, 2);
    tcase_add_loop_test(tcase, fp8_without_the_instruction_is_the_same, 2, NARROW_COUNT);
    tcase_add_test(tcase, tf32_is_rounded_to_nearest_and_ties_away);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
