/* Private arrays in the memory of a context's device: the counterpart of struct common_arrays,
 * whose host copy, guards included, each of them mirrors byte for byte.
 *
 *     device   [ guard | pages of the host copy: guard, array, guard | guard ]
 *
 * Base addresses and strides are aligned on the device exactly as they are in the host copy. */
#ifndef GPU_ARRAYS_H
#define GPU_ARRAYS_H

#include "common.h"

/* ck_assert_msg() for every element of something large: Check writes down each claim that holds. */
#define assert_each(condition, ...)                                                                \
    do {                                                                                           \
        if (!(condition))                                                                          \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)

struct gpu_arrays {
    struct quern_context *ctx;
    struct common_arrays host;
    unsigned char *blocks[QUERN_MAX_ARRAYS];     /* NULL for absent arrays */
    struct quern_array arrays[QUERN_MAX_ARRAYS]; /* what a call takes */
};

struct gpu_layout {
    struct common_layout rows;
    bool is_repeated; /* inputs, along their leading dimension: stride 0 */
};

/* The layouts that the suites go through: an alignment class each, dense and padded. */
enum { GPU_LAYOUT_COUNT = 8 };
extern const struct gpu_layout gpu_layouts[GPU_LAYOUT_COUNT];
/* "aligned to 16, rows padded by 3" */
void gpu_layout_text(const struct gpu_layout *layout, char *text, size_t bytes);

/* On the device that QUERN_TEST_DEVICE names, else on cuda: fails the test if there is none.
 * options may be NULL; their cache is memory only unless they say otherwise. */
struct quern_context *gpu_context(const struct quern_options *options);
int gpu_ordinal(void); /* that device's number */

/* Ends the process, saying `what`, unless gpu_watch(NULL) comes within two minutes: a kernel
 * that hangs would not let go of the device. */
void gpu_watch(const char *what);

/* Inputs are the family's, drawn with seed; outputs hold a pattern. */
void gpu_arrays_init(struct gpu_arrays *set, struct quern_context *ctx,
                     const struct quern_spec *spec, const struct gpu_layout *layout, uint64_t seed);
void gpu_arrays_fini(struct gpu_arrays *set);
/* Everything on the device as it is in the host copy. */
void gpu_arrays_upload(struct gpu_arrays *set);
/* Everything as gpu_arrays_init() left it. */
void gpu_arrays_restore(struct gpu_arrays *set);
/* Only what a call writes, as gpu_arrays_init() left it. */
void gpu_arrays_rewind(struct gpu_arrays *set);
/* Fails the test if any byte but those of output elements is not as it was. */
void gpu_arrays_check(struct gpu_arrays *set, const char *what);
/* Remember what a call has written, and compare with it bit for bit: -1, or the first array that
 * differs. */
void gpu_arrays_keep(struct gpu_arrays *set);
int gpu_arrays_differ(struct gpu_arrays *set);
/* Of the memory at blocks[index], the array between its guards. */
size_t gpu_arrays_block_bytes(const struct gpu_arrays *set, int index);
/* Bytes that a call writes. */
size_t gpu_arrays_written(const struct gpu_arrays *set);

#endif
