/* What array files may hold, and what they may not: .npy and safetensors
 * headers from memory, number formats bit by bit, and files written and read
 * back. */
#include "tools/convert.h"
#include "tools/nearest.h"
#include "tools/npy.h"
#include "tools/safetensors.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- .npy ------------------------------------------------------------------------------------ */

/* A file made of version, header text and `data_bytes` bytes that count up.
 * Returns its size. */
static size_t make_npy(unsigned char *file, int version, const char *header, size_t data_bytes)
{
    size_t length = strlen(header), start = version == 1 ? 10 : 12;
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (unsigned char)version;
    file[7] = 0;
    for (size_t i = 8; i < start; i++)
        file[i] = (unsigned char)(length >> 8 * (i - 8));
    memcpy(file + start, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        file[start + length + i] = (unsigned char)i;
    return start + length + data_bytes;
}

START_TEST(npy_versions_1_to_3_give_dtype_shape_order_and_data)
{
    unsigned char file[512];
    char why[TENSOR_WHY_BYTES];
    struct tensor_view view;
    size_t size = make_npy(file, _i + 1,
                           "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }    \n", 24);

    ck_assert_int_eq(npy_parse(file, size, &view, why), 0);
    ck_assert_int_eq(view.dtype, QUERN_F32);
    ck_assert_int_eq(view.raw_bytes, 0);
    ck_assert_int_eq(view.is_fortran, 1);
    ck_assert_int_eq(view.rank, 2);
    ck_assert_int_eq(view.dims[0], 2);
    ck_assert_int_eq(view.dims[1], 3);
    ck_assert_uint_eq(view.bytes, 24);
    ck_assert_uint_eq(view.data[23], 23);
}
END_TEST

static const struct {
    const char *descr;
    int dtype, raw_bytes, element_bytes;
} known_types[] = {
    { "<f4", QUERN_F32, 0, 4 },  { "<f2", QUERN_F16, 0, 2 },  { "<f8", QUERN_F64, 0, 8 },
    { "|i1", QUERN_I8, 0, 1 },   { "|u1", QUERN_U8, 1, 1 },   { "<i4", QUERN_I32, 0, 4 },
    { "<i8", QUERN_I64, 0, 8 },  { "<u2", QUERN_NONE, 2, 2 }, { "|V2", QUERN_NONE, 2, 2 },
    { "<V2", QUERN_NONE, 2, 2 }, { "|V1", QUERN_NONE, 1, 1 }, { "<f1", QUERN_NONE, 1, 1 },
};

START_TEST(npy_types_are_recognised)
{
    unsigned char file[512];
    char why[TENSOR_WHY_BYTES], header[128];
    struct tensor_view view;

    snprintf(header, sizeof(header), "{\"shape\":(3,),\"descr\":\"%s\",\"fortran_order\":False}",
             known_types[_i].descr);
    size_t size = make_npy(file, 1, header, 3 * (size_t)known_types[_i].element_bytes);
    ck_assert_int_eq(npy_parse(file, size, &view, why), 0);
    ck_assert_int_eq(view.dtype, known_types[_i].dtype);
    ck_assert_int_eq(view.raw_bytes, known_types[_i].raw_bytes);
    ck_assert_str_eq(view.type, known_types[_i].descr);
}
END_TEST

START_TEST(npy_scalars_and_empty_arrays_are_read)
{
    unsigned char file[512];
    char why[TENSOR_WHY_BYTES];
    struct tensor_view view;
    size_t size = make_npy(file, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': ()}", 4);

    ck_assert_int_eq(npy_parse(file, size, &view, why), 0);
    ck_assert_int_eq(view.rank, 0);
    size = make_npy(file, 1,
                    "{'descr': '<f4', 'fortran_order': False, 'shape': "
                    "(9223372036854775807, 0, 9223372036854775807)}",
                    0);
    ck_assert_int_eq(npy_parse(file, size, &view, why), 0);
    ck_assert_uint_eq(view.bytes, 0);
}
END_TEST

#define HEADER(descr, order, shape)                                                                \
    "{'descr': " descr ", 'fortran_order': " order ", 'shape': " shape "}"

static const struct {
    const char *header;
    size_t data_bytes;
    const char *why; /* part of the message */
} bad_npy[] = {
    { HEADER("'>f4'", "False", "(2,)"), 8, "big-endian" },
    { HEADER("'<c8'", "False", "(2,)"), 16, "must be one of" },
    { HEADER("'|O'", "False", "(2,)"), 16, "must be one of" },
    { HEADER("[('x', '<f4')]", "False", "(2,)"), 8, "malformed header" },
    { HEADER("'<f4'", "Maybe", "(2,)"), 8, "malformed header" },
    { HEADER("'<f4'", "False", "(2)"), 8, "malformed header" },
    { HEADER("'<f4'", "False", "(-2,)"), 8, "malformed header" },
    { HEADER("'<f4'", "False", "(2, x)"), 8, "malformed header" },
    { HEADER("'<f4'", "False", "(99999999999999999999,)"), 8, "malformed header" },
    { HEADER("'<f4'", "False", "(4294967296, 4294967296)"), 8, "63 bits" },
    { HEADER("'<f8'", "False", "(1152921504606846976,)"), 8, "63 bits" },
    { HEADER("'<f4'", "False", "(2,)"), 7, "truncated" },
    { HEADER("'<f4'", "False", "(2,)"), 9, "too long" },
    { HEADER("'<f4'", "False", "(2,)") " garbage", 8, "malformed header" },
    { "{'descr': '<f4', 'fortran_order': False}", 8, "malformed header" },
    { "{'descr': '<f4', 'descr': '<f4', 'shape': (2,)}", 8, "malformed header" },
    { "{'descr': '<f4", 8, "malformed header" },
    { "", 8, "malformed header" },
};

START_TEST(npy_bad_headers_and_sizes_are_refused_by_name)
{
    unsigned char file[512];
    char why[TENSOR_WHY_BYTES] = "";
    struct tensor_view view;
    size_t size = make_npy(file, 1, bad_npy[_i].header, bad_npy[_i].data_bytes);

    ck_assert_int_eq(npy_parse(file, size, &view, why), -1);
    ck_assert_msg(strstr(why, bad_npy[_i].why), "%s: \"%s\" lacks \"%s\"", bad_npy[_i].header, why,
                  bad_npy[_i].why);
}
END_TEST

/* Every prefix of a good file, each in its own block so that a sanitizer sees a
 * byte too far. */
START_TEST(npy_every_truncation_is_refused)
{
    unsigned char whole[512];
    char why[TENSOR_WHY_BYTES];
    struct tensor_view view;
    size_t size = make_npy(whole, _i + 1, HEADER("'<f4'", "False", "(2, 3)"), 24);

    for (size_t length = 0; length < size; length++) {
        unsigned char *file = malloc(length ? length : 1);
        ck_assert_ptr_nonnull(file);
        memcpy(file, whole, length);
        ck_assert_int_eq(npy_parse(file, length, &view, why), -1);
        free(file);
    }
}
END_TEST

START_TEST(npy_other_magic_version_and_endless_header_are_refused)
{
    unsigned char file[512];
    char why[TENSOR_WHY_BYTES];
    struct tensor_view view;
    size_t size = make_npy(file, 2, HEADER("'<f4'", "False", "(2,)"), 8);

    file[11] = 0xff;
    ck_assert_int_eq(npy_parse(file, size, &view, why), -1);
    ck_assert_ptr_nonnull(strstr(why, "must be at most"));
    file[6] = 4;
    ck_assert_int_eq(npy_parse(file, size, &view, why), -1);
    ck_assert_ptr_nonnull(strstr(why, "version 4.0"));
    file[0] = 'x';
    ck_assert_int_eq(npy_parse(file, size, &view, why), -1);
    ck_assert_ptr_nonnull(strstr(why, "not a .npy file"));
}
END_TEST

START_TEST(npy_written_is_npy_read)
{
    static const int64_t shapes[][3] = { { 2, 3, 4 }, { 24, 1, 1 }, { 0, 5, 7 } };
    unsigned char data[24 * 8], file[1024];
    char path[] = "/tmp/quern_npy_XXXXXX", why[TENSOR_WHY_BYTES];
    struct tensor_view view;
    int dtype = _i;

    close(mkstemp(path));
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (unsigned char)rand();
    for (int rank = 0; rank < 3; rank++) {
        const int64_t *dims = shapes[rank];
        ck_assert_int_eq(npy_write(path, dtype, 3 - rank, dims, data, why), 0);
        FILE *stream = fopen(path, "rb");
        size_t size = fread(file, 1, sizeof(file), stream);
        fclose(stream);
        ck_assert_int_eq(npy_parse(file, size, &view, why), 0);
        ck_assert(view.dtype == dtype || (size_t)view.raw_bytes == quern_dtype_bytes(dtype));
        ck_assert_int_eq(view.rank, 3 - rank);
        ck_assert_mem_eq(view.dims, dims, (size_t)view.rank * sizeof(*dims));
        ck_assert_uint_eq((size_t)(view.data - file) % 64, 0);
        ck_assert_mem_eq(view.data, data, view.bytes);
    }
    unlink(path);
}
END_TEST

START_TEST(npy_write_refuses_what_is_not_a_file_and_leaves_nothing)
{
    char why[TENSOR_WHY_BYTES];
    int64_t dims[1] = { 1 };
    float one = 1;

    ck_assert_int_eq(npy_write("/dev/null", QUERN_F32, 1, dims, &one, why), -1);
    ck_assert_ptr_nonnull(strstr(why, "not a regular file"));
    ck_assert_int_eq(npy_write("/tmp", QUERN_F32, 1, dims, &one, why), -1);
    ck_assert_int_eq(npy_write("/proc/self/none/x.npy", QUERN_F32, 1, dims, &one, why), -1);
    ck_assert_ptr_nonnull(strstr(why, "No such file"));
    ck_assert_int_eq(npy_check_place("/proc/self/none/x.npy", why), -1);
    ck_assert_int_eq(npy_check_place("/x.npy/", why), -1);
    ck_assert_int_eq(npy_check_place("/tmp/x.npy", why), 0);
}
END_TEST

/* ---- safetensors ----------------------------------------------------------------------------- */

static size_t make_safetensors(unsigned char *file, const char *header, size_t data_bytes)
{
    uint64_t length = strlen(header);
    memcpy(file, &length, sizeof(length));
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        file[8 + length + i] = (unsigned char)i;
    return 8 + length + data_bytes;
}

#define TENSORS                                                                                    \
    "{\"__metadata__\":{\"format\":\"pt\"},"                                                       \
    "\"q.weight\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"                   \
    "\"scale\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"                           \
    "\"odd\":{\"dtype\":\"F4\",\"shape\":[8],\"data_offsets\":[0,4]}}   "

START_TEST(safetensors_gives_the_named_tensor)
{
    unsigned char file[512];
    char why[TENSOR_WHY_BYTES];
    struct tensor_view view;
    size_t size = make_safetensors(file, TENSORS, 16);

    ck_assert_int_eq(safetensors_parse(file, size, "q.weight", &view, why), 0);
    ck_assert_int_eq(view.dtype, QUERN_BF16);
    ck_assert_int_eq(view.rank, 2);
    ck_assert_int_eq(view.dims[1], 3);
    ck_assert_uint_eq(view.bytes, 12);
    ck_assert_uint_eq(view.data[0], 4);
    ck_assert_int_eq(safetensors_parse(file, size, "scale", &view, why), 0);
    ck_assert_int_eq(view.rank, 0);
}
END_TEST

#define ONE(dtype, shape, offsets)                                                                 \
    "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
    const char *header, *name, *why;
} bad_safetensors[] = {
    { TENSORS, "q.wieght", "did you mean 'q.weight'" },
    { TENSORS, "__metadata__", "no tensor" },
    { TENSORS, "quite-another", "must be one of q.weight, scale, odd" },
    { TENSORS, "odd", "dtype 'F4'" },
    { ONE("\"F32\"", "[4]", "[0,20]"), "x", "must lie within the 16 bytes" },
    { ONE("\"F32\"", "[4]", "[8,4]"), "x", "malformed data_offsets" },
    { ONE("\"F32\"", "[4]", "[-4,12]"), "x", "malformed data_offsets" },
    { ONE("\"F32\"", "[4]", "[0]"), "x", "malformed data_offsets" },
    { ONE("\"F32\"", "[4]", "\"0,16\""), "x", "malformed data_offsets" },
    { ONE("\"F32\"", "[3]", "[0,16]"), "x", "needs 12 bytes" },
    { ONE("\"F32\"", "[4294967296,4294967296]", "[0,16]"), "x", "63 bits" },
    { ONE("\"F32\"", "[-1]", "[0,16]"), "x", "malformed shape" },
    { ONE("\"F32\"", "[1.5]", "[0,16]"), "x", "malformed shape" },
    { ONE("\"F32\"", "4", "[0,16]"), "x", "malformed shape" },
    { ONE("32", "[4]", "[0,16]"), "x", "dtype ''" },
    { "{\"x\":5}", "x", "dtype ''" },
    { "[1,2]", "x", "must be a JSON object" },
    { "{\"x\":", "x", "must be a JSON object" },
    { "{\"x\":1,\"x\":2}", "x", "must be a JSON object" },
};

START_TEST(safetensors_bad_headers_are_refused_by_name)
{
    unsigned char file[1024];
    char why[TENSOR_WHY_BYTES] = "";
    struct tensor_view view;
    size_t size = make_safetensors(file, bad_safetensors[_i].header, 16);

    ck_assert_int_eq(safetensors_parse(file, size, bad_safetensors[_i].name, &view, why), -1);
    ck_assert_msg(strstr(why, bad_safetensors[_i].why), "%s: \"%s\" lacks \"%s\"",
                  bad_safetensors[_i].header, why, bad_safetensors[_i].why);
}
END_TEST

START_TEST(safetensors_every_truncation_is_refused)
{
    unsigned char whole[512];
    char why[TENSOR_WHY_BYTES];
    struct tensor_view view;
    size_t size = make_safetensors(whole, TENSORS, 16);

    for (size_t length = 0; length < size; length++) {
        unsigned char *file = malloc(length ? length : 1);
        ck_assert_ptr_nonnull(file);
        memcpy(file, whole, length);
        ck_assert_int_eq(safetensors_parse(file, length, "q.weight", &view, why), -1);
        free(file);
    }
    memset(whole, 0xff, 8);
    ck_assert_int_eq(safetensors_parse(whole, size, "q.weight", &view, why), -1);
}
END_TEST

/* ---- Numbers --------------------------------------------------------------------------------- */

static uint32_t encoded(int dtype, double value)
{
    uint32_t code = 0;
    convert_encode(dtype, value, &code);
    return code;
}

static const struct {
    int dtype;
    double value;
    uint32_t code;
} known_codes[] = {
    { QUERN_BF16, 1.0, 0x3f80 },
    { QUERN_BF16, 1.00390625, 0x3f80 },          /* a tie: to even, down */
    { QUERN_BF16, 1.01171875, 0x3f82 },          /* a tie: to even, up */
    { QUERN_BF16, 0x1.0100000000001p0, 0x3f81 }, /* past the tie by less than an f32 can show */
    { QUERN_BF16, 3.4e38, 0x7f80 },              /* rounds up, out of range */
    { QUERN_BF16, 0x1p-133, 0x0001 },            /* the least denormal */
    { QUERN_BF16, 0x1p-134, 0x0000 },            /* a tie with zero */
    { QUERN_BF16, 0x1.8p-134, 0x0001 },
    { QUERN_BF16, 5e-324, 0x0000 },
    { QUERN_BF16, -0.0, 0x8000 },
    { QUERN_F16, 65504, 0x7bff },
    { QUERN_F16, 65519.99, 0x7bff },
    { QUERN_F16, 65520, 0x7c00 },
    { QUERN_F16, 0x1p-24, 0x0001 },
    { QUERN_F16, 0x1p-25, 0x0000 },
    { QUERN_F16, 0x1.ffcp-15, 0x0400 }, /* the largest denormal's upper tie: becomes normal */
    { QUERN_F16, -2.0, 0xc000 },
    { QUERN_E4M3, 448, 0x7e },
    { QUERN_E4M3, 464, 0x7e }, /* a tie with what would be 480 */
    { QUERN_E4M3, 465, 0x7f }, /* no Inf: NaN */
    { QUERN_E4M3, -INFINITY, 0xff },
    { QUERN_E4M3, 0x1p-9, 0x01 },
    { QUERN_E4M3, 0x1p-10, 0x00 },
    { QUERN_E4M3, 1.0, 0x38 },
    { QUERN_E5M2, 57344, 0x7b },
    { QUERN_E5M2, 61440, 0x7c }, /* a tie with Inf */
    { QUERN_E5M2, 0x1p-16, 0x01 },
    { QUERN_E5M2, -INFINITY, 0xfc },
    { QUERN_F32, 1e39, 0x7f800000 },
    { QUERN_F32, 0x1p-149, 0x00000001 },
    { QUERN_F32, 0.1, 0x3dcccccd },
};

START_TEST(known_values_have_known_codes)
{
    uint32_t code = encoded(known_codes[_i].dtype, known_codes[_i].value);
    ck_assert_msg(code == known_codes[_i].code, "%s %a: %x, must be %x",
                  quern_dtype_name(known_codes[_i].dtype), known_codes[_i].value, code,
                  known_codes[_i].code);
}
END_TEST

static const int narrow_types[] = { QUERN_BF16, QUERN_F16, QUERN_E4M3, QUERN_E5M2 };

START_TEST(every_narrow_code_survives_decode_and_encode)
{
    int dtype = narrow_types[_i];
    uint32_t codes = 1u << 8 * quern_dtype_bytes(dtype);

    for (uint32_t code = 0; code < codes; code++) {
        double value = convert_decode(dtype, &code);
        uint32_t again = encoded(dtype, value);
        if (isnan(value))
            ck_assert_msg(isnan(convert_decode(dtype, &again)), "%x lost its NaN", code);
        else
            ck_assert_msg(again == code, "%x became %x", code, again);
    }
}
END_TEST

/* Between neighbours the nearer one, at the middle the even one: checked by
 * arithmetic on doubles, which has nothing in common with how encode() does it.
 */
START_TEST(rounding_goes_to_the_nearer_neighbour_and_ties_to_even)
{
    int dtype = narrow_types[_i];

    for (uint32_t code = 0; code < (1u << (8 * quern_dtype_bytes(dtype) - 1)) - 1; code++) {
        uint32_t next = code + 1;
        double low = convert_decode(dtype, &code), high = convert_decode(dtype, &next);
        if (!isfinite(low) || !isfinite(high))
            continue;
        double middle = (low + high) / 2;
        ck_assert_uint_eq(encoded(dtype, middle), code % 2 ? next : code);
        ck_assert_uint_eq(encoded(dtype, nextafter(middle, 0)), code);
        ck_assert_uint_eq(encoded(dtype, nextafter(middle, INFINITY)), next);
    }
}
END_TEST

START_TEST(f32_conversion_agrees_with_the_processor)
{
    for (int i = 0; i < 1000000; i++) {
        uint64_t bits = (uint64_t)rand() << 40 ^ (uint64_t)rand() << 20 ^ (uint64_t)rand();
        uint32_t expected, code;
        double value;
        float narrow;
        memcpy(&value, &bits, sizeof(value));
        value = i % 2 && isfinite(value) ? ldexp(value, -(ilogb(value) + 130)) : value;
        narrow = (float)value;
        memcpy(&expected, &narrow, sizeof(expected));
        code = encoded(QUERN_F32, value);
        ck_assert(isnan(value) || code == expected);
    }
}
END_TEST

START_TEST(copies_convert_floats_with_a_stride_and_keep_equal_types_bit_for_bit)
{
    static const float from[] = { 1, -2, 3, -4, 5, -6 };
    static const uint32_t nan_with_payload = 0x7fa12345;
    unsigned char unaligned[16];
    uint16_t to[3];
    uint32_t kept;

    memcpy(unaligned + 1, from, 12);
    convert_copy(QUERN_BF16, to, QUERN_F32, from, 2, 3);
    ck_assert_uint_eq(to[0], 0x3f80);
    ck_assert_uint_eq(to[1], 0x4040);
    ck_assert_uint_eq(to[2], 0x40a0);
    convert_copy(QUERN_F16, to, QUERN_F32, unaligned + 1, 1, 3);
    ck_assert_uint_eq(to[1], 0xc000);
    convert_copy(QUERN_F32, &kept, QUERN_F32, &nan_with_payload, 1, 1);
    ck_assert_uint_eq(kept, nan_with_payload);
}
END_TEST

START_TEST(the_nearest_word_is_the_one_that_was_meant)
{
    static const char *const words[] = { "doctor", "families", "gen", "build", "run", "tune" };
    static const struct {
        const char *typed, *meant;
    } typos[] = { { "rnu", "run" },  { "biuld", "build" }, { "family", "families" },
                  { "tun", "tune" }, { "x", NULL },        { "kubernetes", NULL } };

    for (size_t i = 0; i < sizeof(typos) / sizeof(typos[0]); i++) {
        struct nearest nearest;
        nearest_init(&nearest, typos[i].typed);
        for (size_t j = 0; j < sizeof(words) / sizeof(words[0]); j++)
            nearest_offer(&nearest, words[j]);
        ck_assert_pstr_eq(nearest.best, typos[i].meant);
    }
}
END_TEST

#define COUNT(table) (int)(sizeof(table) / sizeof((table)[0]))

int main(void)
{
    Suite *suite = suite_create("npy");
    TCase *npy = tcase_create("npy"), *safetensors = tcase_create("safetensors");
    TCase *numbers = tcase_create("numbers");
    SRunner *runner = srunner_create(suite);

    tcase_add_loop_test(npy, npy_versions_1_to_3_give_dtype_shape_order_and_data, 0, 3);
    tcase_add_loop_test(npy, npy_types_are_recognised, 0, COUNT(known_types));
    tcase_add_test(npy, npy_scalars_and_empty_arrays_are_read);
    tcase_add_loop_test(npy, npy_bad_headers_and_sizes_are_refused_by_name, 0, COUNT(bad_npy));
    tcase_add_loop_test(npy, npy_every_truncation_is_refused, 0, 3);
    tcase_add_test(npy, npy_other_magic_version_and_endless_header_are_refused);
    tcase_add_loop_test(npy, npy_written_is_npy_read, QUERN_F32, QUERN_DTYPE_COUNT);
    tcase_add_test(npy, npy_write_refuses_what_is_not_a_file_and_leaves_nothing);
    tcase_add_test(safetensors, safetensors_gives_the_named_tensor);
    tcase_add_loop_test(safetensors, safetensors_bad_headers_are_refused_by_name, 0,
                        COUNT(bad_safetensors));
    tcase_add_test(safetensors, safetensors_every_truncation_is_refused);
    tcase_add_loop_test(numbers, known_values_have_known_codes, 0, COUNT(known_codes));
    tcase_add_loop_test(numbers, every_narrow_code_survives_decode_and_encode, 0,
                        COUNT(narrow_types));
    tcase_add_loop_test(numbers, rounding_goes_to_the_nearer_neighbour_and_ties_to_even, 0,
                        COUNT(narrow_types));
    tcase_add_test(numbers, f32_conversion_agrees_with_the_processor);
    tcase_add_test(numbers, copies_convert_floats_with_a_stride_and_keep_equal_types_bit_for_bit);
    tcase_add_test(numbers, the_nearest_word_is_the_one_that_was_meant);
    suite_add_tcase(suite, npy);
    suite_add_tcase(suite, safetensors);
    suite_add_tcase(suite, numbers);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
