/* Worksets: the memory plan of a tuning.
 *
 *     slab      copy 0                                copy 1 ...
 *     copy      | guard  x+out  guard | guard  w  guard |
 *               ^ 256 + address mod 256       ^ at least 256
 *
 *     region            all fit                 memory is short          pool
 *     only read         private                 in place, checked        in place, checked
 *     written           private                 private                  in place; segments saved
 *
 * - A private region lies at the same address modulo 256 as the caller's, so that alignment, which
 *   is part of what a kernel was made for, stays.
 * - Enough copies are made that, used in turn, each launch finds its inputs out of the cache. Where
 *   memory is short or a pool is used in place, a GPU's cache is flushed instead, by filling a
 *   buffer of twice its size, which comes on top of memory_bytes.
 * - Restore-value copies regions that are both read and written from the caller's memory, which no
 *   kernel has been near; a pool's from `saved`. Regions that are only written need none.
 * - Guards are random bytes: a kernel that writes zeros, or its own output, past the end is seen.
 *
 * A kernel that writes further than a guard reaches, or crashes, is not contained: it runs in this
 * process.
 */
#include "jit/workset.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 256
#define MAX_COPIES 4096

static int64_t round_up(int64_t value)
{
    return (value + ALIGN - 1) / ALIGN * ALIGN;
}

static int device_copy(const struct qn_workset *set, void *to, const void *from, int64_t bytes,
                       struct quern_message *why)
{
    return qn_copy(set->map->ctx, to, from, (size_t)bytes, why);
}

static int device_alloc(const struct qn_workset *set, int64_t bytes, void *out,
                        struct quern_message *why)
{
    void *memory = NULL;
    int status = qn_memory_get(set->map->ctx, (size_t)bytes, NULL, &memory, why);
    memcpy(out, &memory, sizeof(memory));
    if (status == QUERN_NO_MEMORY)
        quern_refuse(why, "the device has no %lld bytes for private buffers", (long long)bytes);
    return status;
}

/* ---- The memory plan ----------------------------------------------------------------------- */

static int64_t slot_bytes(const struct qn_region *region)
{
    int64_t lead = QN_GUARD_BYTES + (int64_t)((uintptr_t)region->base % ALIGN);
    return round_up(lead + region->bytes + QN_GUARD_BYTES);
}

/* What has to be written somewhere else, what would be copied if memory allows, and pools. */
struct demand {
    int64_t written, all, saved;
};

static struct demand demand_of(const struct qn_regions *map)
{
    struct demand demand = { 0, 0, 0 };
    for (int r = 0; r < map->count; r++) {
        const struct qn_region *region = &map->regions[r];
        if (region->is_pool) {
            demand.saved += region->is_written ? region->packed_bytes : 0;
            continue;
        }
        demand.all += slot_bytes(region);
        demand.written += region->is_written ? slot_bytes(region) : 0;
    }
    return demand;
}

static void slots_assign(struct qn_workset *set, bool is_all)
{
    int64_t at = 0;
    for (int r = 0; r < set->map->count; r++) {
        const struct qn_region *region = &set->map->regions[r];
        set->is_private[r] = !region->is_pool && (is_all || region->is_written);
        if (!set->is_private[r])
            continue;
        set->slot_begin[r] = at;
        set->slot[r] = at + QN_GUARD_BYTES + (int64_t)((uintptr_t)region->base % ALIGN);
        at += slot_bytes(region);
        set->slot_end[r] = at;
    }
    set->copy_bytes = at;
}

static int plan_memory(struct qn_workset *set, const struct qn_workset_options *options,
                       struct quern_message *why)
{
    struct quern_context *ctx = set->map->ctx;
    size_t memory =
        options->memory_bytes ? options->memory_bytes : ctx->backend->free_bytes(ctx->device) / 4;
    struct demand demand = demand_of(set->map);
    int64_t room = memory < INT64_MAX ? (int64_t)memory - demand.saved : INT64_MAX;
    if (demand.written > room) { /* or the device is past answering */
        QN_TRY(ctx->backend->synchronize(ctx->device, NULL, why));
        quern_refuse(why,
                     "memory_bytes=%zu: must be at least %lld, for private copies of what the "
                     "call writes",
                     memory, (long long)(demand.written + demand.saved));
        return QUERN_NO_MEMORY;
    }
    slots_assign(set, demand.all <= room);
    set->copies = 1;
    if (demand.all <= room && set->copy_bytes) {
        int64_t wanted = (options->rotate_bytes + set->copy_bytes - 1) / set->copy_bytes;
        int64_t fit = room / set->copy_bytes;
        wanted = wanted < fit ? wanted : fit;
        set->copies = (int)(wanted < 1 ? 1 : wanted > MAX_COPIES ? MAX_COPIES : wanted);
    }
    return QUERN_OK;
}

/* ---- Pools --------------------------------------------------------------------------------- */

static bool is_saved(const struct qn_workset *set, int r)
{
    const struct qn_region *region = &set->map->regions[r];
    return region->is_pool && region->is_written && region->packed_bytes;
}

/* set->saved[r] is there only when it is whole: _fini puts it back. */
static int pool_save(struct qn_workset *set, int r, struct quern_message *why)
{
    const struct qn_region *region = &set->map->regions[r];
    char *saved;
    int status = device_alloc(set, region->packed_bytes, &saved, why);
    if (status)
        return status;
    for (int64_t s = 0; s < region->segment_count && !status; s++) {
        const struct qn_segment *segment = &region->segments[s];
        status = device_copy(set, saved + segment->packed, region->base + segment->begin,
                             segment->end - segment->begin, why);
    }
    if (status)
        qn_free(set->map->ctx, saved, (size_t)region->packed_bytes, NULL);
    else
        set->saved[r] = saved;
    return status;
}

static int pool_restore(const struct qn_workset *set, int r, struct quern_message *why)
{
    const struct qn_region *region = &set->map->regions[r];
    for (int64_t s = 0; s < region->segment_count; s++) {
        const struct qn_segment *segment = &region->segments[s];
        QN_TRY(device_copy(set, region->base + segment->begin, set->saved[r] + segment->packed,
                           segment->end - segment->begin, why));
    }
    return QUERN_OK;
}

/* ---- Life ---------------------------------------------------------------------------------- */

static void guard_draw(struct qn_workset *set, uint64_t seed)
{
    for (size_t i = 0; i < sizeof(set->guard); i++) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        set->guard[i] = (unsigned char)(seed >> 56);
    }
}

/* Copies in turn are out of the cache when they hold everything and are large enough together. Of
 * the smallest problems there are not; they are not worth flushing a cache for. */
static bool is_rotated(const struct qn_workset *set, int64_t rotate_bytes)
{
    if (rotate_bytes <= 0 || set->copies == MAX_COPIES)
        return true;
    for (int r = 0; r < set->map->count; r++) {
        if (!set->is_private[r])
            return false;
    }
    return (int64_t)set->slab_bytes >= rotate_bytes;
}

int qn_workset_init(struct qn_workset *set, const struct qn_regions *map,
                    const struct qn_workset_options *options, struct quern_message *why)
{
    struct quern_message lost;
    memset(set, 0, sizeof(*set));
    set->map = map;
    guard_draw(set, options->seed);
    QN_TRY(plan_memory(set, options, why));
    set->slab_bytes = (size_t)set->copy_bytes * (size_t)set->copies;
    int status = QUERN_OK;
    if (set->slab_bytes)
        status = device_alloc(set, (int64_t)set->slab_bytes, &set->slab, why);
    for (int r = 0; r < map->count && !status; r++) {
        if (is_saved(set, r))
            status = pool_save(set, r, why);
    }
    if (!status && options->is_flushable && !is_rotated(set, options->rotate_bytes)) {
        set->flush_bytes = (size_t)options->rotate_bytes;
        status = device_alloc(set, options->rotate_bytes, &set->flush, why);
    }
    if (!status)
        status = qn_workset_reset(set, why);
    if (status)
        qn_workset_fini(set, &lost);
    return status;
}

static void workspace_free(struct qn_workset *set)
{
    if (set->workspace)
        qn_free(set->map->ctx, set->workspace - QN_GUARD_BYTES, set->workspace_allocated, NULL);
    set->workspace = NULL;
    set->workspace_allocated = 0;
}

int qn_workset_fini(struct qn_workset *set, struct quern_message *why)
{
    int status = QUERN_OK;
    if (!set->map)
        return QUERN_OK;
    for (int r = 0; r < set->map->count; r++) {
        if (!set->saved[r])
            continue;
        int failure = pool_restore(set, r, why);
        status = status ? status : failure;
        qn_free(set->map->ctx, set->saved[r], (size_t)set->map->regions[r].packed_bytes, NULL);
    }
    workspace_free(set);
    if (set->flush)
        qn_free(set->map->ctx, set->flush, set->flush_bytes, NULL);
    if (set->slab)
        qn_free(set->map->ctx, set->slab, set->slab_bytes, NULL);
    memset(set, 0, sizeof(*set));
    return status;
}

int64_t qn_workset_bytes(const struct qn_workset *set)
{
    int64_t bytes = (int64_t)(set->slab_bytes + set->workspace_allocated);
    bytes += set->flush ? (int64_t)set->flush_bytes : 0;
    for (int r = 0; r < set->map->count; r++)
        bytes += set->saved[r] ? set->map->regions[r].packed_bytes : 0;
    return bytes;
}

void qn_workset_place(const struct qn_workset *set, int copy, struct qn_place *place)
{
    for (int r = 0; r < set->map->count; r++)
        place->base[r] = set->is_private[r]
                             ? set->slab + (int64_t)copy * set->copy_bytes + set->slot[r]
                             : set->map->regions[r].base;
}

/* ---- Guards -------------------------------------------------------------------------------- */

/* Guard bytes [from, to) of the slab, never more than the pattern has. */
static int guard_write(struct qn_workset *set, char *from, char *to, struct quern_message *why)
{
    return device_copy(set, from, set->guard, to - from, why);
}

static int guard_check(const struct qn_workset *set, const char *from, const char *to,
                       const char *what, const char *side, struct quern_message *why)
{
    unsigned char now[sizeof(set->guard)];
    QN_TRY(device_copy(set, now, from, to - from, why));
    for (int64_t i = 0; i < to - from; i++) {
        if (now[i] == set->guard[i])
            continue;
        int64_t distance = *side == 'b' ? to - from - i : i + 1;
        quern_refuse(why, "%s: written out of bounds, %lld byte%s %s it", what, (long long)distance,
                     distance == 1 ? "" : "s", side);
        return QUERN_CHECK_FAILED;
    }
    return QUERN_OK;
}

/* The array at the region's end that `side` names. */
static const char *array_at_end(const struct qn_regions *map, int r, bool is_front)
{
    int found = 0;
    int64_t best = -1;
    for (int i = 0; i < map->spec.family->array_count; i++) {
        if (map->region_of[i] != r)
            continue;
        int64_t end = map->offset[i] + qn_array_span(&map->shapes[i], &map->bound[i]);
        int64_t merit = is_front ? map->regions[r].bytes - map->offset[i] : end;
        if (merit > best) {
            best = merit;
            found = i;
        }
    }
    return map->spec.family->arrays[found].name;
}

static int workspace_guards(const struct qn_workset *set, struct quern_message *why)
{
    if (!set->workspace)
        return QUERN_OK;
    char *end = set->workspace + set->workspace_bytes;
    QN_TRY(guard_check(set, set->workspace - QN_GUARD_BYTES, set->workspace, "workspace", "before",
                       why));
    return guard_check(set, end, end + QN_GUARD_BYTES, "workspace", "after", why);
}

int qn_workset_guards(const struct qn_workset *set, struct quern_message *why)
{
    const struct qn_regions *map = set->map;
    for (int r = 0; r < map->count; r++) {
        if (!set->is_private[r])
            continue;
        const char *data = set->slab + set->slot[r];
        QN_TRY(guard_check(set, set->slab + set->slot_begin[r], data, array_at_end(map, r, true),
                           "before", why));
        QN_TRY(guard_check(set, data + map->regions[r].bytes, set->slab + set->slot_end[r],
                           array_at_end(map, r, false), "after", why));
    }
    return workspace_guards(set, why);
}

/* ---- Contents ------------------------------------------------------------------------------ */

/* Copy 0, which has guards. */
static int first_reset(struct qn_workset *set, struct quern_message *why)
{
    char *base = set->slab;
    for (int r = 0; r < set->map->count; r++) {
        const struct qn_region *region = &set->map->regions[r];
        if (!set->is_private[r])
            continue;
        char *data = base + set->slot[r];
        QN_TRY(device_copy(set, data, region->base, region->bytes, why));
        QN_TRY(guard_write(set, base + set->slot_begin[r], data, why));
        QN_TRY(guard_write(set, data + region->bytes, base + set->slot_end[r], why));
    }
    return QUERN_OK;
}

static int workspace_guard(struct qn_workset *set, struct quern_message *why)
{
    if (!set->workspace)
        return QUERN_OK;
    char *end = set->workspace + set->workspace_bytes;
    QN_TRY(guard_write(set, set->workspace - QN_GUARD_BYTES, set->workspace, why));
    return guard_write(set, end, end + QN_GUARD_BYTES, why);
}

int qn_workset_reset(struct qn_workset *set, struct quern_message *why)
{
    QN_TRY(first_reset(set, why));
    /* The others from those before them: of thousands, each device copy takes microseconds. */
    for (int done = 1, more; done < set->copies; done += more) {
        more = set->copies - done < done ? set->copies - done : done;
        QN_TRY(device_copy(set, set->slab + done * set->copy_bytes, set->slab,
                           more * set->copy_bytes, why));
    }
    for (int r = 0; r < set->map->count; r++) {
        if (set->saved[r])
            QN_TRY(pool_restore(set, r, why));
    }
    return workspace_guard(set, why);
}

int qn_workset_restore(struct qn_workset *set, int copy, struct quern_message *why)
{
    struct qn_place place;
    qn_workset_place(set, copy, &place);
    for (int r = 0; r < set->map->count; r++) {
        const struct qn_region *region = &set->map->regions[r];
        if (!region->is_written || !region->is_read)
            continue;
        if (set->saved[r])
            QN_TRY(pool_restore(set, r, why));
        else
            QN_TRY(device_copy(set, place.base[r], region->base, region->bytes, why));
    }
    return QUERN_OK;
}

bool qn_workset_restores(const struct qn_workset *set)
{
    for (int r = 0; r < set->map->count; r++) {
        if (set->map->regions[r].is_written && set->map->regions[r].is_read)
            return true;
    }
    return false;
}

int qn_workset_batch(const struct qn_workset *set)
{
    for (int r = 0; r < set->map->count; r++) {
        if (set->saved[r])
            return 1;
    }
    return set->copies;
}

int qn_workset_workspace(struct qn_workset *set, size_t bytes, struct quern_message *why)
{
    size_t needed = bytes + 2 * QN_GUARD_BYTES;
    if (bytes == 0 || needed > set->workspace_allocated)
        workspace_free(set);
    set->workspace_bytes = bytes;
    if (bytes == 0)
        return QUERN_OK;
    if (!set->workspace) {
        char *memory;
        QN_TRY(device_alloc(set, (int64_t)needed, &memory, why));
        set->workspace = memory + QN_GUARD_BYTES;
        set->workspace_allocated = needed;
    }
    return workspace_guard(set, why);
}

static int device_fill(struct qn_workset *set, char *data, int byte, size_t bytes,
                       struct quern_message *why)
{
    return data ? qn_fill(set->map->ctx, data, byte, bytes, why) : QUERN_OK;
}

int qn_workset_scratch(struct qn_workset *set, struct quern_message *why)
{
    return device_fill(set, set->workspace, 0xff, set->workspace_bytes, why);
}

int qn_workset_flush(struct qn_workset *set, struct quern_message *why)
{
    return device_fill(set, set->flush, 0, set->flush_bytes, why);
}

/* ---- Inputs in place ----------------------------------------------------------------------- */

static int segment_mend(struct qn_workset *set, char *data, const char *before, char *now,
                        int64_t bytes, struct quern_message *why)
{
    QN_TRY(device_copy(set, now, data, bytes, why));
    return memcmp(now, before, (size_t)bytes) ? device_copy(set, data, before, bytes, why)
                                              : QUERN_OK;
}

int qn_workset_mend(struct qn_workset *set, const struct qn_image *before,
                    struct quern_message *why)
{
    int status = QUERN_OK;
    for (int r = 0; r < set->map->count && !status; r++) {
        const struct qn_region *region = &set->map->regions[r];
        if (set->is_private[r] || region->is_written)
            continue;
        char *now = malloc((size_t)region->packed_bytes + 1);
        if (!now) {
            quern_refuse(why, "out of memory");
            return QUERN_NO_MEMORY;
        }
        for (int64_t s = 0; s < region->segment_count && !status; s++) {
            const struct qn_segment *segment = &region->segments[s];
            status =
                segment_mend(set, region->base + segment->begin, before->data[r] + segment->packed,
                             now, segment->end - segment->begin, why);
        }
        free(now);
    }
    return status;
}
