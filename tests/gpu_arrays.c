/* Device memory for the suites, by way of a host copy. Every copy goes through the public API, so
 * the module also runs on a CPU context (QUERN_TEST_DEVICE=cpu): that is how it is tested where no
 * device is. */
#include "gpu_arrays.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jit/context.h"

#define GUARD 0xa5
#define GUARD_BYTES 65536 /* before and after the host copy's pages: a tile of rows too many */

const struct gpu_layout gpu_layouts[GPU_LAYOUT_COUNT] = {
    { { 16, 0 }, false }, /* first: as an allocator gives it */
    { { 0, 0 }, false },   { { 0, 3 }, false }, { { 4, 2 }, false }, { { 8, 4 }, false },
    { { 64, 64 }, false }, { { 0, 5 }, true },  { { 16, 0 }, true },
};

void gpu_layout_text(const struct gpu_layout *layout, char *text, size_t bytes)
{
    snprintf(text, bytes, "aligned to %zu, rows padded by %d%s", layout->rows.alignment,
             (int)layout->rows.padding, layout->is_repeated ? ", inputs repeated" : "");
}

struct quern_context *gpu_context(const struct quern_options *options)
{
    struct quern_options mine = QUERN_OPTIONS_INIT;
    const char *device = getenv("QUERN_TEST_DEVICE");
    if (options)
        mine = *options;
    if (!mine.device)
        mine.device = device ? device : "cuda";
    return common_context(&mine);
}

int gpu_ordinal(void)
{
    const char *device = getenv("QUERN_TEST_DEVICE"), *colon = device ? strchr(device, ':') : NULL;
    return colon ? atoi(colon + 1) : 0;
}

static char watched[1200];

static void hangs(int number)
{
    (void)number;
    if (write(STDERR_FILENO, watched, strlen(watched)) < 0)
        _exit(2);
    _exit(1);
}

void gpu_watch(const char *what)
{
    enum { PATIENCE_S = 120 };
    snprintf(watched, sizeof(watched), "\nhangs: %s\n", what ? what : "");
    signal(SIGALRM, hangs);
    alarm(what ? PATIENCE_S : 0);
}

/* ---- Copies -------------------------------------------------------------------------------- */

static void copy_pages(struct gpu_arrays *set, int index, bool is_upload)
{
    const struct common_array *own = &set->host.own[index];
    unsigned char *device = set->blocks[index] + GUARD_BYTES;
    assert_ok(set->ctx, quern_memory_copy(set->ctx, is_upload ? device : own->pages,
                                          is_upload ? own->pages : device, own->pages_bytes));
}

static bool is_written(const struct gpu_arrays *set, int index)
{
    return set->blocks[index] && set->host.shapes[index].role != QUERN_IN;
}

static void array_init(struct gpu_arrays *set, int index)
{
    static unsigned char guard[GUARD_BYTES];
    const struct common_array *own = &set->host.own[index];
    void *block;
    memset(guard, GUARD, sizeof(guard));
    assert_ok(set->ctx,
              quern_memory_alloc(set->ctx, own->pages_bytes + 2 * (size_t)GUARD_BYTES, &block));
    set->blocks[index] = block;
    set->arrays[index] = set->host.arrays[index];
    set->arrays[index].data = set->blocks[index] + GUARD_BYTES + (own->data - own->pages);
    assert_ok(set->ctx, quern_memory_copy(set->ctx, block, guard, GUARD_BYTES));
    assert_ok(set->ctx,
              quern_memory_copy(set->ctx, set->blocks[index] + GUARD_BYTES + own->pages_bytes,
                                guard, GUARD_BYTES));
    copy_pages(set, index, true);
}

void gpu_arrays_init(struct gpu_arrays *set, struct quern_context *ctx,
                     const struct quern_spec *spec, const struct gpu_layout *layout, uint64_t seed)
{
    memset(set, 0, sizeof(*set));
    set->ctx = ctx;
    if (layout->is_repeated)
        common_arrays_init_repeated(&set->host, ctx, spec, layout->rows, seed);
    else
        common_arrays_init(&set->host, ctx, spec, layout->rows, seed);
    for (int i = 0; i < set->host.count; i++) {
        if (set->host.own[i].pages)
            array_init(set, i);
    }
}

void gpu_arrays_fini(struct gpu_arrays *set)
{
    for (int i = 0; i < set->host.count; i++)
        quern_memory_free(set->ctx, set->blocks[i],
                          set->host.own[i].pages_bytes + 2 * (size_t)GUARD_BYTES);
    common_arrays_fini(&set->host);
    memset(set, 0, sizeof(*set));
}

void gpu_arrays_upload(struct gpu_arrays *set)
{
    for (int i = 0; i < set->host.count; i++) {
        if (set->blocks[i])
            copy_pages(set, i, true);
    }
}

void gpu_arrays_restore(struct gpu_arrays *set)
{
    common_arrays_restore(&set->host);
    gpu_arrays_upload(set);
}

void gpu_arrays_rewind(struct gpu_arrays *set)
{
    for (int i = 0; i < set->host.count; i++) {
        const struct common_array *own = &set->host.own[i];
        if (is_written(set, i))
            assert_ok(set->ctx, quern_memory_copy(set->ctx, set->blocks[i] + GUARD_BYTES,
                                                  own->before, own->pages_bytes));
    }
}

/* ---- Claims -------------------------------------------------------------------------------- */

static void check_guard(struct gpu_arrays *set, int index, size_t offset, const char *what)
{
    static unsigned char guard[GUARD_BYTES];
    const struct common_array *own = &set->host.own[index];
    ptrdiff_t from_data = (ptrdiff_t)offset - GUARD_BYTES - (own->data - own->pages);
    assert_ok(set->ctx,
              quern_memory_copy(set->ctx, guard, set->blocks[index] + offset, GUARD_BYTES));
    for (int i = 0; i < GUARD_BYTES; i++)
        assert_each(guard[i] == GUARD, "%s: array %d: byte %td was written", what, index,
                    from_data + i);
}

void gpu_arrays_check(struct gpu_arrays *set, const char *what)
{
    for (int i = 0; i < set->host.count; i++) {
        if (!set->blocks[i])
            continue;
        copy_pages(set, i, false);
        check_guard(set, i, 0, what);
        check_guard(set, i, GUARD_BYTES + set->host.own[i].pages_bytes, what);
    }
    common_arrays_check(&set->host, what);
}

void gpu_arrays_keep(struct gpu_arrays *set)
{
    for (int i = 0; i < set->host.count; i++) {
        if (is_written(set, i))
            copy_pages(set, i, false);
    }
    common_arrays_keep(&set->host);
}

int gpu_arrays_differ(struct gpu_arrays *set)
{
    for (int i = 0; i < set->host.count; i++) {
        if (is_written(set, i))
            copy_pages(set, i, false);
    }
    return common_arrays_differ(&set->host);
}

size_t gpu_arrays_block_bytes(const struct gpu_arrays *set, int index)
{
    return set->host.own[index].pages_bytes + 2 * (size_t)GUARD_BYTES;
}

size_t gpu_arrays_written(const struct gpu_arrays *set)
{
    size_t bytes = 0;
    for (int i = 0; i < set->host.count; i++)
        bytes += is_written(set, i) ? set->host.own[i].pages_bytes : 0;
    return bytes;
}
