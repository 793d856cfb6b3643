/* Regions: which bytes a call may touch, and host images of them.
 *
 *     arrays     x ────────┐        w ───────┐      pool ─ ─■─ ─ ─■■─ ─ ─
 *                    out ────────┐           │           (slots in use)
 *     regions    0: [ x+out      ]  1: [ w   ]      2: [               ]
 *     segments      [............]     [.....]            [■]   [■■]
 *     image      packed host copies of the segments, one a region
 *
 * 1. Each array spans the bytes from its data to one past its last element. Arrays whose spans
 *    overlap form one region, so that a copy of the region keeps their aliasing: an input that
 *    overlaps an output is restored like an inout.
 * 2. A region is one segment, whole, except a pool: more than 1 MiB of which a call touches less
 *    than a quarter. A pool's segments are the ranges that the family's touched() names, each
 *    reaching a guard's width further so that a neighbour slot's damage is seen.
 * 3. What a call may change is the elements of OUT and INOUT arrays inside their touched ranges;
 *    every other byte of a segment, such as the padding between rows, must stay.
 *
 * Device memory is reached through the backend's copy and fill only, so that this is the same for
 * every device. Nothing here launches.
 *
 * A tuning does all this for every candidate, on arrays of a hundred megabytes and more. So host
 * bytes are worked on by all threads, and a region that one dense output covers, all of which a
 * call may change, is poisoned on the device and compared with nothing.
 */
#include "jit/region.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "jit/dtype.h"
#include "jit/indices.h"

#define POOL_BYTES (1 << 20)
#define POOL_SHARE 4 /* touched bytes times this are still less than the span */
#define CHUNK_BYTES (4 << 20)
#define PART_BYTES (1 << 20) /* of host bytes, a thread's at a time */
#define COMPARE_THREADS 8    /* more do not make a device's memory come faster */

static int out_of_memory(struct quern_message *why, int64_t bytes)
{
    quern_refuse(why, "out of memory: no %lld bytes for a host copy", (long long)bytes);
    return QUERN_NO_MEMORY;
}

static int copy_bytes(const struct qn_regions *map, void *to, const void *from, int64_t bytes,
                      struct quern_message *why)
{
    return qn_copy(map->ctx, to, from, (size_t)bytes, why);
}

/* ---- Host bytes ---------------------------------------------------------------------------- */

/* In parts that a core's cache holds; few of them are not worth waking threads for. */
static size_t part_of(int64_t at, int64_t bytes)
{
    return (size_t)(bytes - at < PART_BYTES ? bytes - at : PART_BYTES);
}

static void host_copy(char *to, const char *from, int64_t bytes)
{
#pragma omp parallel for schedule(static) if (bytes > 4 * PART_BYTES)
    for (int64_t at = 0; at < bytes; at += PART_BYTES)
        memcpy(to + at, from + at, part_of(at, bytes));
}

static void host_fill(char *to, int byte, int64_t bytes)
{
#pragma omp parallel for schedule(static) if (bytes > 4 * PART_BYTES)
    for (int64_t at = 0; at < bytes; at += PART_BYTES)
        memset(to + at, byte, part_of(at, bytes));
}

static bool is_host_equal(const char *a, const char *b, int64_t bytes)
{
    int differing = 0;
#pragma omp parallel for schedule(static) reduction(| : differing) if (bytes > 4 * PART_BYTES)
    for (int64_t at = 0; at < bytes; at += PART_BYTES)
        differing |= memcmp(a + at, b + at, part_of(at, bytes)) != 0;
    return !differing;
}

/* Bytes of array `index`; 0 if it is absent or empty. */
static int64_t span_of(const struct qn_regions *map, int index)
{
    return map->bound[index].data ? qn_array_span(&map->shapes[index], &map->bound[index]) : 0;
}

/* ---- Layouts ------------------------------------------------------------------------------- */

static void layout_init(struct qn_layout *layout, const struct quern_shape *shape,
                        const struct quern_array *bound)
{
    layout->count = qn_shape_count(shape);
    layout->element_bytes = (int64_t)quern_dtype_bytes(shape->dtype);
    layout->run = 1;
    layout->outer_rank = shape->rank;
    for (int d = shape->rank - 1; d >= 0; d--) {
        if (shape->dims[d] != 1 && bound->strides[d] != layout->run)
            break;
        layout->run *= shape->dims[d];
        layout->outer_rank = d;
    }
}

int64_t qn_array_piece(const struct qn_regions *map, int index, int64_t first, int64_t count,
                       int64_t *offset)
{
    const struct qn_layout *layout = &map->layouts[index];
    int64_t outer = first / layout->run, inside = first % layout->run, element = inside;
    for (int d = layout->outer_rank - 1; d >= 0; d--) {
        element += outer % map->shapes[index].dims[d] * map->bound[index].strides[d];
        outer /= map->shapes[index].dims[d];
    }
    *offset = element * layout->element_bytes;
    return count < layout->run - inside ? count : layout->run - inside;
}

/* ---- Touched ranges ------------------------------------------------------------------------ */

static bool ranges_grow(struct quern_ranges *ranges)
{
    int64_t capacity = ranges->capacity ? 2 * ranges->capacity : 16;
    struct qn_segment *list = realloc(ranges->list, (size_t)capacity * sizeof(*list));
    if (!list) {
        ranges->is_out_of_memory = true;
        return false;
    }
    ranges->list = list;
    ranges->capacity = capacity;
    return true;
}

void quern_ranges_add(struct quern_ranges *ranges, int64_t begin, int64_t end)
{
    if (begin < 0 || end < begin || end > ranges->span) {
        if (!ranges->is_stray)
            ranges->stray = (struct qn_segment){ begin, end, 0 };
        ranges->is_stray = true;
        return;
    }
    struct qn_segment *last = ranges->count ? &ranges->list[ranges->count - 1] : NULL;
    if (last && begin >= last->begin && begin <= last->end) { /* pages that follow each other */
        last->end = end > last->end ? end : last->end;
        return;
    }
    if (begin == end || (ranges->count == ranges->capacity && !ranges_grow(ranges)))
        return;
    ranges->list[ranges->count++] = (struct qn_segment){ begin, end, 0 };
}

static int segment_compare(const void *a, const void *b)
{
    const struct qn_segment *left = a, *right = b;
    return (left->begin > right->begin) - (left->begin < right->begin);
}

/* The union of the segments, sorted and in place; returns how many there are. */
static int64_t segments_merge(struct qn_segment *segments, int64_t count)
{
    int64_t kept = 0;
    if (count)
        qsort(segments, (size_t)count, sizeof(*segments), segment_compare);
    for (int64_t i = 0; i < count; i++) {
        if (segments[i].begin == segments[i].end)
            continue;
        if (!kept || segments[i].begin > segments[kept - 1].end)
            segments[kept++] = segments[i];
        else if (segments[i].end > segments[kept - 1].end)
            segments[kept - 1].end = segments[i].end;
    }
    return kept;
}

/* Merges what touched() added for array `index`, unless it cannot be used. */
static int ranges_close(struct qn_regions *map, int index, struct quern_message *why)
{
    struct quern_ranges *ranges = &map->touched[index];
    if (ranges->is_out_of_memory)
        return out_of_memory(why, 2 * ranges->capacity * (int64_t)sizeof(*ranges->list));
    if (ranges->is_stray) {
        quern_refuse(why, "%s: its family says that bytes [%lld, %lld) are touched, of %lld",
                     map->spec.family->arrays[index].name, (long long)ranges->stray.begin,
                     (long long)ranges->stray.end, (long long)ranges->span);
        return QUERN_INTERNAL;
    }
    ranges->count = segments_merge(ranges->list, ranges->count);
    return QUERN_OK;
}

static int touched_find(struct qn_regions *map, struct quern_message *why)
{
    const struct quern_family *family = map->spec.family;
    struct qn_indices indices = { { NULL } };
    int status = QUERN_OK;
    if (family->touched || (map->ctx->is_checking && family->check_indices))
        status = qn_indices_read(map->ctx, &map->spec, map->bound, NULL, &indices, why);
    if (!status)
        status = qn_indices_check(map->ctx, &map->spec, &indices, why);
    for (int i = 0; i < family->array_count && !status; i++) {
        map->touched[i].span = span_of(map, i);
        if (map->touched[i].span == 0)
            continue;
        if (family->touched)
            family->touched(&map->spec, map->bound, (const void *const *)indices.host, i,
                            &map->touched[i]);
        else
            quern_ranges_add(&map->touched[i], 0, map->touched[i].span);
        status = ranges_close(map, i, why);
    }
    qn_indices_fini(&indices);
    return status;
}

/* ---- Regions ------------------------------------------------------------------------------- */

static void region_add(struct qn_regions *map, int index, char *base, int64_t bytes)
{
    int last = map->count - 1;
    struct qn_region *region = &map->regions[last < 0 ? 0 : last];
    if (last < 0 || base >= region->base + region->bytes) {
        region = &map->regions[map->count++];
        region->base = base;
        region->bytes = 0;
    }
    if (base + bytes > region->base + region->bytes)
        region->bytes = base + bytes - region->base;
    int role = map->shapes[index].role;
    region->is_read |= role != QUERN_OUT;
    region->is_written |= role != QUERN_IN;
    map->region_of[index] = map->count - 1;
    map->offset[index] = base - region->base;
}

/* In order of address, so that overlapping arrays follow each other. */
static void regions_merge(struct qn_regions *map)
{
    int count = map->spec.family->array_count;
    for (int i = 0; i < count; i++)
        map->region_of[i] = -1;
    for (;;) {
        int next = -1;
        for (int i = 0; i < count; i++) {
            if (map->region_of[i] >= 0 || span_of(map, i) == 0)
                continue;
            if (next < 0 || (char *)map->bound[i].data < (char *)map->bound[next].data)
                next = i;
        }
        if (next < 0)
            return;
        region_add(map, next, map->bound[next].data, span_of(map, next));
    }
}

/* Whether an output may be poisoned: no call reads what it holds. */
static bool is_unread(const struct qn_regions *map, int index)
{
    if (map->region_of[index] < 0 || map->shapes[index].role != QUERN_OUT)
        return false;
    for (int i = 0; i < map->spec.family->array_count; i++) {
        bool is_read = map->shapes[i].role == QUERN_IN || map->shapes[i].role == QUERN_INOUT;
        if (is_read && map->region_of[i] == map->region_of[index] &&
            qn_arrays_share(&map->shapes[i], &map->bound[i], &map->shapes[index],
                            &map->bound[index]))
            return false;
    }
    return true;
}

/* Merges a region's segments and gives them their places in an image; returns their bytes. */
static int64_t region_pack(struct qn_region *region)
{
    region->segment_count = segments_merge(region->segments, region->segment_count);
    region->packed_bytes = 0;
    for (int64_t i = 0; i < region->segment_count; i++) {
        struct qn_segment *segment = &region->segments[i];
        segment->packed = region->packed_bytes;
        region->packed_bytes += segment->end - segment->begin;
    }
    return region->packed_bytes;
}

static int segments_make(struct qn_regions *map, int index, struct quern_message *why)
{
    struct qn_region *region = &map->regions[index];
    int64_t capacity = 1, count = 0;
    for (int i = 0; i < map->spec.family->array_count; i++)
        capacity += map->region_of[i] == index ? map->touched[i].count : 0;
    region->segments = calloc((size_t)capacity, sizeof(*region->segments));
    if (!region->segments)
        return out_of_memory(why, capacity * (int64_t)sizeof(*region->segments));
    for (int i = 0; i < map->spec.family->array_count; i++) {
        for (int64_t r = 0; map->region_of[i] == index && r < map->touched[i].count; r++) {
            const struct qn_segment *range = &map->touched[i].list[r];
            region->segments[count++] = (struct qn_segment){ map->offset[i] + range->begin,
                                                             map->offset[i] + range->end, 0 };
        }
    }
    region->segment_count = count;
    int64_t touched = region_pack(region);
    region->is_pool = region->bytes > POOL_BYTES && touched < region->bytes / POOL_SHARE;
    if (!region->is_pool) {
        region->segment_count = 1;
        region->segments[0] = (struct qn_segment){ 0, region->bytes, 0 };
    }
    for (int64_t i = 0; region->is_pool && i < region->segment_count; i++) {
        struct qn_segment *segment = &region->segments[i];
        int64_t room = region->bytes - segment->end;
        segment->begin -= segment->begin < QN_GUARD_BYTES ? segment->begin : QN_GUARD_BYTES;
        segment->end += room < QN_GUARD_BYTES ? room : QN_GUARD_BYTES;
    }
    region_pack(region);
    return QUERN_OK;
}

int qn_regions_init(struct qn_regions *map, struct quern_context *ctx,
                    const struct quern_spec *spec, const struct quern_array *bound,
                    struct quern_message *why)
{
    int array_count = spec->family->array_count;
    memset(map, 0, sizeof(*map));
    map->ctx = ctx;
    map->spec = *spec;
    for (int i = 0; i < array_count; i++) {
        map->bound[i] = bound[i];
        spec->family->shape(spec, i, &map->shapes[i]);
        if (map->shapes[i].role == QUERN_ABSENT)
            map->bound[i].data = NULL;
        else
            layout_init(&map->layouts[i], &map->shapes[i], &bound[i]);
    }
    int status = touched_find(map, why);
    if (!status)
        regions_merge(map);
    for (int i = 0; i < array_count && !status; i++)
        map->is_poisoned[i] = is_unread(map, i);
    for (int r = 0; r < map->count && !status; r++)
        status = segments_make(map, r, why);
    if (status)
        qn_regions_fini(map);
    return status;
}

void qn_regions_fini(struct qn_regions *map)
{
    for (int r = 0; r < map->count; r++)
        free(map->regions[r].segments);
    map->count = 0;
    for (int i = 0; i < QUERN_MAX_ARRAYS; i++)
        free(map->touched[i].list);
    memset(map->touched, 0, sizeof(map->touched));
}

void qn_place_bound(const struct qn_regions *map, struct qn_place *place)
{
    for (int r = 0; r < map->count; r++)
        place->base[r] = map->regions[r].base;
}

void qn_place_arrays(const struct qn_regions *map, const struct qn_place *place,
                     struct quern_array arrays[QUERN_MAX_ARRAYS])
{
    for (int i = 0; i < map->spec.family->array_count; i++) {
        arrays[i] = map->bound[i];
        if (map->region_of[i] >= 0)
            arrays[i].data = place->base[map->region_of[i]] + map->offset[i];
    }
}

/* ---- Images -------------------------------------------------------------------------------- */

int qn_image_init(const struct qn_regions *map, enum qn_image_which which, struct qn_image *image,
                  struct quern_message *why)
{
    memset(image, 0, sizeof(*image));
    for (int r = 0; r < map->count; r++) {
        const struct qn_region *region = &map->regions[r];
        if (which == QN_IMAGE_WRITTEN && !region->is_written)
            continue;
        image->data[r] = malloc((size_t)region->packed_bytes + 1);
        if (!image->data[r]) {
            qn_image_fini(image);
            return out_of_memory(why, region->packed_bytes);
        }
    }
    return QUERN_OK;
}

void qn_image_fini(struct qn_image *image)
{
    for (int r = 0; r < QUERN_MAX_ARRAYS; r++)
        free(image->data[r]);
    memset(image, 0, sizeof(*image));
}

int qn_image_read(const struct qn_regions *map, const struct qn_place *place,
                  struct qn_image *image, struct quern_message *why)
{
    for (int r = 0; r < map->count; r++) {
        const struct qn_region *region = &map->regions[r];
        for (int64_t s = 0; image->data[r] && s < region->segment_count; s++) {
            const struct qn_segment *segment = &region->segments[s];
            QN_TRY(copy_bytes(map, image->data[r] + segment->packed,
                              place->base[r] + segment->begin, segment->end - segment->begin, why));
        }
    }
    return QUERN_OK;
}

static int region_write(const struct qn_regions *map, const struct qn_place *place, int r,
                        const struct qn_image *image, struct quern_message *why)
{
    const struct qn_region *region = &map->regions[r];
    for (int64_t s = 0; s < region->segment_count; s++) {
        const struct qn_segment *segment = &region->segments[s];
        QN_TRY(copy_bytes(map, place->base[r] + segment->begin, image->data[r] + segment->packed,
                          segment->end - segment->begin, why));
    }
    return QUERN_OK;
}

int qn_image_write(const struct qn_regions *map, const struct qn_place *place,
                   const struct qn_image *image, struct quern_message *why)
{
    for (int r = 0; r < map->count; r++) {
        if (image->data[r])
            QN_TRY(region_write(map, place, r, image, why));
    }
    return QUERN_OK;
}

void qn_image_copy(const struct qn_regions *map, const struct qn_image *from, struct qn_image *to)
{
    for (int r = 0; r < map->count; r++) {
        if (from->data[r] && to->data[r])
            host_copy(to->data[r], from->data[r], map->regions[r].packed_bytes);
    }
}

char *qn_image_at(const struct qn_regions *map, const struct qn_image *image, int index,
                  int64_t offset, int64_t bytes)
{
    if (map->region_of[index] < 0 || !image->data[map->region_of[index]])
        return NULL;
    const struct qn_region *region = &map->regions[map->region_of[index]];
    int64_t begin = map->offset[index] + offset;
    int64_t low = 0, high = region->segment_count - 1;
    while (low < high) { /* the last segment that begins at or before it */
        int64_t middle = (low + high + 1) / 2;
        if (region->segments[middle].begin <= begin)
            low = middle;
        else
            high = middle - 1;
    }
    if (high < 0)
        return NULL;
    const struct qn_segment *segment = &region->segments[low];
    if (begin < segment->begin || begin + bytes > segment->end)
        return NULL;
    return image->data[map->region_of[index]] + segment->packed + (begin - segment->begin);
}

/* ---- What may change ----------------------------------------------------------------------- */

/* The first range that ends past byte `offset`. */
static int64_t range_after(const struct quern_ranges *ranges, int64_t offset)
{
    int64_t low = 0, high = ranges->count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (ranges->list[middle].end > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Every contiguous piece of an array's elements inside its touched ranges. */
static void each_piece(const struct qn_regions *map, int index,
                       void (*visit)(void *user, int64_t offset, int64_t bytes), void *user)
{
    const struct qn_layout *layout = &map->layouts[index];
    const struct quern_ranges *ranges = &map->touched[index];
    for (int64_t first = 0; first < layout->count;) {
        int64_t offset;
        int64_t piece = qn_array_piece(map, index, first, layout->count - first, &offset);
        int64_t end = offset + piece * layout->element_bytes;
        for (int64_t r = range_after(ranges, offset); r < ranges->count; r++) {
            const struct qn_segment *range = &ranges->list[r];
            if (range->begin >= end)
                break;
            int64_t from = range->begin > offset ? range->begin : offset;
            int64_t to = range->end < end ? range->end : end;
            visit(user, from, to - from);
        }
        first += piece;
    }
}

bool qn_is_poisoned(const struct qn_regions *map, int index)
{
    return map->is_poisoned[index];
}

unsigned char qn_poison_byte(int dtype, int round)
{
    if (qn_dtype_is_float(dtype))
        return 0xff;
    return round & 1 ? 0x5a : 0xa5;
}

struct poisoner {
    const struct qn_regions *map;
    struct qn_image *image;
    int index;
    unsigned char byte;
};

static void poison_piece(void *user, int64_t offset, int64_t bytes)
{
    const struct poisoner *poisoner = user;
    host_fill(qn_image_at(poisoner->map, poisoner->image, poisoner->index, offset, bytes),
              poisoner->byte, bytes);
}

static void array_poison(const struct qn_regions *map, struct qn_image *image, int index, int round)
{
    struct poisoner poisoner = { map, image, index,
                                 qn_poison_byte(map->shapes[index].dtype, round) };
    if (qn_is_poisoned(map, index))
        each_piece(map, index, poison_piece, &poisoner);
}

void qn_image_poison(const struct qn_regions *map, struct qn_image *image, int round)
{
    for (int i = 0; i < map->spec.family->array_count; i++)
        array_poison(map, image, i, round);
}

/* The output whose elements are every byte of region r, and which no other array shares; -1: there
 * is none. */
static int covering(const struct qn_regions *map, int r)
{
    int found = -1;
    for (int i = 0; i < map->spec.family->array_count; i++) {
        if (map->region_of[i] != r)
            continue;
        if (found >= 0 || map->shapes[i].role == QUERN_IN)
            return -1;
        found = i;
    }
    const struct quern_ranges *touched = &map->touched[found];
    bool is_dense = map->layouts[found].outer_rank == 0;
    bool is_whole = touched->count == 1 && touched->list[0].begin == 0 &&
                    touched->list[0].end == map->regions[r].bytes;
    return is_dense && is_whole ? found : -1;
}

static int region_poison(const struct qn_regions *map, const struct qn_place *place, int r,
                         const struct qn_image *before, struct qn_image *work, int round,
                         struct quern_message *why)
{
    const struct qn_region *region = &map->regions[r];
    int output = covering(map, r);
    if (output >= 0 && qn_is_poisoned(map, output)) {
        int byte = qn_poison_byte(map->shapes[output].dtype, round);
        return qn_fill(map->ctx, place->base[r], byte, (size_t)region->bytes, why);
    }
    host_copy(work->data[r], before->data[r], region->packed_bytes);
    for (int i = 0; i < map->spec.family->array_count; i++) {
        if (map->region_of[i] == r)
            array_poison(map, work, i, round);
    }
    return region_write(map, place, r, work, why);
}

int qn_place_poison(const struct qn_regions *map, const struct qn_place *place,
                    const struct qn_image *before, struct qn_image *work, int round,
                    struct quern_message *why)
{
    for (int r = 0; r < map->count; r++) {
        if (map->regions[r].is_written)
            QN_TRY(region_poison(map, place, r, before, work, round, why));
    }
    return QUERN_OK;
}

struct masker {
    const struct qn_regions *map;
    const struct qn_image *before;
    struct qn_image *after;
    int index;
};

static void mask_piece(void *user, int64_t offset, int64_t bytes)
{
    const struct masker *masker = user;
    host_copy(qn_image_at(masker->map, masker->after, masker->index, offset, bytes),
              qn_image_at(masker->map, masker->before, masker->index, offset, bytes), bytes);
}

/* The array that byte `at` of region r belongs to, by its elements or else by its span, and where
 * in it; -1: it lies between arrays. */
static int array_at(const struct qn_regions *map, int r, int64_t at, int64_t *offset)
{
    const struct quern_shape byte = { .dtype = QUERN_U8 };
    const struct quern_array here = { .data = map->regions[r].base + at };
    int found = -1;
    *offset = at;
    for (int i = 0; i < map->spec.family->array_count; i++) {
        int64_t inside = at - map->offset[i];
        if (map->region_of[i] != r || inside < 0 || inside >= span_of(map, i))
            continue;
        bool is_element = qn_arrays_share(&map->shapes[i], &map->bound[i], &byte, &here);
        if (found < 0 || is_element) {
            *offset = inside;
            found = i;
        }
        if (is_element)
            break;
    }
    return found;
}

static int refuse_byte(const struct qn_regions *map, int r, int64_t at, struct quern_message *why)
{
    int64_t offset = 0;
    int index = array_at(map, r, at, &offset);
    if (index < 0)
        quern_refuse(why, "byte %lld between the arrays was written", (long long)at);
    else
        quern_refuse(why, "%s: byte %lld was written, %s", map->spec.family->arrays[index].name,
                     (long long)offset,
                     map->shapes[index].role == QUERN_IN ? "but it is an input"
                                                         : "which no element of an output covers");
    return QUERN_CHECK_FAILED;
}

static int64_t first_difference(const char *a, const char *b, int64_t bytes)
{
    int64_t i = 0;
    while (i < bytes && a[i] == b[i])
        i++;
    return i;
}

/* Byte of the region that the image keeps at `packed`. */
static int64_t unpacked(const struct qn_region *region, int64_t packed)
{
    int64_t s = 0;
    while (s + 1 < region->segment_count && region->segments[s + 1].packed <= packed)
        s++;
    return region->segments[s].begin + (packed - region->segments[s].packed);
}

bool qn_images_equal(const struct qn_regions *map, const struct qn_image *a,
                     const struct qn_image *b, struct quern_message *where)
{
    for (int r = 0; r < map->count; r++) {
        int64_t bytes = map->regions[r].packed_bytes, offset = 0;
        if (!a->data[r] || !b->data[r] || is_host_equal(a->data[r], b->data[r], bytes))
            continue;
        int64_t packed = first_difference(a->data[r], b->data[r], bytes);
        int index = array_at(map, r, unpacked(&map->regions[r], packed), &offset);
        quern_refuse(where, "%s, byte %lld,",
                     index < 0 ? "memory" : map->spec.family->arrays[index].name,
                     (long long)offset);
        return false;
    }
    return true;
}

/* ---- What may not ---------------------------------------------------------------------------- */

/* A comparison under way. */
struct comparison {
    const struct qn_regions *map;
    const struct qn_place *place;
    const struct qn_image *before;
    struct qn_image *after;
};

/* Where a region is seen to differ. */
struct finding {
    int64_t at; /* the first byte; INT64_MAX: nowhere */
    int status; /* of reading the device */
    struct quern_message why;
};

/* A thread's; bytes [at, at + bytes) of region r, read through `chunk` where `after` lacks them. */
static void compare_chunk(const struct comparison *work, int r, const struct qn_segment *segment,
                          int64_t at, char *chunk, struct finding *found)
{
    int64_t bytes = segment->end - at < CHUNK_BYTES ? segment->end - at : CHUNK_BYTES;
    int64_t packed = segment->packed + (at - segment->begin);
    const char *before = work->before->data[r] + packed;
    const char *now = work->after->data[r] ? work->after->data[r] + packed : chunk;
    if (found->status || at > found->at)
        return;
    if (now == chunk)
        found->status = copy_bytes(work->map, chunk, work->place->base[r] + at, bytes, &found->why);
    if (!found->status && memcmp(before, now, (size_t)bytes))
        found->at = at + first_difference(before, now, bytes);
}

static void finding_merge(struct finding *all, const struct finding *one)
{
    if (one->status && !all->status) {
        all->status = one->status;
        all->why = one->why;
    }
    all->at = one->at < all->at ? one->at : all->at;
}

static int compare_segment(const struct comparison *work, int r, const struct qn_segment *segment,
                           struct quern_message *why)
{
    struct finding all = { .at = INT64_MAX };
    bool is_long = segment->end - segment->begin > 4 * (int64_t)CHUNK_BYTES;
    int threads = omp_get_max_threads() < COMPARE_THREADS ? omp_get_max_threads() : COMPARE_THREADS;
#pragma omp parallel num_threads(is_long ? threads : 1)
    {
        struct finding mine = { .at = INT64_MAX };
        char *chunk = malloc(CHUNK_BYTES);
        if (!chunk)
            mine.status = out_of_memory(&mine.why, CHUNK_BYTES);
#pragma omp for schedule(dynamic)
        for (int64_t at = segment->begin; at < segment->end; at += CHUNK_BYTES)
            compare_chunk(work, r, segment, at, chunk, &mine);
        free(chunk);
#pragma omp critical
        finding_merge(&all, &mine);
    }
    if (all.status)
        *why = all.why;
    if (all.status || all.at == INT64_MAX)
        return all.status;
    return refuse_byte(work->map, r, all.at, why);
}

/* What a call may change is made equal first; a region that is all that need not be looked at. */
static int compare_region(const struct comparison *work, int r, struct quern_message *why)
{
    const struct qn_regions *map = work->map;
    const struct qn_region *region = &map->regions[r];
    if (covering(map, r) >= 0)
        return QUERN_OK;
    for (int i = 0; i < map->spec.family->array_count; i++) {
        struct masker masker = { map, work->before, work->after, i };
        bool is_written = map->shapes[i].role == QUERN_OUT || map->shapes[i].role == QUERN_INOUT;
        if (is_written && map->region_of[i] == r)
            each_piece(map, i, mask_piece, &masker);
    }
    for (int64_t s = 0; s < region->segment_count; s++)
        QN_TRY(compare_segment(work, r, &region->segments[s], why));
    return QUERN_OK;
}

int qn_regions_compare(const struct qn_regions *map, const struct qn_place *place,
                       const struct qn_image *before, struct qn_image *after,
                       struct quern_message *why)
{
    const struct comparison work = { map, place, before, after };
    for (int r = 0; r < map->count; r++)
        QN_TRY(compare_region(&work, r, why));
    return QUERN_OK;
}
