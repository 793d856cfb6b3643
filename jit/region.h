/* Where a call's bytes are: arrays merged into regions, host images of them, and what of them a
 * call writes. What check.c (expectation), workset.c (private copies) and tune.c start from. */
#ifndef QN_REGION_H
#define QN_REGION_H

#include "jit/context.h"

/* Bytes that a call may touch, from the region's base, and where an image keeps them. */
struct qn_segment {
    int64_t begin, end, packed;
};

/* What a call touches of one array: bytes from its data, sorted and disjoint once found. */
struct quern_ranges {
    struct qn_segment *list;
    int64_t count, capacity;
    int64_t span;            /* of the array */
    struct qn_segment stray; /* the first that leaves the span, if is_stray */
    bool is_stray, is_out_of_memory;
};

/* One array, or several whose spans overlap: aliasing is a property of the region and survives
 * copying. */
struct qn_region {
    char *base; /* as bound */
    int64_t bytes;
    bool is_read, is_written; /* by an IN or INOUT, by an OUT or INOUT array in it */
    bool is_pool;             /* large and hardly touched: never copied whole */
    int64_t segment_count;
    struct qn_segment *segments; /* sorted, disjoint; a pool's reach QN_GUARD_BYTES further */
    int64_t packed_bytes;
};

#define QN_GUARD_BYTES 256

/* An array's dense element order laid over its strides: runs of `run` contiguous elements. */
struct qn_layout {
    int64_t count, run, element_bytes;
    int outer_rank; /* dimensions outside a run */
};

struct qn_regions {
    struct quern_context *ctx;
    struct quern_spec spec;
    struct quern_array bound[QUERN_MAX_ARRAYS];
    struct quern_shape shapes[QUERN_MAX_ARRAYS];
    struct qn_layout layouts[QUERN_MAX_ARRAYS];
    struct quern_ranges touched[QUERN_MAX_ARRAYS];
    int region_of[QUERN_MAX_ARRAYS];    /* -1: absent or empty */
    bool is_poisoned[QUERN_MAX_ARRAYS]; /* see qn_is_poisoned() */
    int64_t offset[QUERN_MAX_ARRAYS];
    int count;
    struct qn_region regions[QUERN_MAX_ARRAYS];
};

/* bound comes from qn_arrays_bind() for spec. Reads index arrays when the family has touched(), and
 * refuses what they hold under QUERN_CHECK=1. */
int qn_regions_init(struct qn_regions *map, struct quern_context *ctx,
                    const struct quern_spec *spec, const struct quern_array *bound,
                    struct quern_message *why);
void qn_regions_fini(struct qn_regions *map);

/* One set of memory that holds every region: the caller's, or a private copy. */
struct qn_place {
    char *base[QUERN_MAX_ARRAYS]; /* of each region */
};
void qn_place_bound(const struct qn_regions *map, struct qn_place *place);
/* bound as it is, with data moved to `place`. */
void qn_place_arrays(const struct qn_regions *map, const struct qn_place *place,
                     struct quern_array arrays[QUERN_MAX_ARRAYS]);

/* The segments of some regions in host memory; NULL for regions left out. */
struct qn_image {
    char *data[QUERN_MAX_ARRAYS];
};
enum qn_image_which { QN_IMAGE_ALL, QN_IMAGE_WRITTEN };
int qn_image_init(const struct qn_regions *map, enum qn_image_which which, struct qn_image *image,
                  struct quern_message *why);
void qn_image_fini(struct qn_image *image);
/* Copy every region that the image holds from `place`, or back to it. */
int qn_image_read(const struct qn_regions *map, const struct qn_place *place,
                  struct qn_image *image, struct quern_message *why);
int qn_image_write(const struct qn_regions *map, const struct qn_place *place,
                   const struct qn_image *image, struct quern_message *why);
void qn_image_copy(const struct qn_regions *map, const struct qn_image *from, struct qn_image *to);

/* Where the image keeps `bytes` bytes of array `index` from byte `offset` on; NULL if the call does
 * not touch them all. */
char *qn_image_at(const struct qn_regions *map, const struct qn_image *image, int index,
                  int64_t offset, int64_t bytes);

/* Dense elements [first, first + count) of an array are contiguous pieces: returns the length of
 * the one at `first` and the byte offset from the array's data. */
int64_t qn_array_piece(const struct qn_regions *map, int index, int64_t first, int64_t count,
                       int64_t *offset);

/* Outputs that are poisoned before a run: OUT, and no input shares a byte with them, though one may
 * lie between their rows. */
bool qn_is_poisoned(const struct qn_regions *map, int index);
/* The byte that poison is made of: a NaN in every float dtype; for integers it differs by round. */
unsigned char qn_poison_byte(int dtype, int round);
/* Fill the elements of poisoned outputs, not the padding between rows. */
void qn_image_poison(const struct qn_regions *map, struct qn_image *image, int round);
/* Make the written regions at `place` what they are before a run: as in `before`, with poisoned
 * outputs. `work` is a WRITTEN image to do it in; what it holds afterwards is no matter. */
int qn_place_poison(const struct qn_regions *map, const struct qn_place *place,
                    const struct qn_image *before, struct qn_image *work, int round,
                    struct quern_message *why);

/* Whether all that both images hold is the same, bit for bit; else `where` names the first array
 * and byte that is not. */
bool qn_images_equal(const struct qn_regions *map, const struct qn_image *a,
                     const struct qn_image *b, struct quern_message *where);

/* QUERN_CHECK_FAILED, naming array and byte, unless the memory at `place` differs from `before`
 * only in elements that a call may write. `after` holds at least the written regions as they are
 * there, and is used up: its outputs are overwritten. */
int qn_regions_compare(const struct qn_regions *map, const struct qn_place *place,
                       const struct qn_image *before, struct qn_image *after,
                       struct quern_message *why);

#endif
