/* Facts about wgmma that kernels rely on, one a test: descriptors of tiles along K and along M or
 * N, steps of K inside the swizzle, where each accumulator belongs, every operand type. The kernels
 * are in fact_wgmma.cu. sm_90a.
 *
 * Operands are small integers, so that every sum is exact and must be met exactly. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/dtype.h"
#include "tests/gpu_arrays.h"
#include "tests/gpu_kernel.h"

enum { M = 64, MAX_N = 256, MAX_K = 128, THREADS = 128, ROW_BYTES = 128 };

struct product {
    const char *entry;
    int dtype;
    int n;
    bool is_p_along_m, is_q_along_n;
};

static struct quern_context *ctx;
static struct gpu_kernel kernel;
static uint64_t seed;
static double p[M][MAX_K], q[MAX_N][MAX_K];

static void setup(void)
{
    ctx = gpu_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

/* Elements of K in a tile: a swizzled row along K, and as many of 16 bits along M or N. */
static int k_of(const struct product *product)
{
    return ROW_BYTES / (int)quern_dtype_bytes(product->dtype);
}

/* Draws `rows` rows of `k` numbers and puts them into device memory: [rows][k], or [k][rows]. */
static struct gpu_box operand(const struct product *product, double (*values)[MAX_K], int rows,
                              bool is_along_rows)
{
    static unsigned char bytes[MAX_N * ROW_BYTES];
    int k = k_of(product);
    size_t element = quern_dtype_bytes(product->dtype);
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < k; i++) {
            int at = is_along_rows ? i * rows + r : r * k + i;
            values[r][i] = (double)common_between(&seed, -4, 4);
            qn_dtype_encode(product->dtype, &values[r][i], 1, bytes + (size_t)at * element);
        }
    }
    return (struct gpu_box){
        .data = gpu_memory_make(ctx, bytes, (size_t)(rows * ROW_BYTES)),
        .dtype = product->dtype,
        .columns = is_along_rows ? rows : k,
        .rows = is_along_rows ? k : rows,
        .planes = 1,
        .stride = is_along_rows ? rows : k,
        .box_columns = is_along_rows ? 64 : k,
        .box_rows = is_along_rows ? k : rows,
        .swizzle = 128,
    };
}

static void check_sums(const struct product *product, const float *sums, int k)
{
    int count = product->n / 2; /* accumulators of a thread */
    for (int at = 0; at < THREADS * count; at++) {
        int thread = at / count, i = at % count, lane = thread % 32;
        int row = 16 * (thread / 32) + lane / 4 + 8 * (i / 2 % 2);
        int column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        double wanted = 0;
        for (int j = 0; j < k; j++)
            wanted += p[row][j] * q[column][j];
        assert_each((double)sums[at] == wanted,
                    "%s, k=%d: thread %d accumulator %d (row %d column %d) is %g, not %g",
                    product->entry, k, thread, i, row, column, (double)sums[at], wanted);
    }
}

/* The first `steps` steps of 32 bytes of K. */
static void check_product(const struct product *product, int steps)
{
    static float sums[THREADS * MAX_N / 2];
    struct gpu_box boxes[2] = { operand(product, p, M, product->is_p_along_m),
                                operand(product, q, product->n, product->is_q_along_n) };
    struct fact_args args = { .n = steps, .bytes = (M + product->n) * ROW_BYTES };
    size_t bytes = (size_t)(THREADS * product->n / 2) * sizeof(float);
    args.out = gpu_memory_make(ctx, NULL, bytes);
    gpu_kernel_open(&kernel, ctx, "fact_wgmma.cu", product->entry);
    for (int i = 0; i < 2; i++)
        gpu_kernel_map(&kernel, i, &boxes[i]);
    gpu_kernel_run(&kernel, &args);
    gpu_kernel_close(&kernel);
    gpu_memory_take(ctx, sums, args.out, bytes);
    for (int i = 0; i < 2; i++)
        quern_memory_free(ctx, (void *)(uintptr_t)boxes[i].data,
                          (size_t)((i ? product->n : M) * ROW_BYTES));
    check_sums(product, sums, steps * k_of(product) / 4);
}

START_TEST(one_step_along_k_gives_every_accumulator_its_place)
{
    check_product(&(struct product){ "along_k", QUERN_BF16, 64, false, false }, 1);
}
END_TEST

START_TEST(the_next_step_of_k_is_two_units_further_inside_the_swizzle)
{
    for (int steps = 2; steps <= 4; steps++)
        check_product(&(struct product){ "along_k", QUERN_BF16, 64, false, false }, steps);
}
END_TEST

START_TEST(tiles_along_m_and_n_step_by_128_units)
{
    for (int steps = 1; steps <= 4; steps++)
        check_product(&(struct product){ "along_mn", QUERN_BF16, 128, true, true }, steps);
}
END_TEST

START_TEST(a_tile_along_k_meets_one_along_n)
{
    check_product(&(struct product){ "along_k_by_n", QUERN_BF16, 128, false, true }, 4);
}
END_TEST

START_TEST(the_narrow_and_the_widest_shape_have_the_same_layout)
{
    check_product(&(struct product){ "narrow", QUERN_BF16, 24, false, false }, 4);
    check_product(&(struct product){ "wide", QUERN_BF16, 256, false, false }, 4);
}
END_TEST

START_TEST(every_operand_type_multiplies)
{
    static const struct product products[] = {
        { "along_k_f16", QUERN_F16, 64, false, false },
        { "along_k_tf32", QUERN_F32, 64, false, false },
        { "along_k_e4m3", QUERN_E4M3, 64, false, false },
        { "along_k_e5m2", QUERN_E5M2, 64, false, false },
    };
    check_product(&products[_i], 1);
    check_product(&products[_i], 4);
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("wgmma_gpu");
    TCase *tcase = tcase_create("wgmma_gpu");
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, one_step_along_k_gives_every_accumulator_its_place);
    tcase_add_test(tcase, the_next_step_of_k_is_two_units_further_inside_the_swizzle);
    tcase_add_test(tcase, tiles_along_m_and_n_step_by_128_units);
    tcase_add_test(tcase, a_tile_along_k_meets_one_along_n);
    tcase_add_test(tcase, the_narrow_and_the_widest_shape_have_the_same_layout);
    tcase_add_loop_test(tcase, every_operand_type_multiplies, 0, 4);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return gpu_main(suite_make(), "sm_90a");
}
