/* What the suites share: seeds, scratch files, contexts, and private arrays between guard bytes. */
#ifndef COMMON_H
#define COMMON_H

#include <stdbool.h>

#include <check.h>
#include <quern.h>
#include <quern/tune.h>

/* Fails the test with the library's own text. */
#define assert_ok(ctx, expression)                                                                 \
    do {                                                                                           \
        int common_status = (expression);                                                          \
        ck_assert_msg(common_status == QUERN_OK, "%s: %s: %s", #expression,                        \
                      quern_status_name(common_status), quern_errmsg(ctx));                        \
    } while (0)

/* The call gives `status` and one line that contains `text`. */
#define assert_refused(ctx, expression, status, text)                                              \
    common_assert_refused(ctx, expression, status, text, #expression)
void common_assert_refused(struct quern_context *ctx, int got, int status, const char *text,
                           const char *expression);

/* QUERN_TEST_SEED, else a fresh one: the same throughout the process, and printed, so that a
 * failure can be repeated. */
uint64_t common_seed(void);
uint64_t common_random(uint64_t *state);
int64_t common_between(uint64_t *state, int64_t least, int64_t most);

/* True with QUERN_TEST_ALL=1. */
bool common_is_exhaustive(void);

/* ---- Files and programs -------------------------------------------------------------------- */

/* A directory of this process, made on first use and removed when it ends. */
const char *common_scratch(void);
/* scratch/name, malloc'ed; folders on the way to it are made. */
char *common_scratch_path(const char *name);
void common_file_write(const char *path, const char *text);
/* What the shell command wrote to its standard output, malloc'ed; *code: its exit status. */
char *common_shell(const char *command, int *code);
/* The compiler that the library would take, for commands. */
const char *common_clang(void);
/* Directory of this program, where plugins lie beside it. */
const char *common_directory(void);

/* ---- Contexts ------------------------------------------------------------------------------ */

/* On the CPU, with the test family `kinds` (kinds.h) registered. options may be NULL; their cache
 * is memory only and their device the CPU unless they say otherwise. Fails the test if it fails. */
struct quern_context *common_context(const struct quern_options *options);
/* Parses, or fails the test. */
struct quern_spec common_spec(struct quern_context *ctx, const char *text);

/* ---- Private arrays ------------------------------------------------------------------------ */

/* Every array of a spec in memory of its own: guard bytes, the array, guard bytes for as much as
 * its alignment asks, then a page that may not be touched; one lies before the first, too. */
struct common_array {
    unsigned char *pages, *data;
    size_t pages_bytes;
    unsigned char *before, *kept; /* copies of the pages, from init and keep */
};

struct common_arrays {
    int count;
    struct common_array own[QUERN_MAX_ARRAYS];
    struct quern_shape shapes[QUERN_MAX_ARRAYS];
    struct quern_array arrays[QUERN_MAX_ARRAYS]; /* what a call takes */
};

struct common_layout {
    size_t alignment; /* of every base, exactly; 0: that of the element */
    int64_t padding;  /* elements between rows; 0: dense */
};

/* Inputs are the family's, drawn with seed; outputs hold a pattern. */
void common_arrays_init(struct common_arrays *set, struct quern_context *ctx,
                        const struct quern_spec *spec, struct common_layout layout, uint64_t seed);
/* The same; inputs hold one of what their leading dimension counts: stride 0. */
void common_arrays_init_repeated(struct common_arrays *set, struct quern_context *ctx,
                                 const struct quern_spec *spec, struct common_layout layout,
                                 uint64_t seed);
void common_arrays_fini(struct common_arrays *set);
/* Changes an element: also what restore() brings back. */
void common_arrays_put(struct common_arrays *set, int index, int64_t element, double value);
/* Fails the test if any byte but those of output elements is not as it was. */
void common_arrays_check(const struct common_arrays *set, const char *what);
void common_arrays_restore(struct common_arrays *set);
/* Remember the bytes, and compare with them: -1, or the first array that differs. */
void common_arrays_keep(struct common_arrays *set);
int common_arrays_differ(const struct common_arrays *set);

/* What a crash is blamed on: kernels run in this process. */
void common_doing(const char *what);

/* Runs the suites of a program whose tests launch kernels: in this process, since neither OpenMP
 * nor LLVM survives fork. Returns what main() does. */
int common_main(Suite *suite);

#endif
