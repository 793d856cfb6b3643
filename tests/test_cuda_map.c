/* Tensor maps: their limits, what the driver is given, and the cache of encodings. */
#include <string.h>

#include "tests/cuda_fake.h"

static struct quern_tensor_map *add_map(const void *data)
{
    struct quern_tensor_map *map = quern_step_map(&cuda_bed.launch.steps[0], 64);

    map->data = data;
    map->dtype = QUERN_BF16;
    map->rank = 2;
    map->swizzle = 128;
    map->dims[0] = 1000;
    map->dims[1] = 300;
    map->strides[0] = 1;
    map->strides[1] = 1024;
    map->box[0] = 64;
    map->box[1] = 128;
    return map;
}

static struct cuda_fake_map map_in_args(void)
{
    struct cuda_fake_map map;

    memcpy(&map, cuda_bed.launch.steps[0].args + 64, sizeof map);
    return map;
}

START_TEST(a_map_is_encoded_once_and_only_its_address_replaced)
{
    struct quern_tensor_map *map;

    cuda_fake_encoded = cuda_fake_replaced = 0;
    cuda_bed_kernel("main");
    map = add_map((void *)0x1000);
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    struct cuda_fake_map made = map_in_args();
    ck_assert(made.data == (void *)0x1000 && made.dtype == 9 && made.rank == 2 &&
              made.swizzle == 3 && made.strides[0] == 2048 && made.dims[1] == 300 &&
              made.box[1] == 128);
    for (int i = 0; i < 3; i++) {
        memset(cuda_bed.launch.steps[0].args, 0, sizeof cuda_bed.launch.steps[0].args);
        ck_assert_int_eq(cuda_bed_run(NULL), 0);
        ck_assert_ptr_eq(map_in_args().data, (void *)0x1000);
    }
    ck_assert(cuda_fake_encoded == 1 && cuda_fake_replaced == 0);
    map->data = (void *)0x2000;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_ptr_eq(map_in_args().data, (void *)0x2000);
    ck_assert(cuda_fake_encoded == 1 && cuda_fake_replaced == 1);
    map->dims[1] = 301;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_uint_eq(map_in_args().dims[1], 301);
    ck_assert_int_eq(cuda_fake_encoded, 2);
}
END_TEST

START_TEST(a_failed_encoding_is_not_remembered)
{
    cuda_bed_kernel("main");
    add_map((void *)0x1000);
    cuda_fake.failing = "encode";
    cuda_fake.code = CU_INVALID_VALUE;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID,
                  "step=main map[0]: cuTensorMapEncodeTiled: CUDA_ERROR");
    cuda_fake.failing = NULL;
    cuda_fake_encoded = 0;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_int_eq(cuda_fake_encoded, 1);
}
END_TEST

START_TEST(strides_of_extents_of_one_do_not_matter)
{
    struct quern_tensor_map *map;

    cuda_bed_kernel("main");
    map = add_map((void *)0x1000);
    map->dims[1] = 1;
    map->strides[1] = 0;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_uint_eq(map_in_args().strides[0], 2000);
    map->strides[1] = 1001;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    map->dims[0] = 1;
    map->strides[0] = 77;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_uint_eq(map_in_args().strides[0], 16);
}
END_TEST

START_TEST(every_limit_of_a_map_has_its_line)
{
    cuda_bed_kernel("main");
    struct quern_tensor_map *map = add_map((void *)0x1000);
    const struct quern_tensor_map good = *map;

#define REFUSED(change, text)                                                                      \
    do {                                                                                           \
        *map = good;                                                                               \
        change;                                                                                    \
        cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID, "step=main map[0]: " text);               \
        ck_assert_str_eq(strstr(cuda_fake.asked, "launch") ? "launched" : "", "");                 \
    } while (0)
    REFUSED(map->data = (void *)0x1008, "data=0x1008: must be a multiple of 16");
    REFUSED(map->data = NULL, "data=");
    REFUSED(map->rank = 6, "rank=6: must be 1 to 5");
    REFUSED(map->rank = 0, "rank=0: must be 1 to 5");
    REFUSED(map->dtype = QUERN_NONE, "dtype=none: ");
    REFUSED(map->swizzle = 16, "swizzle=16: must be 0, 32, 64 or 128");
    REFUSED(map->dims[1] = 0, "dims[1]=0: must be 1 to 2^32");
    REFUSED(map->dims[0] = (INT64_C(1) << 32) + 1, "dims[0]=4294967297: ");
    REFUSED(map->strides[0] = 2, "strides[0]=2: must be 1");
    REFUSED(map->strides[1] = 1001, "strides[1]=1001 of 2-byte elements: must be a multiple of 16");
    REFUSED(map->strides[1] = INT64_C(1) << 39, "strides[1]=");
    REFUSED(map->strides[1] = -8, "strides[1]=-8");
    REFUSED(map->box[1] = 257, "box[1]=257: must be 1 to 256");
    REFUSED(map->box[0] = 0, "box[0]=0: must be 1 to 256");
    REFUSED(map->box[0] = 20, "box[0]=20: is 40 bytes: must be a multiple of 16");
    REFUSED(map->box[0] = 72, "box[0]=72: is 144 bytes: must be at most the swizzle's 128");
    REFUSED(map->args_offset = 32, "args_offset=32: must be a multiple of 64");
    REFUSED(map->args_offset = QUERN_ARGS_BYTES - 64, "args_offset=960: ");
    REFUSED(cuda_bed.launch.steps[0].args_bytes = 191, "args_offset=64: ");
#undef REFUSED
    cuda_bed.launch.steps[0].args_bytes = QUERN_ARGS_BYTES;
    *map = good;
    cuda_bed.launch.steps[0].map_count = QUERN_MAX_MAPS + 1;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID, "step=main: map_count=5: must be at most 4");
    cuda_bed.launch.steps[0].map_count = 1;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
}
END_TEST

enum { MAP_THREADS = 4, MAP_ROUNDS = 2000 };

/* Everybody's args hold everybody's own map, whoever had the cache. */
static void *encode_often(void *user)
{
    uintptr_t base = (uintptr_t)user;
    struct quern_step_launch step = { .args_bytes = QUERN_ARGS_BYTES };
    struct quern_message reason;
    intptr_t wrong = 0;

    for (int i = 0; i < MAP_ROUNDS; i++) {
        struct cuda_fake_map made;
        step.map_count = 1;
        step.maps[0] = cuda_bed.launch.steps[0].maps[0];
        step.maps[0].data = (void *)(base + 16 * (uintptr_t)(i / 3));
        step.maps[0].dims[1] = (int64_t)(base >> 20) + i % 2;
        wrong += qn_cuda_maps_encode(&cuda_fake_driver, &cuda_bed.function.maps, &step, "main",
                                     &reason) != 0;
        memcpy(&made, step.args + 64, sizeof made);
        wrong += made.data != step.maps[0].data || made.dims[1] != step.maps[0].dims[1];
    }
    return (void *)wrong;
}

START_TEST(threads_share_the_encodings_without_mixing_them)
{
    pthread_t threads[MAP_THREADS];
    void *wrong;

    cuda_bed_kernel("main");
    add_map((void *)0x1000);
    for (uintptr_t i = 0; i < MAP_THREADS; i++)
        ck_assert(!pthread_create(&threads[i], NULL, encode_often, (void *)((i + 1) << 20)));
    for (int i = 0; i < MAP_THREADS; i++) {
        pthread_join(threads[i], &wrong);
        ck_assert_ptr_null(wrong);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cuda_map");
    TCase *cases = tcase_create("host");

    tcase_add_checked_fixture(cases, cuda_bed_init, NULL);
    tcase_add_test(cases, a_map_is_encoded_once_and_only_its_address_replaced);
    tcase_add_test(cases, a_failed_encoding_is_not_remembered);
    tcase_add_test(cases, strides_of_extents_of_one_do_not_matter);
    tcase_add_test(cases, every_limit_of_a_map_has_its_line);
    tcase_add_test(cases, threads_share_the_encodings_without_mixing_them);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
