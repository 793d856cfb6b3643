#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <ftw.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "jit/dtype.h"
#include "kinds.h"

#define GUARD 0xa5
#define PATTERN 0x5a /* in outputs before a call */

/* ---- Claims -------------------------------------------------------------------------------- */

void common_assert_refused(struct quern_context *ctx, int got, int status, const char *text,
                           const char *expression)
{
    ck_assert_msg(got == status, "%s: gave %s (%s), not %s", expression, quern_status_name(got),
                  quern_errmsg(ctx), quern_status_name(status));
    const char *said = quern_errmsg(ctx);
    ck_assert_msg(strstr(said, text) != NULL, "%s: said \"%s\", without \"%s\"", expression, said,
                  text);
    ck_assert_msg(!strchr(said, '\n') && *said, "%s: said \"%s\", not one line", expression, said);
}

uint64_t common_seed(void)
{
    static uint64_t seed;
    const char *given = getenv("QUERN_TEST_SEED");
    if (seed)
        return seed;
    if (given)
        seed = strtoull(given, NULL, 0);
    else
        ck_assert_int_eq(getrandom(&seed, sizeof(seed), 0), sizeof(seed));
    printf("QUERN_TEST_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    return seed;
}

/* SplitMix64. */
uint64_t common_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

int64_t common_between(uint64_t *state, int64_t least, int64_t most)
{
    return least + (int64_t)(common_random(state) % (uint64_t)(most - least + 1));
}

bool common_is_exhaustive(void)
{
    const char *all = getenv("QUERN_TEST_ALL");
    return all && *all && strcmp(all, "0");
}

/* ---- Files and programs -------------------------------------------------------------------- */

static char scratch[PATH_MAX];
static pid_t scratch_owner;

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *where)
{
    (void)status, (void)flag, (void)where;
    return remove(path);
}

static void scratch_remove(void)
{
    if (getpid() == scratch_owner)
        nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *common_scratch(void)
{
    if (*scratch)
        return scratch;
    const char *parent = getenv("TMPDIR");
    snprintf(scratch, sizeof(scratch), "%s/quern-test-XXXXXX", parent ? parent : "/tmp");
    ck_assert_msg(mkdtemp(scratch) != NULL, "%s: %s", scratch, strerror(errno));
    scratch_owner = getpid();
    atexit(scratch_remove);
    return scratch;
}

char *common_scratch_path(const char *name)
{
    char *path;
    ck_assert_int_gt(asprintf(&path, "%s/%s", common_scratch(), name), 0);
    for (char *slash = path + strlen(scratch) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        ck_assert(!mkdir(path, 0700) || errno == EEXIST);
        *slash = '/';
    }
    return path;
}

void common_file_write(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    ck_assert_msg(file != NULL, "%s: %s", path, strerror(errno));
    ck_assert(fputs(text, file) >= 0);
    ck_assert_int_eq(fclose(file), 0);
}

char *common_shell(const char *command, int *code)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *pipe = popen(command, "r"), *memory = open_memstream(&text, &bytes);
    ck_assert(pipe && memory);
    for (int c; (c = getc(pipe)) != EOF;)
        putc(c, memory);
    fclose(memory);
    int status = pclose(pipe);
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    return text;
}

const char *common_clang(void)
{
    const char *given = getenv("QUERN_CLANG");
    return given ? given : "clang-19";
}

const char *common_directory(void)
{
    static char path[PATH_MAX], *directory;
    if (!directory) {
        ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
        ck_assert_int_gt(length, 0);
        path[length] = '\0';
        directory = dirname(path);
    }
    return directory;
}

/* ---- Contexts ------------------------------------------------------------------------------ */

struct quern_context *common_context(const struct quern_options *options)
{
    struct quern_options mine = QUERN_OPTIONS_INIT;
    struct quern_context *ctx;
    if (options)
        mine = *options;
    if (!mine.cache)
        mine.cache = "";
    if (!mine.device)
        mine.device = "cpu";
    assert_ok(ctx, quern_context_create(&mine, &ctx));
    assert_ok(ctx, quern_family_register(ctx, &kinds_family));
    return ctx;
}

struct quern_spec common_spec(struct quern_context *ctx, const char *text)
{
    struct quern_spec spec;
    assert_ok(ctx, quern_spec_parse(ctx, text, &spec));
    return spec;
}

/* ---- Private arrays ------------------------------------------------------------------------ */

static int64_t row_count(const struct quern_shape *shape)
{
    int64_t count = 1;
    for (int d = 0; d + 1 < shape->rank; d++)
        count *= shape->dims[d];
    return shape->dims[shape->rank - 1] ? count : 0;
}

static size_t row_bytes(const struct quern_shape *shape)
{
    return (size_t)shape->dims[shape->rank - 1] * quern_dtype_bytes(shape->dtype);
}

/* Byte offset of row `row` from the array's data. */
static size_t row_offset(const struct quern_shape *shape, const struct quern_array *array,
                         int64_t row)
{
    int64_t offset = 0;
    for (int d = shape->rank - 2; d >= 0; d--) {
        offset += row % shape->dims[d] * array->strides[d];
        row /= shape->dims[d];
    }
    return (size_t)offset * quern_dtype_bytes(shape->dtype);
}

static void strides_make(const struct quern_shape *shape, int64_t padding, bool is_repeated,
                         struct quern_array *array)
{
    int64_t stride = 1;
    for (int d = shape->rank - 1; d >= 0; d--) {
        array->strides[d] = stride;
        stride *= shape->dims[d];
        if (d == shape->rank - 1)
            stride += padding;
    }
    if (is_repeated && shape->role == QUERN_IN && shape->rank > 1)
        array->strides[0] = 0;
    array->rank = padding || is_repeated ? shape->rank : 0;
}

/* Pages for `bytes` bytes, guard bytes throughout, between two that may not be touched. The array
 * ends as near to the last as its alignment allows. */
static void array_map(struct common_array *own, size_t bytes, size_t alignment)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    own->pages_bytes = (bytes + alignment * 2 + page - 1) / page * page + page;
    own->pages =
        mmap(NULL, own->pages_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(own->pages != MAP_FAILED);
    own->pages += page;
    ck_assert_int_eq(mprotect(own->pages, own->pages_bytes, PROT_READ | PROT_WRITE), 0);
    memset(own->pages, GUARD, own->pages_bytes);
    uintptr_t data = (uintptr_t)own->pages + own->pages_bytes - bytes;
    data -= data % alignment;
    if (data % (2 * alignment) == 0)
        data -= alignment; /* exactly so aligned, and not better by chance */
    own->data = (unsigned char *)data;
}

static void array_fill(struct common_arrays *set, struct quern_context *ctx,
                       const struct quern_spec *spec, int index, uint64_t seed)
{
    const struct quern_shape *shape = &set->shapes[index];
    int64_t rows = row_count(shape);
    size_t bytes = row_bytes(shape);
    unsigned char *dense = malloc((size_t)rows * bytes + 1);
    ck_assert_ptr_nonnull(dense);
    memset(dense, PATTERN, (size_t)rows * bytes);
    if (shape->role != QUERN_OUT && rows)
        assert_ok(ctx, quern_fill(ctx, spec, index, seed, dense));
    for (int64_t row = 0; row < rows; row++)
        memcpy(set->own[index].data + row_offset(shape, &set->arrays[index], row),
               dense + (size_t)row * bytes, bytes);
    free(dense);
}

static void array_init(struct common_arrays *set, struct quern_context *ctx,
                       const struct quern_spec *spec, int index, size_t alignment, uint64_t seed)
{
    const struct quern_shape *shape = &set->shapes[index];
    struct quern_array *array = &set->arrays[index];
    struct common_array *own = &set->own[index];
    size_t element = quern_dtype_bytes(shape->dtype);
    int64_t rows = row_count(shape);
    size_t bytes = rows ? row_offset(shape, array, rows - 1) + row_bytes(shape) : 0;
    array_map(own, bytes, alignment > element ? alignment : element);
    array->data = own->data;
    array->size_bytes = bytes;
    array_fill(set, ctx, spec, index, seed);
    own->before = malloc(own->pages_bytes);
    own->kept = malloc(own->pages_bytes);
    ck_assert(own->before && own->kept);
    memcpy(own->before, own->pages, own->pages_bytes);
}

static void arrays_init(struct common_arrays *set, struct quern_context *ctx,
                        const struct quern_spec *spec, struct common_layout layout,
                        bool is_repeated, uint64_t seed)
{
    struct quern_family_description family;
    quern_family_describe(spec->family, &family);
    memset(set, 0, sizeof(*set));
    set->count = family.array_count;
    for (int i = 0; i < set->count; i++) {
        assert_ok(ctx, quern_spec_shape(ctx, spec, i, &set->shapes[i]));
        if (set->shapes[i].role == QUERN_ABSENT)
            continue;
        strides_make(&set->shapes[i], layout.padding, is_repeated, &set->arrays[i]);
        array_init(set, ctx, spec, i, layout.alignment, seed);
    }
}

void common_arrays_init(struct common_arrays *set, struct quern_context *ctx,
                        const struct quern_spec *spec, struct common_layout layout, uint64_t seed)
{
    arrays_init(set, ctx, spec, layout, false, seed);
}

void common_arrays_init_repeated(struct common_arrays *set, struct quern_context *ctx,
                                 const struct quern_spec *spec, struct common_layout layout,
                                 uint64_t seed)
{
    arrays_init(set, ctx, spec, layout, true, seed);
}

void common_arrays_fini(struct common_arrays *set)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < set->count; i++) {
        if (set->own[i].pages)
            munmap(set->own[i].pages - page, set->own[i].pages_bytes + 2 * page);
        free(set->own[i].before);
        free(set->own[i].kept);
    }
    memset(set, 0, sizeof(*set));
}

void common_arrays_put(struct common_arrays *set, int index, int64_t element, double value)
{
    const struct quern_shape *shape = &set->shapes[index];
    int64_t columns = shape->dims[shape->rank - 1];
    size_t bytes = quern_dtype_bytes(shape->dtype);
    unsigned char *at = set->own[index].data +
                        row_offset(shape, &set->arrays[index], element / columns) +
                        (size_t)(element % columns) * bytes;
    qn_dtype_encode(shape->dtype, &value, 1, at);
    memcpy(set->own[index].before + (at - set->own[index].pages), at, bytes);
}

static void check_bytes(const struct common_array *own, size_t from, size_t to, int index,
                        const char *what)
{
    if (!memcmp(own->pages + from, own->before + from, to - from))
        return;
    for (size_t i = from; i < to; i++)
        ck_assert_msg(own->pages[i] == own->before[i], "%s: array %d: byte %td was written", what,
                      index, own->pages + i - own->data);
}

void common_arrays_check(const struct common_arrays *set, const char *what)
{
    for (int i = 0; i < set->count; i++) {
        const struct common_array *own = &set->own[i];
        const struct quern_shape *shape = &set->shapes[i];
        size_t at = 0, start = (size_t)(own->data - own->pages);
        if (!own->pages)
            continue;
        for (int64_t row = 0; shape->role != QUERN_IN && row < row_count(shape); row++) {
            size_t begin = start + row_offset(shape, &set->arrays[i], row);
            check_bytes(own, at, begin, i, what);
            at = begin + row_bytes(shape);
        }
        check_bytes(own, at, own->pages_bytes, i, what);
    }
}

void common_arrays_restore(struct common_arrays *set)
{
    for (int i = 0; i < set->count; i++) {
        if (set->own[i].pages)
            memcpy(set->own[i].pages, set->own[i].before, set->own[i].pages_bytes);
    }
}

void common_arrays_keep(struct common_arrays *set)
{
    for (int i = 0; i < set->count; i++) {
        if (set->own[i].pages)
            memcpy(set->own[i].kept, set->own[i].pages, set->own[i].pages_bytes);
    }
}

int common_arrays_differ(const struct common_arrays *set)
{
    for (int i = 0; i < set->count; i++) {
        const struct common_array *own = &set->own[i];
        if (own->pages && memcmp(own->kept, own->pages, own->pages_bytes))
            return i;
    }
    return -1;
}

/* ---- Running ------------------------------------------------------------------------------- */

static char doing[512];

void common_doing(const char *what)
{
    snprintf(doing, sizeof(doing), "\ncrashed: %s\n", what);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static void crashed(int number)
{
    signal(number, SIG_DFL);
    if (write(STDERR_FILENO, doing, strlen(doing)) >= 0)
        raise(number);
}
#endif

int common_main(Suite *suite)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    signal(SIGSEGV, crashed);
    signal(SIGILL, crashed);
#endif
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
