/* Specs: text and values, checks, buckets.
 *
 *     "gemm m=301 n=512" --parse--> {family, values[]} --bucket--> {family, values[]} + alignment
 *                                                        m=512      what a kernel is made for
 *
 * Parsing refuses what no spec could mean (unknown name, not a number, a word outside the domain);
 * qn_spec_check() refuses what this family cannot do, for specs made by hand too. Values are int64;
 * a REAL is the bits of a double, and only whether it is given takes part in a bucket.
 */
#include "jit/context.h"

#include <ctype.h>
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/text.h"

static double real_of(int64_t value)
{
    double real;
    memcpy(&real, &value, sizeof(real));
    return real;
}

static int64_t real_bits(double real)
{
    int64_t value;
    memcpy(&value, &real, sizeof(value));
    return value;
}

/* Numbers are read and written with a decimal point in every locale of the host; "C" always exists
 * and is not allocated. */
static locale_t plain_locale(void)
{
    return newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

/* ---- Domains ------------------------------------------------------------------------------- */

/* The word of length `length` in a blank-separated list: its index, or -1. */
static int word_index(const char *list, const char *word, size_t length)
{
    int index = 0;
    for (const char *p = list; *p; index++) {
        size_t n = strcspn(p, " ");
        if (n == length && !strncmp(p, word, n))
            return index;
        p += n;
        p += strspn(p, " ");
    }
    return -1;
}

static int word_count(const char *list)
{
    int count = 0;
    for (const char *p = list; *p; count++) {
        p += strcspn(p, " ");
        p += strspn(p, " ");
    }
    return count;
}

static void word_at(const char *list, int64_t index, char *word, size_t bytes)
{
    const char *p = list;
    for (; index > 0 && *p; index--) {
        p += strcspn(p, " ");
        p += strspn(p, " ");
    }
    snprintf(word, bytes, "%.*s", (int)strcspn(p, " "), p);
}

static int dtype_find(const char *name, size_t length)
{
    for (int dtype = 0; dtype < QUERN_DTYPE_COUNT; dtype++) {
        const char *known = quern_dtype_name(dtype);
        if (strlen(known) == length && !strncmp(known, name, length))
            return dtype;
    }
    return -1;
}

static int parse_size(const struct quern_param *param, const char *text, int64_t *value,
                      struct quern_message *why)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || *end || isspace((unsigned char)*text) || *text == '+')
        return quern_refuse(why, "%s=%s: must be a whole number", param->name, text);
    if (errno || number < param->minimum || number > QUERN_SIZE_MAX)
        return quern_refuse(why, "%s=%s: must be from %lld to %lld", param->name, text,
                            (long long)param->minimum, (long long)QUERN_SIZE_MAX);
    *value = number;
    return QUERN_OK;
}

static int parse_real(const struct quern_param *param, const char *text, int64_t *value,
                      struct quern_message *why)
{
    char *end;
    double real = strtod_l(text, &end, plain_locale());
    if (end == text || *end || !isfinite(real))
        return quern_refuse(why, "%s=%s: must be a finite number", param->name, text);
    *value = real_bits(real);
    return QUERN_OK;
}

static int parse_value(const struct quern_param *param, const char *text, int64_t *value,
                       struct quern_message *why)
{
    size_t length = strlen(text);
    switch (param->kind) {
    case QUERN_SIZE:
        return parse_size(param, text, value, why);
    case QUERN_REAL:
        return parse_real(param, text, value, why);
    case QUERN_FLAG:
        if (length != 1 || (*text != '0' && *text != '1'))
            return quern_refuse(why, "%s=%s: must be 0 or 1", param->name, text);
        *value = *text - '0';
        return QUERN_OK;
    case QUERN_CHOICE:
    case QUERN_DTYPE:
        break;
    }
    int index = strchr(text, ' ') ? -1 : word_index(param->domain, text, length);
    if (index < 0)
        return quern_refuse(why, "%s=%s: must be one of: %s", param->name, text, param->domain);
    *value = param->kind == QUERN_DTYPE ? dtype_find(text, length) : index;
    return QUERN_OK;
}

static void real_text(double real, char *text, size_t bytes)
{
    locale_t before = uselocale(plain_locale());
    snprintf(text, bytes, "%.17g", real);
    uselocale(before);
}

void qn_value_text(const struct quern_param *param, int64_t value, bool is_key, char *text,
                   size_t bytes)
{
    switch (param->kind) {
    case QUERN_SIZE:
    case QUERN_FLAG:
        snprintf(text, bytes, "%lld", (long long)value);
        break;
    case QUERN_REAL:
        if (is_key)
            snprintf(text, bytes, "%s", isnan(real_of(value)) ? "absent" : "given");
        else
            real_text(real_of(value), text, bytes);
        break;
    case QUERN_DTYPE:
        snprintf(text, bytes, "%s", quern_dtype_name((int)value));
        break;
    case QUERN_CHOICE:
        word_at(param->domain, value, text, bytes);
        break;
    }
}

/* The value of a CHOICE or DTYPE is one of its words. On every call's path: no text is made. */
static bool is_listed(const struct quern_param *param, int64_t value)
{
    if (param->kind == QUERN_CHOICE)
        return value >= 0 && value < word_count(param->domain);
    if (value < 0 || value >= QUERN_DTYPE_COUNT)
        return false;
    const char *name = quern_dtype_name((int)value);
    return word_index(param->domain, name, strlen(name)) >= 0;
}

static int refuse_word(const struct quern_param *param, int64_t value, struct quern_message *why)
{
    if (param->kind == QUERN_DTYPE && value >= 0 && value < QUERN_DTYPE_COUNT)
        return quern_refuse(why, "%s=%s: must be one of: %s", param->name,
                            quern_dtype_name((int)value), param->domain);
    return quern_refuse(why, "%s=%lld: must be one of: %s (as a number: an index from 0)",
                        param->name, (long long)value, param->domain);
}

/* The value lies in the parameter's domain, however it got there. */
static int check_domain(const struct quern_param *param, int64_t value, struct quern_message *why)
{
    if (value == QUERN_REQUIRED && param->kind != QUERN_REAL)
        return quern_refuse(why, "%s: must be given (%s)", param->name, param->doc);
    switch (param->kind) {
    case QUERN_SIZE:
        if (value < param->minimum || value > QUERN_SIZE_MAX)
            return quern_refuse(why, "%s=%lld: must be from %lld to %lld", param->name,
                                (long long)value, (long long)param->minimum,
                                (long long)QUERN_SIZE_MAX);
        return QUERN_OK;
    case QUERN_FLAG:
        if (value != 0 && value != 1)
            return quern_refuse(why, "%s=%lld: must be 0 or 1", param->name, (long long)value);
        return QUERN_OK;
    case QUERN_REAL:
        if (isinf(real_of(value)))
            return quern_refuse(why, "%s=%g: must be a finite number", param->name, real_of(value));
        return QUERN_OK;
    case QUERN_CHOICE:
    case QUERN_DTYPE:
        break;
    }
    /* On the path of every call: the default is known to be listed (qn_param_check). */
    return value == param->default_value || is_listed(param, value)
               ? QUERN_OK
               : refuse_word(param, value, why);
}

int qn_param_check(const struct quern_param *param, struct quern_message *why)
{
    char word[64];
    for (int i = 0; param->kind == QUERN_DTYPE && i < word_count(param->domain); i++) {
        word_at(param->domain, i, word, sizeof(word));
        if (dtype_find(word, strlen(word)) < 0)
            return quern_refuse(why, "%s: %s is no dtype", param->name, word);
    }
    if (param->kind == QUERN_REAL || param->default_value == QUERN_REQUIRED)
        return QUERN_OK;
    bool is_word = param->kind == QUERN_CHOICE || param->kind == QUERN_DTYPE;
    if (is_word && !is_listed(param, param->default_value))
        return refuse_word(param, param->default_value, why);
    return check_domain(param, param->default_value, why);
}

/* ---- Checks -------------------------------------------------------------------------------- */

/* "x=1x4096x4096 (batch, rows, cols) of f32: its bytes must fit 63 bits" */
static int refuse_shape(const struct quern_array_info *info, const struct quern_shape *shape,
                        const char *rule, struct quern_message *why)
{
    char dims[QUERN_MAX_RANK * 24] = "";
    for (int d = 0; d < shape->rank; d++) {
        size_t used = strlen(dims);
        snprintf(dims + used, sizeof(dims) - used, "%s%lld", d ? "x" : "",
                 (long long)shape->dims[d]);
    }
    return quern_refuse(why, "%s=%s (%s) of %s: %s", info->name, dims, info->shape,
                        quern_dtype_name(shape->dtype), rule);
}

/* No extent is negative and no array's byte count passes 63 bits: every later product then fits
 * int64. */
static int check_bytes(const struct quern_spec *spec, struct quern_message *why)
{
    const struct quern_family *family = spec->family;
    for (int i = 0; i < family->array_count; i++) {
        struct quern_shape shape;
        family->shape(spec, i, &shape);
        if (shape.role == QUERN_ABSENT)
            continue;
        if (shape.rank < 0 || shape.rank > QUERN_MAX_RANK)
            return quern_refuse(why, "%s: rank %d of its shape: must be from 0 to %d",
                                family->arrays[i].name, shape.rank, QUERN_MAX_RANK);
        int64_t bytes = (int64_t)quern_dtype_bytes(shape.dtype);
        bool is_empty = false, is_over = false;
        for (int d = 0; d < shape.rank; d++) {
            if (shape.dims[d] < 0)
                return refuse_shape(&family->arrays[i], &shape, "no extent may be negative", why);
            is_empty |= shape.dims[d] == 0;
            is_over |= !is_over && __builtin_mul_overflow(bytes, shape.dims[d], &bytes);
        }
        if (is_over && !is_empty)
            return refuse_shape(&family->arrays[i], &shape, "its bytes must fit 63 bits", why);
    }
    return QUERN_OK;
}

int qn_spec_check(const struct quern_spec *spec, struct quern_message *why)
{
    if (!spec || !spec->family)
        return quern_refuse(why, "spec=NULL: must be set, by quern_spec_init() for one");
    for (int i = 0; i < spec->family->param_count; i++)
        QN_TRY(check_domain(&spec->family->params[i], spec->values[i], why));
    if (spec->family->validate) /* before shape(), which may rely on it not to overflow */
        QN_TRY(spec->family->validate(spec, why));
    return check_bytes(spec, why);
}

int quern_spec_validate(struct quern_context *ctx, const struct quern_spec *spec)
{
    struct quern_message why;
    if (!ctx)
        return QUERN_INVALID;
    int status = qn_spec_check(spec, &why);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}

int quern_spec_shape(struct quern_context *ctx, const struct quern_spec *spec, int index,
                     struct quern_shape *shape)
{
    QN_TRY(quern_spec_validate(ctx, spec));
    QN_TRY(qn_require(ctx, "shape", shape));
    if (index < 0 || index >= spec->family->array_count)
        return qn_fail(ctx, QUERN_INVALID, "index=%d: %s has arrays 0 to %d", index,
                       spec->family->name, spec->family->array_count - 1);
    spec->family->shape(spec, index, shape);
    return QUERN_OK;
}

/* ---- Text ---------------------------------------------------------------------------------- */

int quern_spec_init(struct quern_context *ctx, const char *name, struct quern_spec *spec)
{
    QN_TRY(qn_require(ctx, "spec", spec));
    const struct quern_family *family = quern_family_find(ctx, name);
    if (!family) {
        char known[512] = "";
        for (int i = 0; i < quern_family_count(ctx); i++)
            qn_list_add(known, sizeof(known), quern_family_at(ctx, i)->name);
        return qn_fail(ctx, QUERN_INVALID, "family=%s: must be one of: %s", name ? name : "NULL",
                       known);
    }
    memset(spec, 0, sizeof(*spec));
    spec->family = family;
    for (int i = 0; i < family->param_count; i++) {
        const struct quern_param *param = &family->params[i];
        spec->values[i] = param->kind == QUERN_REAL ? real_bits(NAN) : param->default_value;
    }
    return QUERN_OK;
}

/* Values that the family implies follow those they come from until they are given otherwise: takes
 * back each that is what it would be, were it not given. */
static void forget_implied(struct quern_spec *spec)
{
    const struct quern_family *family = spec->family;
    const struct quern_spec before = *spec;
    for (int i = 0; family->implied && i < family->param_count; i++) {
        struct quern_spec without = before;
        if (family->params[i].default_value != QUERN_REQUIRED)
            continue;
        without.values[i] = QUERN_REQUIRED;
        family->implied(&without);
        if (without.values[i] == before.values[i])
            spec->values[i] = QUERN_REQUIRED;
    }
}

int quern_spec_set(struct quern_context *ctx, struct quern_spec *spec, const char *name,
                   const char *value)
{
    if (!ctx)
        return QUERN_INVALID;
    if (!spec || !spec->family)
        return qn_fail(ctx, QUERN_INVALID, "spec=NULL: must be set, by quern_spec_init() for one");
    if (!name || !value)
        return qn_fail(ctx, QUERN_INVALID, "%s=NULL: must be text", name ? name : "name");
    const struct quern_family *family = spec->family;
    for (int i = 0; i < family->param_count; i++) {
        if (!strcmp(family->params[i].name, name)) {
            struct quern_message why;
            int64_t parsed = spec->values[i];
            int status = parse_value(&family->params[i], value, &parsed, &why);
            if (!status)
                forget_implied(spec);
            if (!status)
                spec->values[i] = parsed;
            if (!status && family->implied)
                family->implied(spec);
            return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
        }
    }
    char known[512] = "";
    for (int i = 0; i < family->param_count; i++)
        qn_list_add(known, sizeof(known), family->params[i].name);
    return qn_fail(ctx, QUERN_INVALID, "%s=%s: %s has no such parameter; it has: %s", name, value,
                   family->name, known);
}

/* Sets from one "name=value" word, which is cut in place. */
static int set_word(struct quern_context *ctx, struct quern_spec *spec, char *word, uint32_t *given)
{
    char *equals = strchr(word, '=');
    if (!equals)
        return qn_fail(ctx, QUERN_INVALID, "%s: must be name=value", word);
    *equals = '\0';
    for (int i = 0; i < spec->family->param_count; i++) {
        if (strcmp(spec->family->params[i].name, word))
            continue;
        if (*given >> i & 1)
            return qn_fail(ctx, QUERN_INVALID, "%s=%s: given twice", word, equals + 1);
        *given |= UINT32_C(1) << i;
    }
    return quern_spec_set(ctx, spec, word, equals + 1);
}

int quern_spec_parse(struct quern_context *ctx, const char *text, struct quern_spec *spec)
{
    struct quern_spec parsed;
    uint32_t given = 0;
    int status = QUERN_INVALID;
    QN_TRY(qn_require(ctx, "text", text));
    QN_TRY(qn_require(ctx, "spec", spec));
    char *rest = NULL, *copy = strdup(text);
    if (!copy)
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    char *word = strtok_r(copy, " \t\n", &rest);
    if (!word) {
        qn_fail(ctx, QUERN_INVALID, "spec: must be a family and name=value words");
        goto out;
    }
    status = quern_spec_init(ctx, word, &parsed);
    while (!status && (word = strtok_r(NULL, " \t\n", &rest)))
        status = set_word(ctx, &parsed, word, &given);
    if (!status)
        status = quern_spec_validate(ctx, &parsed);
    if (!status)
        *spec = parsed;
out:
    free(copy);
    return status;
}

int quern_spec_text(const struct quern_spec *spec, char *text, size_t size)
{
    if (!text && size)
        return QUERN_INVALID;
    if (!spec || !spec->family) {
        if (size)
            *text = '\0';
        return QUERN_INVALID;
    }
    const struct quern_family *family = spec->family;
    size_t used = (size_t)snprintf(text, size, "%s", family->name);
    for (int i = 0; i < family->param_count; i++) {
        char value[64];
        if (family->params[i].kind == QUERN_REAL && isnan(real_of(spec->values[i])))
            continue;
        qn_value_text(&family->params[i], spec->values[i], false, value, sizeof(value));
        used += (size_t)snprintf(used < size ? text + used : NULL, used < size ? size - used : 0,
                                 " %s=%s", family->params[i].name, value);
    }
    return (int)used;
}

/* ---- Buckets ------------------------------------------------------------------------------- */

/* 0 shares the bucket of 1: a call that does nothing needs no kernel of its own. */
static void bucket_default(struct quern_spec *bucket)
{
    for (int i = 0; i < bucket->family->param_count; i++) {
        const struct quern_param *param = &bucket->family->params[i];
        if (param->kind == QUERN_SIZE &&
            (param->param_class == QUERN_DYNAMIC || param->param_class == QUERN_HINT))
            bucket->values[i] = quern_power_of_two_above(bucket->values[i]);
    }
}

/* 16, 8, 4, 2 or 1: what divides the base and every stride in bytes. */
static uint8_t alignment_class(const struct quern_array *array, size_t element_bytes)
{
    uint64_t bits = 16 | (uint64_t)(uintptr_t)array->data;
    for (int64_t d = 0; d + 1 < array->rank && d < QUERN_MAX_RANK; d++)
        bits |= (uint64_t)array->strides[d] * element_bytes;
    return (uint8_t)(bits & -bits);
}

/* Without arrays: as if they were dense on a 16-byte boundary. */
static uint8_t alignment_of(const struct quern_spec *spec, const struct quern_array *arrays,
                            int index)
{
    struct quern_shape shape;
    spec->family->shape(spec, index, &shape);
    if (shape.role == QUERN_ABSENT)
        return 16;
    if (arrays && arrays[index].rank)
        return alignment_class(&arrays[index], quern_dtype_bytes(shape.dtype));
    /* Dense: every outer stride is a multiple of the innermost extent. */
    const struct quern_array dense = { .data = arrays ? arrays[index].data : NULL,
                                       .rank = shape.rank > 1 ? 2 : 1,
                                       .strides = { shape.rank ? shape.dims[shape.rank - 1] : 1 } };
    return alignment_class(&dense, quern_dtype_bytes(shape.dtype));
}

void qn_bucket_make(const struct quern_spec *spec, const struct quern_array *arrays,
                    struct qn_bucket *bucket)
{
    const struct quern_family *family = spec->family;
    size_t params = (size_t)family->param_count;
    bucket->spec.family = family;
    memcpy(bucket->spec.values, spec->values, params * sizeof(int64_t));
    if (family->bucket)
        family->bucket(&bucket->spec);
    else
        bucket_default(&bucket->spec);
    for (int i = 0; i < family->param_count; i++) {
        if (family->params[i].kind == QUERN_REAL)
            bucket->spec.values[i] = real_bits(isnan(real_of(spec->values[i])) ? NAN : 1.0);
    }
    for (int i = 0; i < family->array_count; i++)
        bucket->alignment[i] = alignment_of(spec, arrays, i);
}

bool qn_bucket_equal(const struct qn_bucket *a, const struct qn_bucket *b)
{
    const struct quern_family *family = a->spec.family;
    return family == b->spec.family &&
           !memcmp(a->spec.values, b->spec.values, (size_t)family->param_count * sizeof(int64_t)) &&
           !memcmp(a->alignment, b->alignment, (size_t)family->array_count);
}

/* Multiply and fold: a few nanoseconds for a dozen words. Equality is what decides; this only
 * spreads. */
uint64_t qn_bucket_hash(const struct qn_bucket *bucket)
{
    const uint64_t odd = UINT64_C(0x9e3779b97f4a7c15);
    uint64_t hash = (uint64_t)(uintptr_t)bucket->spec.family * odd;
    for (int i = 0; i < bucket->spec.family->param_count; i++) {
        hash = (hash ^ (uint64_t)bucket->spec.values[i]) * odd;
        hash ^= hash >> 29;
    }
    for (int i = 0; i < bucket->spec.family->array_count; i++)
        hash = (hash << 5 | hash >> 59) ^ bucket->alignment[i];
    hash *= odd;
    return hash ^ hash >> 32;
}
