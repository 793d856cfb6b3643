/* One tensor of a .safetensors file.
 *
 *     header length (u64, little-endian)
 *     {"weight": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}, ...}
 *     the data, row-major; data_offsets count from here
 *
 * The entry asked for is checked against the bytes that are there; others are not looked at, so
 * that a file with a dtype unknown here still serves its other tensors.
 */
#include "safetensors.h"

#include "nearest.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define LENGTH_BYTES 8
#define MAX_HEADER_BYTES UINT64_C(100000000) /* the format's own limit */
#define METADATA "__metadata__"

/* The header as JSON, and where the data start. NULL with why. */
static json_t *load_header(const unsigned char *bytes, size_t size, size_t *data_start,
                           char why[TENSOR_WHY_BYTES])
{
    uint64_t length;
    json_error_t error;

    if (size < LENGTH_BYTES) {
        snprintf(why, TENSOR_WHY_BYTES,
                 "not a safetensors file: must have at least 8 bytes, has %zu", size);
        return NULL;
    }
    memcpy(&length, bytes, sizeof(length));
    if (length > MAX_HEADER_BYTES) {
        snprintf(why, TENSOR_WHY_BYTES, "header of %" PRIu64 " bytes: must be at most %" PRIu64,
                 length, MAX_HEADER_BYTES);
        return NULL;
    }
    if (length > size - LENGTH_BYTES) {
        snprintf(why, TENSOR_WHY_BYTES,
                 "truncated: its header has %" PRIu64 " bytes, the file holds %zu of them", length,
                 size - LENGTH_BYTES);
        return NULL;
    }
    json_t *header = json_loadb((const char *)bytes + LENGTH_BYTES, (size_t)length,
                                JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(header)) {
        snprintf(why, TENSOR_WHY_BYTES, "malformed header: must be a JSON object%s%.200s",
                 header ? "" : ": ", header ? "" : error.text);
        json_decref(header);
        return NULL;
    }
    *data_start = LENGTH_BYTES + (size_t)length;
    return header;
}

static int refuse_missing(json_t *header, const char *name, char why[TENSOR_WHY_BYTES])
{
    struct nearest nearest;
    const char *key;
    json_t *entry;
    size_t used;
    int shown = 0;

    nearest_init(&nearest, name);
    json_object_foreach(header, key, entry) if (strcmp(key, METADATA)) nearest_offer(&nearest, key);
    used = (size_t)snprintf(why, TENSOR_WHY_BYTES, "no tensor '%.100s'", name);
    if (nearest.best) {
        snprintf(why + used, TENSOR_WHY_BYTES - used, "; did you mean '%.100s'?", nearest.best);
        return -1;
    }
    json_object_foreach(header, key, entry)
    {
        if (!strcmp(key, METADATA) || used + strlen(key) + 16 > TENSOR_WHY_BYTES)
            continue;
        if (shown == 8) {
            snprintf(why + used, TENSOR_WHY_BYTES - used, ", ...");
            break;
        }
        used += (size_t)snprintf(why + used, TENSOR_WHY_BYTES - used, "%s%s",
                                 shown++ ? ", " : ": must be one of ", key);
    }
    return -1;
}

static int find_type(const char *type, struct tensor_view *view, char why[TENSOR_WHY_BYTES])
{
    static const struct {
        const char *name;
        int dtype;
    } types[] = {
        { "F32", QUERN_F32 }, { "BF16", QUERN_BF16 },    { "F16", QUERN_F16 },
        { "F64", QUERN_F64 }, { "F8_E4M3", QUERN_E4M3 }, { "F8_E5M2", QUERN_E5M2 },
        { "I8", QUERN_I8 },   { "U8", QUERN_U8 },        { "I32", QUERN_I32 },
        { "I64", QUERN_I64 },
    };
    for (size_t i = 0; type && i < sizeof(types) / sizeof(types[0]); i++) {
        if (strcmp(type, types[i].name))
            continue;
        view->dtype = types[i].dtype;
        snprintf(view->type, sizeof(view->type), "%s", type);
        return 0;
    }
    snprintf(why, TENSOR_WHY_BYTES,
             "dtype '%.32s': must be one of F32 BF16 F16 F64 I32 I64 U8 I8 "
             "F8_E4M3 F8_E5M2",
             type ? type : "");
    return -1;
}

static int find_shape(json_t *shape, struct tensor_view *view, char why[TENSOR_WHY_BYTES])
{
    size_t i;
    json_t *extent;
    int is_good = json_is_array(shape) && json_array_size(shape) <= TENSOR_MAX_RANK;

    if (is_good) {
        json_array_foreach(shape, i, extent)
        {
            is_good = is_good && json_is_integer(extent) && json_integer_value(extent) >= 0;
            view->dims[view->rank++] = json_integer_value(extent);
        }
    }
    if (!is_good)
        snprintf(why, TENSOR_WHY_BYTES,
                 "malformed shape: must be an array of at most %d numbers "
                 ">= 0",
                 TENSOR_MAX_RANK);
    return is_good ? 0 : -1;
}

/* data_offsets = [begin, end] must lie in the file and be as long as dtype and shape say. */
static int find_data(json_t *offsets, const unsigned char *data, size_t data_bytes,
                     struct tensor_view *view, char why[TENSOR_WHY_BYTES])
{
    json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    int64_t begin = json_integer_value(first), end = json_integer_value(last), count;
    char shape[256];

    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
        begin < 0 || end < begin) {
        snprintf(why, TENSOR_WHY_BYTES,
                 "malformed data_offsets: must be [begin, end] with 0 <= begin "
                 "<= end");
        return -1;
    }
    if ((uint64_t)end > data_bytes) {
        snprintf(why, TENSOR_WHY_BYTES,
                 "truncated: data_offsets [%" PRId64 ", %" PRId64 "] must lie "
                 "within the %zu bytes of data",
                 begin, end, data_bytes);
        return -1;
    }
    tensor_shape_text(view->rank, view->dims, shape, sizeof(shape));
    if (tensor_size(view->rank, view->dims, quern_dtype_bytes(view->dtype), &count, &view->bytes)) {
        snprintf(why, TENSOR_WHY_BYTES, "shape %s: its byte count must fit 63 bits", shape);
        return -1;
    }
    if ((uint64_t)(end - begin) != view->bytes) {
        snprintf(why, TENSOR_WHY_BYTES,
                 "shape %s of %s needs %zu bytes, data_offsets [%" PRId64 ", %" PRId64
                 "] give %" PRId64,
                 shape, view->type, view->bytes, begin, end, end - begin);
        return -1;
    }
    view->data = data + begin;
    return 0;
}

int safetensors_parse(const void *bytes, size_t size, const char *name, struct tensor_view *view,
                      char why[TENSOR_WHY_BYTES])
{
    size_t data_start;
    int status = -1;
    json_t *header, *entry;

    memset(view, 0, sizeof(*view));
    header = load_header(bytes, size, &data_start, why);
    if (!header)
        return -1;
    entry = strcmp(name, METADATA) ? json_object_get(header, name) : NULL;
    if (!entry)
        status = refuse_missing(header, name, why);
    else if (!find_type(json_string_value(json_object_get(entry, "dtype")), view, why) &&
             !find_shape(json_object_get(entry, "shape"), view, why))
        status = find_data(json_object_get(entry, "data_offsets"),
                           (const unsigned char *)bytes + data_start, size - data_start, view, why);
    json_decref(header);
    return status;
}
