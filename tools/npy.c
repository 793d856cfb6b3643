/* NumPy's .npy files.
 *
 *     \x93NUMPY  major minor  header length (u16, from version 2 on u32)
 *     {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }  blanks  newline
 *     the elements, and nothing after them
 *
 * The header is a Python literal. Only the form that the format allows is read: three known keys,
 * in any order, whose values are a string, True or False, and a tuple of numbers. Nothing in a file
 * is believed: every length is checked against the bytes that are there.
 */
#include "npy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "\x93NUMPY"
#define MAGIC_BYTES 6
#define MAX_HEADER_BYTES 65535 /* far more than 32 dimensions need */
#define HEADER_ALIGNMENT 64
#define GROWTH_DIGITS 21 /* NumPy leaves room for the first extent to grow to this many digits */

/* ---- The header's literal ------------------------------------------------------------------ */

struct cursor {
    const char *at, *end;
};

static void skip_blanks(struct cursor *cursor)
{
    while (cursor->at < cursor->end && strchr(" \t\r\n", *cursor->at) && *cursor->at)
        cursor->at++;
}

static int take(struct cursor *cursor, const char *word)
{
    size_t length = strlen(word);
    skip_blanks(cursor);
    if ((size_t)(cursor->end - cursor->at) < length || memcmp(cursor->at, word, length))
        return 0;
    cursor->at += length;
    return 1;
}

/* A quoted string without escapes. 0 if there is none or it does not fit. */
static int take_string(struct cursor *cursor, char *text, size_t size)
{
    char quote = take(cursor, "'") ? '\'' : take(cursor, "\"") ? '"' : 0;
    if (!quote)
        return 0;
    const char *close = memchr(cursor->at, quote, (size_t)(cursor->end - cursor->at));
    if (!close || (size_t)(close - cursor->at) >= size)
        return 0;
    size_t length = (size_t)(close - cursor->at);
    memcpy(text, cursor->at, length);
    text[length] = 0;
    cursor->at = close + 1;
    return 1;
}

static int take_number(struct cursor *cursor, int64_t *number)
{
    const char *start;
    skip_blanks(cursor);
    *number = 0;
    for (start = cursor->at; cursor->at < cursor->end; cursor->at++) {
        if (*cursor->at < '0' || *cursor->at > '9')
            break;
        if (__builtin_mul_overflow(*number, 10, number) ||
            __builtin_add_overflow(*number, *cursor->at - '0', number))
            return 0;
    }
    return cursor->at > start;
}

static int take_shape(struct cursor *cursor, struct tensor_view *view)
{
    if (!take(cursor, "("))
        return 0;
    while (!take(cursor, ")")) {
        if (view->rank == TENSOR_MAX_RANK || !take_number(cursor, &view->dims[view->rank++]))
            return 0;
        if (!take(cursor, ",")) {
            int is_tuple = view->rank > 1; /* (3) is a number in Python */
            return is_tuple && take(cursor, ")");
        }
    }
    return 1;
}

/* One key and its value. Returns its bit: 1 descr, 2 fortran_order, 4 shape; 0 if malformed. */
static int take_entry(struct cursor *cursor, struct tensor_view *view)
{
    char key[16];
    if (!take_string(cursor, key, sizeof(key)) || !take(cursor, ":"))
        return 0;
    if (!strcmp(key, "descr"))
        return take_string(cursor, view->type, sizeof(view->type)) ? 1 : 0;
    if (!strcmp(key, "fortran_order")) {
        view->is_fortran = take(cursor, "True");
        return view->is_fortran || take(cursor, "False") ? 2 : 0;
    }
    return !strcmp(key, "shape") && take_shape(cursor, view) ? 4 : 0;
}

static int take_header(struct cursor *cursor, struct tensor_view *view)
{
    int seen = 0;
    if (!take(cursor, "{"))
        return 0;
    while (!take(cursor, "}")) {
        int entry = take_entry(cursor, view);
        if (!entry || seen & entry)
            return 0;
        seen |= entry;
        if (!take(cursor, ",")) {
            if (!take(cursor, "}"))
                return 0;
            break;
        }
    }
    skip_blanks(cursor);
    return seen == 7 && cursor->at == cursor->end;
}

/* ---- Reading ------------------------------------------------------------------------------- */

/* "<f4" and its kind. raw_bytes marks what also carries bf16 and fp8 bits: ml_dtypes saves them as
 * V2, V1 and f1. */
static int find_type(struct tensor_view *view, char why[TENSOR_WHY_BYTES])
{
    static const struct {
        const char *name;
        int dtype, raw_bytes;
    } types[] = {
        { "f4", QUERN_F32, 0 },  { "f2", QUERN_F16, 0 },  { "f8", QUERN_F64, 0 },
        { "i1", QUERN_I8, 0 },   { "u1", QUERN_U8, 1 },   { "i4", QUERN_I32, 0 },
        { "i8", QUERN_I64, 0 },  { "u2", QUERN_NONE, 2 }, { "V2", QUERN_NONE, 2 },
        { "V1", QUERN_NONE, 1 }, { "f1", QUERN_NONE, 1 },
    };
    const char *name = view->type[0] && strchr("<>|=", view->type[0]) ? view->type + 1 : view->type;

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (strcmp(name, types[i].name))
            continue;
        if (view->type[0] == '>' && name[1] != '1') {
            snprintf(why, TENSOR_WHY_BYTES, "dtype '%s' is big-endian: must be little-endian '<%s'",
                     view->type, name);
            return -1;
        }
        view->dtype = types[i].dtype;
        view->raw_bytes = types[i].raw_bytes;
        return 0;
    }
    snprintf(why, TENSOR_WHY_BYTES,
             "dtype '%.15s': must be one of f2 f4 f8 i1 u1 i4 i8, or u2 V2 u1 "
             "V1 for the raw bits of bf16 and fp8",
             view->type);
    return -1;
}

/* Everything before the header's text: its place and length. */
static int find_header(const unsigned char *bytes, size_t size, struct cursor *header,
                       char why[TENSOR_WHY_BYTES])
{
    size_t start, length;
    if (size < MAGIC_BYTES + 4 || memcmp(bytes, MAGIC, MAGIC_BYTES)) {
        snprintf(why, TENSOR_WHY_BYTES, "not a .npy file: must start with \\x93NUMPY");
        return -1;
    }
    if (bytes[6] < 1 || bytes[6] > 3 || bytes[7] != 0) {
        snprintf(why, TENSOR_WHY_BYTES, ".npy version %d.%d: must be 1.0, 2.0 or 3.0", bytes[6],
                 bytes[7]);
        return -1;
    }
    length = bytes[8] | (size_t)bytes[9] << 8;
    start = MAGIC_BYTES + 4;
    if (bytes[6] > 1 && size >= start + 2) {
        length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
        start += 2;
    }
    if (length > MAX_HEADER_BYTES) {
        snprintf(why, TENSOR_WHY_BYTES, "header of %zu bytes: must be at most %d", length,
                 MAX_HEADER_BYTES);
        return -1;
    }
    if (length > size - start) {
        snprintf(why, TENSOR_WHY_BYTES,
                 "truncated: its header has %zu bytes, the file holds %zu of them", length,
                 size - start);
        return -1;
    }
    header->at = (const char *)bytes + start;
    header->end = header->at + length;
    return 0;
}

/* The elements must be all that follows the header. */
static int find_data(const unsigned char *bytes, size_t size, size_t start,
                     struct tensor_view *view, char why[TENSOR_WHY_BYTES])
{
    char shape[256];
    int64_t count;
    size_t element = view->raw_bytes ? (size_t)view->raw_bytes : quern_dtype_bytes(view->dtype);

    tensor_shape_text(view->rank, view->dims, shape, sizeof(shape));
    if (tensor_size(view->rank, view->dims, element, &count, &view->bytes)) {
        snprintf(why, TENSOR_WHY_BYTES, "shape %s: its byte count must fit 63 bits", shape);
        return -1;
    }
    if (size - start != view->bytes) {
        snprintf(why, TENSOR_WHY_BYTES,
                 "%s: shape %s of '%s' needs %zu bytes of data, the file has "
                 "%zu",
                 size - start < view->bytes ? "truncated" : "too long", shape, view->type,
                 view->bytes, size - start);
        return -1;
    }
    view->data = bytes + start;
    return 0;
}

int npy_parse(const void *bytes, size_t size, struct tensor_view *view, char why[TENSOR_WHY_BYTES])
{
    struct cursor header;

    memset(view, 0, sizeof(*view));
    if (find_header(bytes, size, &header, why))
        return -1;
    size_t start = (size_t)(header.end - (const char *)bytes);
    if (!take_header(&header, view)) {
        snprintf(why, TENSOR_WHY_BYTES,
                 "malformed header: must be {'descr': '<f4', 'fortran_order': "
                 "False, 'shape': (2, 3)} with a plain dtype");
        return -1;
    }
    if (find_type(view, why))
        return -1;
    return find_data(bytes, size, start, view, why);
}

/* ---- Writing ------------------------------------------------------------------------------- */

static const char *descr_of(int dtype)
{
    static const char *const names[QUERN_DTYPE_COUNT] = {
        [QUERN_F32] = "<f4",  [QUERN_BF16] = "<u2", [QUERN_F16] = "<f2", [QUERN_F64] = "<f8",
        [QUERN_E4M3] = "|u1", [QUERN_E5M2] = "|u1", [QUERN_I8] = "|i1",  [QUERN_U8] = "|u1",
        [QUERN_I32] = "<i4",  [QUERN_I64] = "<i8",
    };
    return names[dtype];
}

static int fail_errno(const char *what, char why[TENSOR_WHY_BYTES])
{
    snprintf(why, TENSOR_WHY_BYTES, "%s: %s", what, strerror(errno));
    return -1;
}

/* The header as NumPy would write it, so that equal arrays give equal files: padded until the
 * elements start at a multiple of 64. Returns its whole length. */
static size_t make_header(char *header, size_t size, int dtype, int rank, const int64_t *dims)
{
    char shape[256];
    tensor_shape_text(rank, dims, shape, sizeof(shape));
    size_t prefix = MAGIC_BYTES + 4;
    size_t used =
        prefix + (size_t)snprintf(header + prefix, size - prefix,
                                  "{'descr': '%s', 'fortran_order': False, 'shape': %s, }",
                                  descr_of(dtype), shape);
    int growth = rank ? GROWTH_DIGITS - snprintf(NULL, 0, "%" PRId64, dims[0]) : 0;
    size_t total =
        (used + (size_t)growth + 1 + HEADER_ALIGNMENT - 1) / HEADER_ALIGNMENT * HEADER_ALIGNMENT;
    size_t length = total - prefix;

    memset(header + used, ' ', total - used - 1);
    header[total - 1] = '\n';
    memcpy(header, MAGIC "\x01\x00", MAGIC_BYTES + 2);
    header[MAGIC_BYTES + 2] = (char)(length & 0xff);
    header[MAGIC_BYTES + 3] = (char)(length >> 8);
    return total;
}

static int write_all(int fd, const void *data, size_t bytes)
{
    for (const char *at = data; bytes;) {
        ssize_t written = write(fd, at, bytes);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -1;
        at += written;
        bytes -= (size_t)written;
    }
    return 0;
}

/* Where the new file must go: a link is followed, and a device or pipe refused, since renaming
 * would put a file in its place. */
static int find_place(const char *path, char place[PATH_MAX], char why[TENSOR_WHY_BYTES])
{
    struct stat status;
    if (stat(path, &status)) {
        if ((size_t)snprintf(place, PATH_MAX, "%s", path) < PATH_MAX - 32)
            return 0;
        errno = ENAMETOOLONG;
        return fail_errno("cannot be written", why);
    }
    if (!S_ISREG(status.st_mode)) {
        snprintf(why, TENSOR_WHY_BYTES, "not a regular file: must be one, or not exist yet");
        return -1;
    }
    return realpath(path, place) ? 0 : fail_errno("cannot be written", why);
}

int npy_check_place(const char *path, char why[TENSOR_WHY_BYTES])
{
    char place[PATH_MAX];
    if (find_place(path, place, why))
        return -1;
    char *slash = strrchr(place, '/');
    if (slash)
        slash[slash == place] = 0; /* "/" itself keeps its name */
    return access(slash ? place : ".", W_OK) ? fail_errno("cannot be written", why) : 0;
}

int npy_write(const char *path, int dtype, int rank, const int64_t *dims, const void *data,
              char why[TENSOR_WHY_BYTES])
{
    char place[PATH_MAX], temporary[PATH_MAX + 32], header[512];
    size_t bytes = 0;
    int64_t count;

    if (tensor_size(rank, dims, quern_dtype_bytes(dtype), &count, &bytes)) {
        snprintf(why, TENSOR_WHY_BYTES, "its byte count must fit 63 bits");
        return -1;
    }
    if (find_place(path, place, why))
        return -1;
    snprintf(temporary, sizeof(temporary), "%s.%ld.tmp", place, (long)getpid());
    size_t header_bytes = make_header(header, sizeof(header), dtype, rank, dims);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return fail_errno("cannot be written", why);
    int status = write_all(fd, header, header_bytes) || write_all(fd, data, bytes);
    if (status)
        fail_errno("cannot be written", why);
    if (close(fd) && !status)
        status = fail_errno("cannot be written", why);
    if (!status && rename(temporary, place))
        status = fail_errno("cannot be written", why);
    if (status)
        unlink(temporary);
    return status ? -1 : 0;
}
