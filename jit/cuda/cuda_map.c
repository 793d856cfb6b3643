/* Tensor maps: a quern_tensor_map as the 128 bytes that TMA reads.
 *
 *     step->maps[i] --equal to the last?--> its bytes ------------------+--> step->args
 *                   --only data differs?--> its bytes, new address -----+
 *                   --else--> checked, encoded, remembered -------------+
 *
 * The last encoding of each map is kept with the function, under a flag that nobody waits for: a
 * thread that finds it taken encodes into its own args. cuTensorMapEncodeTiled answers everything
 * it does not like with CUDA_ERROR_INVALID_VALUE, so its limits (its page in the driver API's
 * reference) are checked ahead of it, to say which one it was.
 *
 * Strides of dimensions of extent 1 are never walked, and callers may give anything there (0, odd
 * ones): the driver gets a legal one in their place. */
#include "jit/cuda/cuda_device.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum {
    MAP_ALIGN = 16,        /* bytes, of base, strides and inner box side */
    MAP_OFFSET_ALIGN = 64, /* of a map among the arguments */
    MAX_BOX = 256,
    INTERLEAVE_NONE = 0,
    L2_PROMOTION_256 = 3,
    FILL_ZEROS = 0
};
static const int64_t MAX_DIM = INT64_C(1) << 32, MAX_STRIDE_BYTES = INT64_C(1) << 40;

/* Where a line is about: step=NAME map[I]. */
struct place {
    const char *step;
    int index;
};

/* What cuTensorMapEncodeTiled takes, beside the address. */
struct encoding {
    int dtype, swizzle;
    uint64_t dims[QUERN_MAP_RANK], strides[QUERN_MAP_RANK];
    uint32_t box[QUERN_MAP_RANK];
};

/* ---- Numbers of the driver ----------------------------------------------------------------- */

/* CUtensorMapDataType; -1: there is none. Bytes of any meaning go as UINT8. */
static int cu_dtype(int dtype)
{
    switch (dtype) {
    case QUERN_E4M3:
    case QUERN_E5M2:
    case QUERN_I8:
    case QUERN_U8:
        return 0;
    case QUERN_I32:
        return 3;
    case QUERN_I64:
        return 5;
    case QUERN_F16:
        return 6;
    case QUERN_F32:
        return 7;
    case QUERN_F64:
        return 8;
    case QUERN_BF16:
        return 9;
    default:
        return -1;
    }
}

/* CUtensorMapSwizzle; -1: there is none. */
static int cu_swizzle(int bytes)
{
    switch (bytes) {
    case 0:
        return 0;
    case 32:
        return 1;
    case 64:
        return 2;
    case 128:
        return 3;
    default:
        return -1;
    }
}

/* ---- Limits -------------------------------------------------------------------------------- */

static int check_data(const struct place *at, const struct quern_tensor_map *map,
                      struct quern_message *why)
{
    if ((uintptr_t)map->data % MAP_ALIGN || !map->data)
        return quern_refuse(why, "step=%s map[%d]: data=%p: must be a multiple of %d", at->step,
                            at->index, map->data, MAP_ALIGN);
    return 0;
}

static int check_kind(const struct place *at, const struct quern_tensor_map *map,
                      struct encoding *made, struct quern_message *why)
{
    made->dtype = cu_dtype(map->dtype);
    made->swizzle = cu_swizzle(map->swizzle);
    if (map->rank < 1 || map->rank > QUERN_MAP_RANK)
        return quern_refuse(why, "step=%s map[%d]: rank=%d: must be 1 to %d", at->step, at->index,
                            map->rank, QUERN_MAP_RANK);
    if (made->dtype < 0)
        return quern_refuse(why, "step=%s map[%d]: dtype=%s: has no tensor maps", at->step,
                            at->index, quern_dtype_name(map->dtype));
    if (made->swizzle < 0)
        return quern_refuse(why, "step=%s map[%d]: swizzle=%d: must be 0, 32, 64 or 128", at->step,
                            at->index, map->swizzle);
    return 0;
}

static int check_box(const struct place *at, const struct quern_tensor_map *map,
                     struct encoding *made, struct quern_message *why)
{
    int64_t bytes = (int64_t)quern_dtype_bytes(map->dtype) * map->box[0];

    for (int i = 0; i < map->rank; i++) {
        if (map->box[i] < 1 || map->box[i] > MAX_BOX)
            return quern_refuse(why, "step=%s map[%d]: box[%d]=%d: must be 1 to %d", at->step,
                                at->index, i, map->box[i], MAX_BOX);
        made->box[i] = (uint32_t)map->box[i];
    }
    if (bytes % MAP_ALIGN)
        return quern_refuse(why,
                            "step=%s map[%d]: box[0]=%d: is %lld bytes: must be a multiple of %d",
                            at->step, at->index, map->box[0], (long long)bytes, MAP_ALIGN);
    if (map->swizzle && bytes > map->swizzle)
        return quern_refuse(why,
                            "step=%s map[%d]: box[0]=%d: is %lld bytes: must be at most the "
                            "swizzle's %d",
                            at->step, at->index, map->box[0], (long long)bytes, map->swizzle);
    return 0;
}

static int check_dims(const struct place *at, const struct quern_tensor_map *map,
                      struct encoding *made, struct quern_message *why)
{
    for (int i = 0; i < map->rank; i++) {
        if (map->dims[i] < 1 || map->dims[i] > MAX_DIM)
            return quern_refuse(why, "step=%s map[%d]: dims[%d]=%lld: must be 1 to 2^32", at->step,
                                at->index, i, (long long)map->dims[i]);
        made->dims[i] = (uint64_t)map->dims[i];
    }
    return 0;
}

/* The driver's strides start with that of dimension 1. */
static int check_strides(const struct place *at, const struct quern_tensor_map *map,
                         struct encoding *made, struct quern_message *why)
{
    int64_t element = (int64_t)quern_dtype_bytes(map->dtype);
    int64_t unused = (map->dims[0] * element + MAP_ALIGN - 1) / MAP_ALIGN * MAP_ALIGN;

    if (map->strides[0] != 1 && map->dims[0] != 1)
        return quern_refuse(why, "step=%s map[%d]: strides[0]=%lld: must be 1", at->step, at->index,
                            (long long)map->strides[0]);
    for (int i = 1; i < map->rank; i++) {
        int64_t stride = map->strides[i];
        if (map->dims[i] == 1) {
            made->strides[i - 1] = (uint64_t)unused;
            continue;
        }
        if (stride < 0 || stride >= MAX_STRIDE_BYTES / element || stride * element % MAP_ALIGN)
            return quern_refuse(why,
                                "step=%s map[%d]: strides[%d]=%lld of %lld-byte elements: must "
                                "be a multiple of %d bytes below 2^40",
                                at->step, at->index, i, (long long)stride, (long long)element,
                                MAP_ALIGN);
        made->strides[i - 1] = (uint64_t)(stride * element);
    }
    return 0;
}

/* ---- Encoding ------------------------------------------------------------------------------ */

static int encode(const struct qn_cuda_driver *cu, const struct place *at,
                  const struct quern_tensor_map *map, void *encoded, struct quern_message *why)
{
    static const uint32_t ones[QUERN_MAP_RANK] = { 1, 1, 1, 1, 1 };
    struct encoding made;
    char subject[64];

    int status = check_kind(at, map, &made, why);
    if (!status)
        status = check_data(at, map, why);
    if (!status)
        status = check_dims(at, map, &made, why);
    if (!status)
        status = check_box(at, map, &made, why);
    if (!status)
        status = check_strides(at, map, &made, why);
    if (status)
        return status;
    int code = cu->map_encode(encoded, made.dtype, (uint32_t)map->rank,
                              (void *)(uintptr_t)map->data, made.dims, made.strides, made.box, ones,
                              INTERLEAVE_NONE, made.swizzle, L2_PROMOTION_256, FILL_ZEROS);
    if (!code)
        return 0;
    snprintf(subject, sizeof subject, "step=%.32s map[%d]", at->step, at->index);
    return qn_cuda_fail(cu, subject, "cuTensorMapEncodeTiled", code, why);
}

/* All but data and args_offset, which no two fields have padding between. */
static bool is_same_shape(const struct quern_tensor_map *a, const struct quern_tensor_map *b)
{
    enum {
        FIRST = offsetof(struct quern_tensor_map, dtype),
        END = offsetof(struct quern_tensor_map, box) + sizeof a->box
    };

    return !memcmp((const char *)a + FIRST, (const char *)b + FIRST, END - FIRST);
}

/* With the flag taken. */
static int encode_remembered(const struct qn_cuda_driver *cu, struct qn_cuda_maps *maps,
                             const struct place *at, const struct quern_tensor_map *map,
                             void *encoded, struct quern_message *why)
{
    bool is_set = maps->last[at->index].is_set;
    struct quern_tensor_map *last = &maps->last[at->index].map;
    unsigned char *bytes = maps->last[at->index].encoded;
    int status = 0;

    if (!is_set || !is_same_shape(last, map)) {
        maps->last[at->index].is_set = false;
        status = encode(cu, at, map, bytes, why);
    } else if (last->data != map->data) {
        status = check_data(at, map, why);
        /* It refuses no address that passed; should it, the map is made anew. */
        if (!status && cu->map_replace(bytes, (void *)(uintptr_t)map->data))
            status = encode(cu, at, map, bytes, why);
    }
    if (status)
        return status;
    *last = *map;
    maps->last[at->index].is_set = true;
    memcpy(encoded, bytes, QUERN_MAP_BYTES);
    return 0;
}

/* The driver writes to a 64-byte boundary, which a launch's args need not be on. */
static int encode_alone(const struct qn_cuda_driver *cu, const struct place *at,
                        const struct quern_tensor_map *map, void *encoded,
                        struct quern_message *why)
{
    __attribute__((aligned(MAP_OFFSET_ALIGN))) unsigned char bytes[QUERN_MAP_BYTES];
    int status = encode(cu, at, map, bytes, why);

    if (!status)
        memcpy(encoded, bytes, QUERN_MAP_BYTES);
    return status;
}

static int check_offset(const struct place *at, const struct quern_step_launch *step,
                        struct quern_message *why)
{
    uint32_t offset = step->maps[at->index].args_offset;

    if (offset % MAP_OFFSET_ALIGN || offset > QUERN_ARGS_BYTES - QUERN_MAP_BYTES ||
        offset + QUERN_MAP_BYTES > step->args_bytes)
        return quern_refuse(why,
                            "step=%s map[%d]: args_offset=%u: must be a multiple of %d, and its "
                            "%d bytes within the %u of the arguments",
                            at->step, at->index, offset, MAP_OFFSET_ALIGN, QUERN_MAP_BYTES,
                            step->args_bytes);
    return 0;
}

int qn_cuda_maps_encode(const struct qn_cuda_driver *cu, struct qn_cuda_maps *maps,
                        struct quern_step_launch *step, const char *name, struct quern_message *why)
{
    bool is_mine = !atomic_flag_test_and_set_explicit(&maps->is_busy, memory_order_acquire);
    struct place at = { name, 0 };
    int status = 0;

    if (step->map_count < 0 || step->map_count > QUERN_MAX_MAPS)
        status = quern_refuse(why, "step=%s: map_count=%d: must be at most %d", name,
                              step->map_count, QUERN_MAX_MAPS);
    for (int i = 0; !status && i < step->map_count; i++) {
        const struct quern_tensor_map *map = &step->maps[i];
        at.index = i;
        status = check_offset(&at, step, why);
        if (status)
            break;
        unsigned char *encoded = step->args + map->args_offset;
        status = is_mine ? encode_remembered(cu, maps, &at, map, encoded, why)
                         : encode_alone(cu, &at, map, encoded, why);
    }
    if (is_mine)
        atomic_flag_clear_explicit(&maps->is_busy, memory_order_release);
    return status;
}
