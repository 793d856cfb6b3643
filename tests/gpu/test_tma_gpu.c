/* Facts about TMA, mbarriers and clusters that kernels rely on, one a test: what a box looks like
 * in shared memory, what lies outside the tensor, phases, multicast, stores, the peer's memory. The
 * kernels are in fact_tma.cu. sm_90a. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu_arrays.h"
#include "tests/gpu_kernel.h"

enum { ROWS = 200, COLUMNS = 144, STRIDE = 152, PLANES = 2 }; /* of the tensor, 16-bit elements */
enum { ELEMENTS = PLANES * ROWS * STRIDE, OUT_BYTES = 1 << 17 };

static struct quern_context *ctx;
static struct gpu_kernel kernel;
static uint64_t seed;
static uint16_t tensor[ELEMENTS];
static unsigned char out[OUT_BYTES];

static void setup(void)
{
    ctx = gpu_context(NULL);
    seed = common_seed();
    for (int i = 0; i < ELEMENTS; i++)
        tensor[i] = (uint16_t)common_random(&seed);
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

/* What a load gives at plane z, row y, column x: 0 outside the tensor. */
static uint16_t element(int z, int y, int x)
{
    bool is_inside = z >= 0 && z < PLANES && y >= 0 && y < ROWS && x >= 0 && x < COLUMNS;
    return is_inside ? tensor[(z * ROWS + y) * STRIDE + x] : 0;
}

/* Runs one step of `entry` on the tensor in boxes of `columns` x `rows`; the result is in out. */
static void run(const char *entry, struct fact_args *args, int swizzle, int columns, int rows,
                int blocks, int threads)
{
    struct gpu_box box = { .dtype = QUERN_BF16,
                           .columns = COLUMNS,
                           .rows = ROWS,
                           .planes = PLANES,
                           .stride = STRIDE,
                           .box_columns = columns,
                           .box_rows = rows,
                           .swizzle = swizzle };
    void *data = gpu_memory_make(ctx, tensor, sizeof(tensor));
    args->out = gpu_memory_make(ctx, NULL, OUT_BYTES);
    gpu_kernel_open(&kernel, ctx, "fact_tma.cu", entry);
    gpu_kernel_shape(&kernel, 0, blocks, threads, blocks > 1 ? blocks : 0, 0);
    box.data = data;
    gpu_kernel_map(&kernel, 0, &box);
    gpu_kernel_run(&kernel, args);
    gpu_kernel_close(&kernel);
    gpu_memory_take(ctx, out, args->out, OUT_BYTES);
    gpu_memory_take(ctx, tensor, data, sizeof(tensor));
}

/* ---- Loads --------------------------------------------------------------------------------- */

/* Where element (y, x) of a box lies: rows of `pitch` bytes whose 16-byte chunks trade places by
 * the address bits above them. */
static int swizzled(int pitch, int swizzle, int y, int x)
{
    int at = y * pitch + 2 * x, chunks = swizzle / 16;
    return chunks ? at ^ (at / 128 % chunks * 16) : at;
}

static void check_box(int swizzle, int columns, int rows, int z, int y, int x)
{
    struct fact_args args = { .x = x, .y = y, .z = z, .bytes = columns * rows * 2 };
    run("load_box", &args, swizzle, columns, rows, 1, 128);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < columns; c++) {
            uint16_t got, wanted = element(z, y + r, x + c);
            memcpy(&got, out + swizzled(2 * columns, swizzle, r, c), sizeof(got));
            assert_each(got == wanted,
                        "swizzle %d, box %dx%d at (%d, %d, %d): row %d column %d is %#x, not %#x",
                        swizzle, columns, rows, x, y, z, r, c, got, wanted);
        }
    }
    ck_assert_int_eq(out[args.bytes], 0xa5);
}

START_TEST(a_box_swizzled_over_128_bytes_has_chunk_c_of_row_r_at_c_xor_r)
{
    check_box(128, 64, 64, 0, 0, 0);
    check_box(128, 64, 64, 1, 8, 16);
}
END_TEST

START_TEST(narrower_swizzles_and_none_lie_as_the_formula_says)
{
    check_box(64, 32, 64, 0, 16, 32);
    check_box(32, 16, 64, 0, 16, 32);
    check_box(0, 64, 64, 0, 16, 32);
    check_box(0, 8, 32, 1, 16, 32);
}
END_TEST

/* The barrier completes, so the whole box's bytes were credited. */
START_TEST(what_lies_outside_the_tensor_is_zero_and_credited_in_full)
{
    check_box(128, 64, 64, 0, ROWS - 10, COLUMNS - 24);
    check_box(128, 64, 64, 1, -3, -8);
    check_box(128, 64, 64, 0, ROWS + 5, 0);
    check_box(128, 64, 64, PLANES, 0, 0);
    check_box(128, 64, 64, 0, 0, 4 * COLUMNS);
    check_box(0, 64, 32, 0, 190, 8);
    check_box(128, 64, 64, 0, 7, 0);
}
END_TEST

/* ---- Barriers ------------------------------------------------------------------------------ */

START_TEST(a_wait_for_a_parity_returns_when_the_phase_of_that_parity_is_over)
{
    static const int32_t wanted[] = {
        0, 1, /* fresh: the phase before the first counts as over */
        0, 1, /* one of two arrivals */
        1, 0, /* both */
        1, 0, 0, 1,
    };
    struct fact_args args = { 0 };
    run("phases", &args, 128, 64, 64, 1, 32);
    for (int i = 0; i < 10; i++) {
        int32_t got;
        memcpy(&got, out + 4 * i, sizeof(got));
        assert_each(got == wanted[i], "after %d arrivals try_wait.parity %d gives %d", i / 2, i % 2,
                    got);
    }
}
END_TEST

START_TEST(a_ring_of_three_stages_keeps_its_order_through_all_phases)
{
    enum { BOXES = 12, BOX_ROWS = 16 };
    struct fact_args args = { .n = BOXES, .y = BOX_ROWS, .bytes = BOX_ROWS * 128 };
    run("ring", &args, 128, 64, BOX_ROWS, 1, 160);
    for (int i = 0; i < BOXES * BOX_ROWS * 64; i++) {
        int y = i / 64, x = i % 64, at = y / BOX_ROWS * args.bytes;
        uint16_t got;
        memcpy(&got, out + at + swizzled(128, 128, y % BOX_ROWS, x), sizeof(got));
        assert_each(got == element(0, y, x), "row %d column %d", y, x);
    }
}
END_TEST

/* ---- Clusters ------------------------------------------------------------------------------ */

START_TEST(multicast_brings_each_blocks_half_to_both_at_one_offset)
{
    struct fact_args args = { .y = 32, .bytes = 4096 };
    run("multicast", &args, 128, 64, 32, 2, 128);
    for (int i = 0; i < 2 * 64 * 64; i++) {
        int block = i / 4096, y = i / 64 % 64, x = i % 64;
        uint16_t got;
        memcpy(&got, out + block * 8192 + swizzled(128, 128, y, x), sizeof(got));
        assert_each(got == element(0, y, x), "block %d row %d column %d", block, y, x);
    }
}
END_TEST

START_TEST(a_block_reads_its_peers_memory_and_arrives_on_its_peers_barrier)
{
    struct fact_args args = { 0 };
    run("peer", &args, 128, 64, 64, 2, 128);
    for (int i = 0; i < 1024; i++) {
        float got;
        memcpy(&got, out + 4 * i, sizeof(got));
        ck_assert_float_eq(got, (float)(1000 * (1 - i / 512) + i % 512));
    }
}
END_TEST

/* ---- Stores -------------------------------------------------------------------------------- */

static void check_store(int z, int y, int x)
{
    static uint16_t before[ELEMENTS];
    struct fact_args args = { .x = x, .y = y, .z = z };
    memcpy(before, tensor, sizeof(before));
    run("store_box", &args, 128, 64, 64, 1, 128);
    for (int i = 0; i < ELEMENTS; i++) {
        int r = i / STRIDE % ROWS - y, c = i % STRIDE - x;
        bool is_stored =
            i / STRIDE / ROWS == z && i % STRIDE < COLUMNS && r >= 0 && r < 64 && c >= 0 && c < 64;
        uint16_t wanted = is_stored ? (uint16_t)(64 * r + c) : before[i];
        assert_each(tensor[i] == wanted,
                    "stored at (%d, %d, %d): plane %d row %d column %d is %#x, not %#x", x, y, z,
                    i / STRIDE / ROWS, i / STRIDE % ROWS, i % STRIDE, tensor[i], wanted);
    }
}

START_TEST(a_stored_box_is_unswizzled_and_clipped_at_the_tensors_edges)
{
    check_store(0, 8, 16);
    check_store(0, ROWS - 7, COLUMNS - 24);
    check_store(1, 5, 8);
    check_store(1, 13, COLUMNS);
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("tma_gpu");
    TCase *tcase = tcase_create("tma_gpu");
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_box_swizzled_over_128_bytes_has_chunk_c_of_row_r_at_c_xor_r);
    tcase_add_test(tcase, narrower_swizzles_and_none_lie_as_the_formula_says);
    tcase_add_test(tcase, what_lies_outside_the_tensor_is_zero_and_credited_in_full);
    tcase_add_test(tcase, a_wait_for_a_parity_returns_when_the_phase_of_that_parity_is_over);
    tcase_add_test(tcase, a_ring_of_three_stages_keeps_its_order_through_all_phases);
    tcase_add_test(tcase, multicast_brings_each_blocks_half_to_both_at_one_offset);
    tcase_add_test(tcase, a_block_reads_its_peers_memory_and_arrives_on_its_peers_barrier);
    tcase_add_test(tcase, a_stored_box_is_unswizzled_and_clipped_at_the_tensors_edges);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return gpu_main(suite_make(), "sm_90a");
}
