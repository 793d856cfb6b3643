/* The arrays of one call.
 *
 *     --in x.npy, x.safetensors:name --map, parse--> tensor_view --check, convert--+
 *                                                                                  v
 *     nothing given --quern_fill()--> host memory -------------------------> device memory
 *                                                                                  |
 *     --out y.npy <--npy_write()-- host memory <-----------------------------------+
 *
 * A file's dtype may be the array's own, its raw bits where NumPy has no such type, or, between
 * floats, any other, which is converted with one rounding. Integers must match. Extents must match
 * too, except that leading ones may be left out on either side, and outputs then leave out as many
 * as the inputs did; and that the leading extents of one side may be a single one of the other, as
 * (200, 8, 64) is taken for (2, 100, 8, 64). Fortran order is reordered.
 *
 * Files are mapped: a large weight is read once, page by page, straight into the device's memory.
 */
#include "array_io.h"

#include "convert.h"
#include "nearest.h"
#include "npy.h"
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SAFETENSORS ".safetensors"
#define MAX_PATH 4096

/* ---- Files --------------------------------------------------------------------------------- */

struct file_map {
    void *bytes;
    size_t size;
};

static void file_close(struct file_map *map)
{
    if (map->bytes)
        munmap(map->bytes, map->size);
}

static int file_open(const char *path, struct file_map *map, char why[TENSOR_WHY_BYTES])
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not hang us */
    int result = fd < 0 || fstat(fd, &status);

    *map = (struct file_map){ 0 };
    if (result) {
        snprintf(why, TENSOR_WHY_BYTES, "cannot be read: %s", strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
        snprintf(why, TENSOR_WHY_BYTES, "must be a regular file");
        result = 1;
    } else if (status.st_size > 0) {
        map->size = (size_t)status.st_size;
        map->bytes = mmap(NULL, map->size, PROT_READ, MAP_PRIVATE, fd, 0);
        result = map->bytes == MAP_FAILED;
        if (result) {
            map->bytes = NULL;
            snprintf(why, TENSOR_WHY_BYTES, "cannot be read: %s", strerror(errno));
        }
    }
    if (fd >= 0)
        close(fd);
    return result ? -1 : 0;
}

/* "x.npy" or "x.safetensors:name": the tensor in the file, which stays mapped. */
static int open_tensor(const char *place, struct file_map *map, struct tensor_view *view,
                       char why[TENSOR_WHY_BYTES])
{
    char path[MAX_PATH];
    const char *tensor = strstr(place, SAFETENSORS ":");
    size_t length = strlen(place), suffix = strlen(SAFETENSORS);

    *map = (struct file_map){ 0 };
    if (length >= suffix && !strcmp(place + length - suffix, SAFETENSORS)) {
        snprintf(why, TENSOR_WHY_BYTES, "must name a tensor, as FILE.safetensors:TENSOR");
        return -1;
    }
    if (tensor) {
        length = (size_t)(tensor - place) + suffix;
        tensor += suffix + 1;
    }
    if (length >= sizeof(path)) {
        snprintf(why, TENSOR_WHY_BYTES, "path of %zu bytes: must be shorter than %d", length,
                 MAX_PATH);
        return -1;
    }
    memcpy(path, place, length);
    path[length] = 0;
    if (file_open(path, map, why))
        return -1;
    return tensor ? safetensors_parse(map->bytes, map->size, tensor, view, why)
                  : npy_parse(map->bytes, map->size, view, why);
}

/* ---- Dtype, shape and order ---------------------------------------------------------------- */

static int has_numpy_type(int dtype)
{
    return dtype != QUERN_BF16 && dtype != QUERN_E4M3 && dtype != QUERN_E5M2;
}

/* Make view->dtype what its bytes are to be taken as; refuse what cannot become `dtype`. */
static int match_dtype(struct tensor_view *view, int dtype, char why[TENSOR_WHY_BYTES])
{
    size_t bytes = quern_dtype_bytes(dtype);
    const char *name = quern_dtype_name(dtype);

    if (!has_numpy_type(dtype) && (size_t)view->raw_bytes == bytes)
        view->dtype = dtype;
    if (view->dtype == dtype || (convert_is_float(dtype) && convert_is_float(view->dtype)))
        return 0;
    if (!convert_is_float(dtype))
        snprintf(why, TENSOR_WHY_BYTES, "dtype '%s': must be %s", view->type, name);
    else if (has_numpy_type(dtype))
        snprintf(why, TENSOR_WHY_BYTES, "dtype '%s': must be %s, or another float to convert",
                 view->type, name);
    else
        snprintf(why, TENSOR_WHY_BYTES,
                 "dtype '%s': must be the bits of %s as u%zu or V%zu, or a "
                 "float to convert",
                 view->type, name, bytes, bytes);
    return -1;
}

static int leading_ones(int rank, const int64_t *dims)
{
    int count = 0;
    while (count < rank && dims[count] == 1)
        count++;
    return count;
}

/* Whether the leading extents of one shape are a single one of the other, and all others equal. */
static int is_joined(int rank, const int64_t *dims, int other_rank, const int64_t *other)
{
    int64_t count, other_count;
    int agreed = 0;
    size_t bytes;

    while (rank > 1 && other_rank > 1 && dims[rank - 1] == other[other_rank - 1])
        rank--, other_rank--, agreed++;
    return agreed && (rank == 1 || other_rank == 1) &&
           !tensor_size(rank, dims, 1, &count, &bytes) &&
           !tensor_size(other_rank, other, 1, &other_count, &bytes) && count == other_count;
}

static int match_shape(const struct tensor_view *view, const struct quern_shape *shape,
                       char why[TENSOR_WHY_BYTES])
{
    char have[128], want[128];
    int view_skip = leading_ones(view->rank, view->dims);
    int skip = leading_ones(shape->rank, shape->dims);
    int rank = shape->rank - skip;

    if (view->rank - view_skip == rank &&
        (!rank || !memcmp(view->dims + view_skip, shape->dims + skip,
                          (size_t)rank * sizeof(shape->dims[0]))))
        return 0;
    if (is_joined(view->rank - view_skip, view->dims + view_skip, rank, shape->dims + skip))
        return 0;
    tensor_shape_text(view->rank, view->dims, have, sizeof(have));
    tensor_shape_text(shape->rank, shape->dims, want, sizeof(want));
    snprintf(why, TENSOR_WHY_BYTES, "shape %s: must be %s%s", have, want,
             skip ? ", leading extents of 1 may be left out" : "");
    return -1;
}

/* All elements of a view, row-major and in the array's dtype. */
static void copy_view(const struct tensor_view *view, int dtype, int64_t count, void *data)
{
    int64_t strides[TENSOR_MAX_RANK], index[TENSOR_MAX_RANK] = { 0 }, stride = 1, offset = 0;
    int last = view->rank - 1;
    unsigned char *to = data;

    if (!view->is_fortran || view->rank < 2 || !count) {
        convert_copy(dtype, data, view->dtype, view->data, 1, count);
        return;
    }
    for (int i = 0; i <= last; stride *= view->dims[i++])
        strides[i] = stride;
    for (int64_t done = 0; done < count; done += view->dims[last]) {
        convert_copy(dtype, to, view->dtype,
                     view->data + (size_t)offset * quern_dtype_bytes(view->dtype), strides[last],
                     view->dims[last]);
        to += (size_t)view->dims[last] * quern_dtype_bytes(dtype);
        for (int i = last - 1; i >= 0; i--) { /* the next row: count up, outermost slowest */
            offset += strides[i];
            if (++index[i] < view->dims[i])
                break;
            offset -= strides[i] * view->dims[i];
            index[i] = 0;
        }
    }
}

/* ---- --in and --out ------------------------------------------------------------------------ */

static int refuse_file(const char *name, const char *place, const char *why)
{
    return complain(EXIT_FAILED, "%s=%s: %s", name, place, why);
}

/* "d=y.npy" of --in or --out: the array's index and the file. An exit code. */
static int find_array(const struct array_set *set, const char *text, int *index, const char **place)
{
    char name[64], known[512] = "";
    struct nearest nearest;
    const char *verdict = "must be one of: ";

    if (args_split(text, name, sizeof(name), place) || !**place)
        return complain(EXIT_USAGE, "array=%s: must be ARRAY=FILE", text);
    nearest_init(&nearest, name);
    for (int i = 0; i < set->family.array_count; i++) {
        const char *array = set->family.arrays[i].name;
        size_t used = strlen(known);
        if (!strcmp(array, name)) {
            *index = i;
            return EXIT_DONE;
        }
        snprintf(known + used, sizeof(known) - used, "%s%s", i ? " " : "", array);
        nearest_offer(&nearest, array);
    }
    return nearest.best ? complain(EXIT_USAGE, "%s: %s has no array %s, %s%s; did you mean %s?",
                                   text, set->family.name, name, verdict, known, nearest.best)
                        : complain(EXIT_USAGE, "%s: %s has no array %s, %s%s", text,
                                   set->family.name, name, verdict, known);
}

/* What the array is here, and what its role, an expression of the parameters, would have to be. */
static int refuse_role(const struct array_set *set, int index, const char *text, int is_read)
{
    static const char *const kinds[] = { [QUERN_ABSENT] = "absent",
                                         [QUERN_IN] = "an input",
                                         [QUERN_OUT] = "an output",
                                         [QUERN_INOUT] = "an input and an output" };
    const char *name = set->family.arrays[index].name, *role = set->family.arrays[index].role;
    const char *kind = kinds[set->shapes[index].role], *verb = is_read ? "read" : "written";
    const char *roles = is_read ? strstr(role, "INOUT") ? "INOUT" : "IN" : "OUT or INOUT";

    if (!strchr(role, '?')) /* no parameter changes it */
        return complain(EXIT_USAGE, "%s: %s is %s and is never %s", text, name, kind, verb);
    return complain(EXIT_USAGE, "%s: %s is %s here; it is %s only where its role is %s (%s)", text,
                    name, kind, verb, roles, role);
}

static int check_in(const struct array_set *set, const char *text, const char *places[])
{
    const char *place;
    int index;
    int code = find_array(set, text, &index, &place);
    if (code)
        return code;
    if (places[index])
        return complain(EXIT_USAGE, "%s: %s is given twice, must be given once", text,
                        set->family.arrays[index].name);
    if (set->shapes[index].role != QUERN_IN && set->shapes[index].role != QUERN_INOUT)
        return refuse_role(set, index, text, 1);
    places[index] = place;
    return EXIT_DONE;
}

static int check_out(const struct array_set *set, const char *text)
{
    char why[TENSOR_WHY_BYTES];
    const char *place;
    int index;
    int code = find_array(set, text, &index, &place);
    if (code)
        return code;
    if (set->shapes[index].role != QUERN_OUT && set->shapes[index].role != QUERN_INOUT)
        return refuse_role(set, index, text, 0);
    size_t length = strlen(place);
    if (length < 5 || strcmp(place + length - 4, ".npy"))
        return complain(EXIT_USAGE, "%s: must be a file whose name ends in .npy", text);
    if (npy_check_place(place, why))
        return refuse_file(set->family.arrays[index].name, place, why);
    return EXIT_DONE;
}

/* ---- Contents ------------------------------------------------------------------------------ */

static int refuse_memory(const char *name, size_t bytes)
{
    return complain(EXIT_FAILED, "%s: no memory for its %zu bytes", name, bytes);
}

/* A file's tensor into the array's memory, by way of the host's where it must change. */
static int load_file(struct session *session, struct array_set *set, int index, const char *place)
{
    const char *name = set->family.arrays[index].name;
    const struct quern_shape *shape = &set->shapes[index];
    size_t bytes = set->arrays[index].size_bytes;
    char why[TENSOR_WHY_BYTES];
    struct tensor_view view;
    struct file_map map;
    void *host = NULL;
    int status = 0, code = EXIT_DONE;

    if (open_tensor(place, &map, &view, why) || match_dtype(&view, shape->dtype, why) ||
        match_shape(&view, shape, why)) {
        file_close(&map);
        return refuse_file(name, place, why);
    }
    set->ranks_left_out[index] = shape->rank > view.rank ? shape->rank - view.rank : 0;
    if (view.dtype == shape->dtype && !view.is_fortran) {
        status = quern_memory_copy(session->ctx, set->arrays[index].data, view.data, bytes);
    } else if (!(host = malloc(bytes ? bytes : 1))) {
        code = refuse_memory(name, bytes);
    } else {
        copy_view(&view, shape->dtype, (int64_t)(bytes / quern_dtype_bytes(shape->dtype)), host);
        status = quern_memory_copy(session->ctx, set->arrays[index].data, host, bytes);
    }
    free(host);
    file_close(&map);
    return status ? session_fail(session, status) : code;
}

/* How many leading extents of 1 to leave out of output `index`: as its own file did, else as the
 * other inputs' did. */
static int ranks_to_leave_out(const struct array_set *set, int index)
{
    const struct quern_shape *shape = &set->shapes[index];
    int most = 0, ones = leading_ones(shape->rank, shape->dims);

    for (int i = 0; i < set->family.array_count; i++)
        if (set->ranks_left_out[i] > most)
            most = set->ranks_left_out[i];
    if (set->ranks_left_out[index] >= 0)
        most = set->ranks_left_out[index];
    return most < ones ? most : ones;
}

/* Drawn contents of an input, zeros of an output. */
static int draw(struct session *session, const struct quern_spec *spec, const struct array_set *set,
                int index)
{
    const struct quern_array *array = &set->arrays[index];
    void *host = calloc(array->size_bytes ? array->size_bytes : 1, 1);
    int status = 0;

    if (!host)
        return refuse_memory(set->family.arrays[index].name, array->size_bytes);
    if (set->shapes[index].role != QUERN_OUT)
        status = quern_fill(session->ctx, spec, index, (uint64_t)session->args->seed, host);
    if (!status)
        status = quern_memory_copy(session->ctx, array->data, host, array->size_bytes);
    free(host);
    return status ? session_fail(session, status) : EXIT_DONE;
}

static int allocate(struct session *session, struct array_set *set, int index)
{
    const struct quern_shape *shape = &set->shapes[index];
    struct quern_array *array = &set->arrays[index];
    int64_t count;

    if (tensor_size(shape->rank, shape->dims, quern_dtype_bytes(shape->dtype), &count,
                    &array->size_bytes))
        return complain(EXIT_USAGE, "%s: its byte count must fit 63 bits",
                        set->family.arrays[index].name);
    int status = quern_memory_alloc(session->ctx, array->size_bytes, &array->data);
    if (status != QUERN_NO_MEMORY)
        return status ? session_fail(session, status) : EXIT_DONE;
    char extents[128];
    tensor_shape_text(shape->rank, shape->dims, extents, sizeof(extents));
    return complain(
        EXIT_FAILED, "%s: needs %zu bytes (%s of shape %s): the device has no such memory",
        set->family.arrays[index].name, array->size_bytes, quern_dtype_name(shape->dtype), extents);
}

int array_set_create(struct session *session, const struct quern_spec *spec, struct array_set *set)
{
    const struct args *args = session->args;
    const char *places[QUERN_MAX_ARRAYS] = { NULL };
    int status = 0, code = EXIT_DONE;

    memset(set, 0, sizeof(*set));
    memset(set->ranks_left_out, -1, sizeof(set->ranks_left_out));
    quern_family_describe(spec->family, &set->family);
    for (int i = 0; !status && i < set->family.array_count; i++)
        status = quern_spec_shape(session->ctx, spec, i, &set->shapes[i]);
    if (status)
        return session_fail(session, status);
    for (int i = 0; !code && i < args->in_count; i++)
        code = check_in(set, args->in[i], places);
    for (int i = 0; !code && i < args->out_count; i++)
        code = check_out(set, args->out[i]);
    for (int i = 0; !code && i < set->family.array_count; i++) {
        if (set->shapes[i].role == QUERN_ABSENT)
            continue;
        code = allocate(session, set, i);
        if (!code)
            code = places[i] ? load_file(session, set, i, places[i]) : draw(session, spec, set, i);
    }
    return code;
}

void array_set_destroy(struct session *session, struct array_set *set)
{
    for (int i = 0; i < set->family.array_count; i++)
        if (set->arrays[i].data)
            quern_memory_free(session->ctx, set->arrays[i].data, set->arrays[i].size_bytes);
    memset(set, 0, sizeof(*set));
}

static int save(struct session *session, const struct array_set *set, int index, const char *place)
{
    const struct quern_shape *shape = &set->shapes[index];
    const char *name = set->family.arrays[index].name;
    size_t bytes = set->arrays[index].size_bytes;
    int left_out = ranks_to_leave_out(set, index);
    char why[TENSOR_WHY_BYTES];
    int code = EXIT_DONE;

    void *host = malloc(bytes ? bytes : 1);
    if (!host)
        return refuse_memory(name, bytes);
    int status = quern_memory_copy(session->ctx, host, set->arrays[index].data, bytes);
    if (status)
        code = session_fail(session, status);
    else if (npy_write(place, shape->dtype, shape->rank - left_out, shape->dims + left_out, host,
                       why))
        code = refuse_file(name, place, why);
    free(host);
    return code;
}

int array_set_save(struct session *session, const struct array_set *set)
{
    const struct args *args = session->args;
    int index, code = EXIT_DONE;
    const char *place;

    for (int i = 0; !code && i < args->out_count; i++) {
        code = find_array(set, args->out[i], &index, &place);
        if (!code)
            code = save(session, set, index, place);
    }
    return code;
}
