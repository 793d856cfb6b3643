/* The check: outputs against the family's float64 reference.
 *
 *     before image ──reference(unit)...──> rows of doubles          once   (expectation)
 *     after image  ──compare─────────────> rel_err, row_err, why    often  (verdict)
 *
 * Building the expectation:
 *   1. Choose the units: all of them while the work is within WORK_BUDGET and the rows within
 *      ELEMENT_BUDGET, else the first, the last and those beside tile edges, always, and a random
 *      sample by seed up to the budget.
 *   2. Evaluate them in parallel. Each thread has its own quern_ref: rows it was given, scratch
 *      that is reset after a unit. A reference that breaks its contract (reads or expects outside
 *      an array) or runs out of memory jumps out of its unit: it owns nothing, so nothing leaks.
 *   3. Keep the rows sorted, so that sums are the same whatever the threads did.
 *   4. Not all units evaluated: the inputs' side of the family's linear check, where it has one.
 *
 * The verdict, for each output array, tol = tolerance():
 *   - a row: where the reference is NaN or Inf the output is the same, and nowhere else, except
 *     where the dtype itself overflows; no element is still poison; the error's norm is at most
 *     4 tol of the row's, or of its terms' where the reference tells it (quern_ref_expect_sums). A
 *     row of zeros must be zeros.
 *   - all compared rows: the error's norm is at most tol of theirs; or every element is what the
 *     reference rounds to, since one bf16 alone may be off by more than tol and still be right.
 *   - not all units evaluated: where units tile the output, no element anywhere is still poison;
 *     and the outputs' side of the linear check is at most tol from the inputs'.
 *
 * Nothing here launches: verify.c and testbed.c do, and hand over what they found.
 */
#include "jit/check.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/dtype.h"
#include "jit/mix.h"

#define WORK_BUDGET 4e9           /* operations, or bytes if they are more */
#define ELEMENT_BUDGET (32 << 20) /* of expected outputs: 256 MiB of doubles */
#define ROW_SLACK 4               /* a row's error may be this many tolerances */
#define ARENA_DOUBLES (64 << 10)  /* the least block of an arena */
#define COMPARE_BLOCK 1024        /* elements decoded at a time */
#define LINEAR_PART 64            /* units whose outputs a thread takes at a time */
#define NEAR_TIE 1e-5             /* f32 sums may fall on either side of a tie between two values */

/* ---- Arenas -------------------------------------------------------------------------------- */

struct block {
    struct block *next;
    int64_t used, size;
    double data[];
};

/* NULL when memory ran out. */
static double *arena_take(struct block **arena, int64_t count)
{
    struct block *head = *arena;
    if (!head || head->size - head->used < count) {
        int64_t size = head ? 2 * head->size : ARENA_DOUBLES;
        size = size < count ? count : size;
        head = malloc(sizeof(*head) + (size_t)size * sizeof(double));
        if (!head)
            return NULL;
        *head = (struct block){ .next = *arena, .size = size };
        *arena = head;
    }
    head->used += count;
    return head->data + head->used - count;
}

static void arena_free(struct block *block)
{
    while (block) {
        struct block *next = block->next;
        free(block);
        block = next;
    }
}

/* Keeps the newest block, which is the largest. */
static void arena_reset(struct block *arena)
{
    if (!arena)
        return;
    arena_free(arena->next);
    arena->next = NULL;
    arena->used = 0;
}

/* ---- The reference's side ------------------------------------------------------------------ */

struct row {
    int array;
    int64_t first, count;
    double *values;
    double terms; /* their norm, squared; 0: not told */
};

struct qn_expectation {
    const struct qn_regions *map;
    const struct qn_image *before;
    uint64_t seed;
    int64_t unit_count, evaluated;
    struct row *rows;
    int64_t row_count;
    struct block *values; /* what rows point into */
    int64_t compared[QUERN_MAX_ARRAYS];
    double *linear;        /* of each unit, what linear_expect() wants; NULL: no such check */
    bool has_said_nothing; /* a unit expected no elements, and said so */
};

/* One thread's evaluation. */
struct quern_ref {
    const struct qn_regions *map;
    const struct qn_image *before, *after;
    struct block *scratch, *values;
    struct row *rows;
    int64_t row_count, row_capacity;
    bool has_said_nothing;
    jmp_buf unwind;
    int status;
    struct quern_message why;
};

__attribute__((noreturn, format(printf, 3, 4))) static void
ref_fail(struct quern_ref *ref, int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(ref->why.text, sizeof(ref->why.text), format, arguments);
    va_end(arguments);
    ref->status = status;
    longjmp(ref->unwind, 1);
}

static void ref_check(struct quern_ref *ref, int index, int64_t first, int64_t count,
                      const char *verb)
{
    const struct quern_family *family = ref->map->spec.family;
    if (index < 0 || index >= family->array_count)
        ref_fail(ref, QUERN_INTERNAL, "%s: its reference %s array %d of %d", family->name, verb,
                 index, family->array_count);
    int64_t total = ref->map->layouts[index].count;
    if (first < 0 || count < 0 || first > total || count > total - first)
        ref_fail(ref, QUERN_INTERNAL, "%s: its reference %s %s[%lld..%lld) of %lld elements",
                 family->name, verb, family->arrays[index].name, (long long)first,
                 (long long)(first + count), (long long)total);
}

/* Elements that the call does not touch read as NaN. */
static void image_decode(const struct qn_regions *map, const struct qn_image *image, int index,
                         int64_t first, int64_t count, double *values)
{
    const int64_t bytes = map->layouts[index].element_bytes;
    const int dtype = map->shapes[index].dtype;
    for (int64_t done = 0; done < count;) {
        int64_t offset;
        int64_t piece = qn_array_piece(map, index, first + done, count - done, &offset);
        const char *from = qn_image_at(map, image, index, offset, piece * bytes);
        for (int64_t i = 0; !from && i < piece; i++) {
            const char *one = qn_image_at(map, image, index, offset + i * bytes, bytes);
            values[done + i] = one ? qn_dtype_get(dtype, one) : (double)NAN;
        }
        if (from)
            qn_dtype_decode(dtype, from, piece, values + done);
        done += piece;
    }
}

const struct quern_spec *quern_ref_spec(const struct quern_ref *ref)
{
    return &ref->map->spec;
}

void quern_ref_read(struct quern_ref *ref, int index, int64_t first, int64_t count, double *values)
{
    ref_check(ref, index, first, count, "reads");
    image_decode(ref->map, ref->before, index, first, count, values);
}

void quern_ref_actual(struct quern_ref *ref, int index, int64_t first, int64_t count,
                      double *values)
{
    ref_check(ref, index, first, count, "asks for");
    if (!ref->after)
        ref_fail(ref, QUERN_INTERNAL, "%s: its reference asks for outputs before the call",
                 ref->map->spec.family->name);
    image_decode(ref->map, ref->after, index, first, count, values);
}

void quern_ref_expect(struct quern_ref *ref, int index, int64_t first, int64_t count,
                      const double *values)
{
    quern_ref_expect_sums(ref, index, first, count, values, 0);
}

void quern_ref_expect_sums(struct quern_ref *ref, int index, int64_t first, int64_t count,
                           const double *values, double norm)
{
    ref_check(ref, index, first, count, "expects");
    ref->has_said_nothing |= !count;
    if (!count || ref->after)
        return;
    if (ref->row_count == ref->row_capacity) {
        int64_t capacity = ref->row_capacity ? 2 * ref->row_capacity : 256;
        struct row *rows = realloc(ref->rows, (size_t)capacity * sizeof(*rows));
        if (!rows)
            ref_fail(ref, QUERN_NO_MEMORY, "out of memory");
        ref->rows = rows;
        ref->row_capacity = capacity;
    }
    double *copy = arena_take(&ref->values, count);
    if (!copy)
        ref_fail(ref, QUERN_NO_MEMORY, "out of memory");
    memcpy(copy, values, (size_t)count * sizeof(*copy));
    ref->rows[ref->row_count++] = (struct row){ index, first, count, copy, norm * norm };
}

double *quern_ref_scratch(struct quern_ref *ref, int64_t count)
{
    bool is_sane = count >= 0 && count <= QUERN_SIZE_MAX;
    double *memory = is_sane ? arena_take(&ref->scratch, count) : NULL;
    if (!memory)
        ref_fail(ref, QUERN_NO_MEMORY, "out of memory: the reference asks for %lld doubles",
                 (long long)count);
    return memset(memory, 0, (size_t)count * sizeof(*memory));
}

/* ---- 1. Choosing units --------------------------------------------------------------------- */

/* Of an array's elements those that the call touches: of a pool only the slots in use. */
static int64_t touched_elements(const struct qn_regions *map, int index)
{
    int64_t bytes = 0, all = map->layouts[index].count;
    for (int64_t r = 0; r < map->touched[index].count; r++)
        bytes += map->touched[index].list[r].end - map->touched[index].list[r].begin;
    int64_t touched = all ? bytes / map->layouts[index].element_bytes : 0;
    return touched < all ? touched : all;
}

static int64_t output_elements(const struct qn_regions *map)
{
    int64_t count = 0;
    for (int i = 0; i < map->spec.family->array_count; i++) {
        bool is_output = map->shapes[i].role == QUERN_OUT || map->shapes[i].role == QUERN_INOUT;
        count += is_output ? touched_elements(map, i) : 0;
    }
    return count;
}

static int64_t units_within_budget(const struct qn_regions *map, int64_t units)
{
    const struct quern_family *family = map->spec.family;
    struct quern_cost cost = { 0, 0 };
    family->cost(&map->spec, &cost);
    double work = cost.flops > cost.bytes ? cost.flops : cost.bytes;
    double share =
        fmin(WORK_BUDGET / fmax(work, 1), ELEMENT_BUDGET / fmax((double)output_elements(map), 1));
    return share >= 1 ? units : (int64_t)((double)units * share);
}

static int unit_compare(const void *a, const void *b)
{
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

/* First, last, and both sides of the first and the last edge of each usual tile. */
static int64_t edge_units(int64_t units, int64_t *chosen)
{
    int64_t count = 0;
    chosen[count++] = 0;
    chosen[count++] = units - 1;
    for (int64_t tile = 8; tile <= 256 && tile < units; tile *= 2) {
        int64_t last = (units - 1) / tile * tile;
        chosen[count++] = tile - 1;
        chosen[count++] = tile;
        chosen[count++] = last - 1;
        chosen[count++] = last;
    }
    return count;
}

#define EDGE_UNITS 26

/* Sorted and distinct; *chosen is malloc'ed. */
static int units_choose(const struct qn_regions *map, uint64_t seed, int64_t units,
                        int64_t **chosen, int64_t *chosen_count, struct quern_message *why)
{
    int64_t budget = units_within_budget(map, units), count = 0, kept = 0;
    bool is_all = budget + EDGE_UNITS >= units;
    int64_t *list = malloc((size_t)((is_all ? units : budget) + EDGE_UNITS) * sizeof(*list));
    if (!list) {
        quern_refuse(why, "out of memory");
        return QUERN_NO_MEMORY;
    }
    for (; is_all && count < units; count++)
        list[count] = count;
    if (!is_all) {
        count = edge_units(units, list);
        for (int64_t i = count; i < budget; i++)
            list[count++] = (int64_t)(qn_mix(qn_mix(seed) + (uint64_t)i) % (uint64_t)units);
    }
    qsort(list, (size_t)count, sizeof(*list), unit_compare);
    for (int64_t i = 0; i < count; i++) {
        if (!kept || list[i] != list[kept - 1])
            list[kept++] = list[i];
    }
    *chosen = list;
    *chosen_count = kept;
    return QUERN_OK;
}

/* ---- 2. Evaluating them -------------------------------------------------------------------- */

static void unit_evaluate(struct quern_ref *ref, int64_t unit)
{
    if (!ref->status && !setjmp(ref->unwind))
        ref->map->spec.family->reference(ref, unit);
    arena_reset(ref->scratch);
}

/* Takes over what one thread found; returns a failure. */
static int rows_collect(struct qn_expectation *expectation, struct quern_ref *ref,
                        struct quern_message *why)
{
    int status = ref->status;
    if (status)
        *why = ref->why;
    expectation->has_said_nothing |= ref->has_said_nothing;
    int64_t total = expectation->row_count + ref->row_count;
    struct row *rows = realloc(expectation->rows, (size_t)(total ? total : 1) * sizeof(*rows));
    if (rows) {
        expectation->rows = rows;
        if (ref->row_count)
            memcpy(rows + expectation->row_count, ref->rows,
                   (size_t)ref->row_count * sizeof(*rows));
        expectation->row_count = total;
    } else if (!status) {
        quern_refuse(why, "out of memory");
        status = QUERN_NO_MEMORY;
    }
    struct block **tail = &ref->values;
    while (*tail)
        tail = &(*tail)->next;
    *tail = expectation->values;
    expectation->values = ref->values;
    arena_free(ref->scratch);
    free(ref->rows);
    return status;
}

static int units_evaluate(struct qn_expectation *expectation, const int64_t *units, int64_t count,
                          struct quern_message *why)
{
    int failure = QUERN_OK;
#pragma omp parallel
    {
        struct quern_ref ref = { .map = expectation->map, .before = expectation->before };
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++)
            unit_evaluate(&ref, units[i]);
#pragma omp critical
        {
            struct quern_message text;
            int status = rows_collect(expectation, &ref, &text);
            if (status && !failure) {
                failure = status;
                *why = text;
            }
        }
    }
    return failure;
}

/* The linear check's numbers of units [first, first + count), of the outputs if there is `after`. A
 * part has a quern_ref of its own. */
static int linear_part(const struct qn_expectation *expectation, const struct qn_image *after,
                       int64_t first, int64_t count, double *values, struct quern_message *why)
{
    const struct quern_family *family = expectation->map->spec.family;
    struct quern_ref ref = { .map = expectation->map,
                             .before = expectation->before,
                             .after = after };
    if (!setjmp(ref.unwind))
        (after ? family->linear_actual : family->linear_expect)(&ref, expectation->seed, first,
                                                                count, values);
    arena_free(ref.scratch);
    if (ref.status)
        *why = ref.why;
    return ref.status;
}

/* Those of all units. What the inputs give has much in common within a part: as few as threads. */
static int linear_all(const struct qn_expectation *expectation, const struct qn_image *after,
                      double *values, struct quern_message *why)
{
    const int64_t units = expectation->unit_count, threads = omp_get_max_threads();
    const int64_t part = after ? LINEAR_PART : (units + threads - 1) / threads;
    int failure = QUERN_OK;
#pragma omp parallel for schedule(dynamic)
    for (int64_t first = 0; first < units; first += part) {
        struct quern_message text;
        int64_t count = units - first < part ? units - first : part;
        int status = linear_part(expectation, after, first, count, values + first, &text);
        if (status) {
#pragma omp critical
            {
                failure = status;
                *why = text;
            }
        }
    }
    return failure;
}

/* 4 */
static int linear_fill(struct qn_expectation *expectation, struct quern_message *why)
{
    if (expectation->evaluated == expectation->unit_count ||
        !expectation->map->spec.family->linear_expect)
        return QUERN_OK;
    expectation->linear = malloc((size_t)expectation->unit_count * sizeof(double));
    if (expectation->linear)
        return linear_all(expectation, NULL, expectation->linear, why);
    quern_refuse(why, "out of memory");
    return QUERN_NO_MEMORY;
}

static int row_compare(const void *a, const void *b)
{
    const struct row *left = a, *right = b;
    if (left->array != right->array)
        return left->array - right->array;
    return (left->first > right->first) - (left->first < right->first);
}

static int expect_fill(struct qn_expectation *expectation, struct quern_message *why)
{
    const struct quern_family *family = expectation->map->spec.family;
    int64_t *units = NULL;
    if (!output_elements(expectation->map))
        return QUERN_OK; /* a product of 2^30 rows and no columns has as many units */
    expectation->unit_count = family->units(&expectation->map->spec);
    if (expectation->unit_count > 0) {
        QN_TRY(units_choose(expectation->map, expectation->seed, expectation->unit_count, &units,
                            &expectation->evaluated, why));
        int status = units_evaluate(expectation, units, expectation->evaluated, why);
        free(units);
        QN_TRY(status);
    }
    if (!expectation->row_count && expectation->unit_count > 0 && !expectation->has_said_nothing) {
        quern_refuse(why, "%s: its reference expects nothing of any output", family->name);
        return QUERN_INTERNAL;
    }
    qsort(expectation->rows, (size_t)expectation->row_count, sizeof(struct row), row_compare);
    for (int64_t r = 0; r < expectation->row_count; r++)
        expectation->compared[expectation->rows[r].array] += expectation->rows[r].count;
    return linear_fill(expectation, why);
}

int qn_expect_create(const struct qn_regions *map, const struct qn_image *before, uint64_t seed,
                     struct qn_expectation **out, struct quern_message *why)
{
    struct qn_expectation *expectation = calloc(1, sizeof(*expectation));
    if (!expectation) {
        quern_refuse(why, "out of memory");
        return QUERN_NO_MEMORY;
    }
    expectation->map = map;
    expectation->before = before;
    expectation->seed = seed;
    int status = expect_fill(expectation, why);
    if (status)
        qn_expect_destroy(expectation);
    else
        *out = expectation;
    return status;
}

void qn_expect_destroy(struct qn_expectation *expectation)
{
    if (!expectation)
        return;
    arena_free(expectation->values);
    free(expectation->linear);
    free(expectation->rows);
    free(expectation);
}

/* ---- The verdict --------------------------------------------------------------------------- */

/* Of one row. */
struct outcome {
    double error, norm; /* squared */
    int64_t bad;        /* element whose NaN, Inf or poison is wrong; -1: none */
};

static bool is_same_special(double wanted, double got)
{
    return isnan(wanted) ? isnan(got) : wanted == got;
}

/* An output that is no finite number is right where the reference is none either, or is so large
 * that the dtype may round it to one. */
static bool is_right_special(int dtype, double wanted, double got, double tol)
{
    if (!isfinite(wanted))
        return is_same_special(wanted, got);
    return is_same_special(qn_dtype_round(dtype, wanted * (1 + ROW_SLACK * tol)), got);
}

static void elements_judge(const struct row *row, int64_t first, int64_t count, const double *got,
                           int dtype, double tol, struct outcome *outcome)
{
    const double *wanted = row->values + first;
    for (int64_t i = 0; i < count; i++) {
        double difference = got[i] - wanted[i];
        if (__builtin_expect(isfinite(difference), 1)) {
            outcome->error += difference * difference;
            outcome->norm += wanted[i] * wanted[i];
        } else if (outcome->bad < 0 &&
                   (isfinite(got[i]) || !is_right_special(dtype, wanted[i], got[i], tol))) {
            outcome->bad = first + i;
        }
    }
}

static struct outcome row_judge(const struct qn_expectation *expectation,
                                const struct qn_image *after, const struct row *row, double tol)
{
    struct outcome outcome = { 0, 0, -1 };
    double got[COMPARE_BLOCK];
    for (int64_t first = 0; first < row->count; first += COMPARE_BLOCK) {
        int64_t count = row->count - first < COMPARE_BLOCK ? row->count - first : COMPARE_BLOCK;
        image_decode(expectation->map, after, row->array, row->first + first, count, got);
        elements_judge(row, first, count, got, expectation->map->shapes[row->array].dtype, tol,
                       &outcome);
    }
    return outcome;
}

/* 0 / 0 is no error; anything / 0 is. */
static double relative(double error, double norm)
{
    if (error == 0)
        return 0;
    return norm == 0 ? (double)INFINITY : sqrt(error / norm);
}

static double row_error(const struct row *row, const struct outcome *outcome)
{
    bool are_terms = isfinite(row->terms) && row->terms > outcome->norm;
    return relative(outcome->error, are_terms ? row->terms : outcome->norm);
}

static void refuse(struct quern_check *check, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void refuse(struct quern_check *check, const char *format, ...)
{
    if (!check->ok)
        return; /* the first reason stands */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(check->why, sizeof(check->why), format, arguments);
    va_end(arguments);
    check->ok = 0;
}

static bool is_poison(const struct qn_regions *map, const struct qn_image *after, int index,
                      int64_t element)
{
    int64_t offset, bytes = map->layouts[index].element_bytes;
    qn_array_piece(map, index, element, 1, &offset);
    const unsigned char *at = (const unsigned char *)qn_image_at(map, after, index, offset, bytes);
    bool is_first = true, is_second = true;
    for (int64_t i = 0; at && i < bytes; i++) {
        is_first &= at[i] == qn_poison_byte(map->shapes[index].dtype, 0);
        is_second &= at[i] == qn_poison_byte(map->shapes[index].dtype, 1);
    }
    return at && qn_is_poisoned(map, index) && (is_first || is_second);
}

/* "d: row 3, element 17: wanted 1.5, got 2", then what the caller adds. */
static void refuse_element(struct quern_check *check, const struct qn_expectation *expectation,
                           const struct qn_image *after, const struct row *row, int64_t element,
                           const char *detail)
{
    const struct qn_regions *map = expectation->map;
    const struct quern_shape *shape = &map->shapes[row->array];
    int64_t inner = shape->rank ? shape->dims[shape->rank - 1] : 1;
    int64_t at = row->first + element;
    double got;
    image_decode(map, after, row->array, at, 1, &got);
    refuse(check, "%s: row %lld, element %lld: wanted %.9g, got %.9g%s%s",
           map->spec.family->arrays[row->array].name, (long long)(at / inner),
           (long long)(at % inner), row->values[element], got, detail,
           is_poison(map, after, row->array, at) ? " (unwritten)" : "");
}

/* Element of the row that is furthest off. */
static int64_t worst_element(const struct qn_expectation *expectation, const struct qn_image *after,
                             const struct row *row)
{
    int64_t worst = 0;
    double largest = -1, got;
    for (int64_t i = 0; i < row->count; i++) {
        image_decode(expectation->map, after, row->array, row->first + i, 1, &got);
        double error = fabs(got - row->values[i]);
        if (error > largest) {
            largest = error;
            worst = i;
        }
    }
    return worst;
}

static void row_refuse(struct quern_check *check, const struct qn_expectation *expectation,
                       const struct qn_image *after, const struct row *row,
                       const struct outcome *outcome, double tol)
{
    double error = row_error(row, outcome);
    if (outcome->bad >= 0)
        refuse_element(check, expectation, after, row, outcome->bad, "");
    if (error <= ROW_SLACK * tol || !check->ok)
        return;
    char detail[64];
    snprintf(detail, sizeof(detail), "; the row's error is %.3g, at most %.3g is allowed", error,
             ROW_SLACK * tol);
    refuse_element(check, expectation, after, row, worst_element(expectation, after, row), detail);
}

static bool is_rounded(int dtype, double wanted, double got)
{
    return got == qn_dtype_round(dtype, wanted) ||
           got == qn_dtype_round(dtype, wanted * (1 + NEAR_TIE)) ||
           got == qn_dtype_round(dtype, wanted * (1 - NEAR_TIE));
}

/* Every element of the rows is its reference, rounded. Ends at the first that is not, so it costs
 * something only where few elements make the norms meaningless. */
static bool are_rounded(const struct qn_expectation *expectation, const struct qn_image *after,
                        int64_t begin, int64_t end)
{
    for (int64_t r = begin; r < end; r++) {
        const struct row *row = &expectation->rows[r];
        int dtype = expectation->map->shapes[row->array].dtype;
        for (int64_t i = 0; i < row->count; i++) {
            double got;
            image_decode(expectation->map, after, row->array, row->first + i, 1, &got);
            if (!is_rounded(dtype, row->values[i], got))
                return false;
        }
    }
    return true;
}

/* The rows [begin, end) are one array's. */
static void array_judge(const struct qn_expectation *expectation, const struct qn_image *after,
                        int64_t begin, int64_t end, struct outcome *outcomes,
                        struct quern_check *check)
{
    const struct quern_family *family = expectation->map->spec.family;
    const struct row *rows = expectation->rows;
    int index = rows[begin].array;
    double tol = family->tolerance(&expectation->map->spec, index), error = 0, norm = 0;
#pragma omp parallel for schedule(static)
    for (int64_t r = begin; r < end; r++)
        outcomes[r] = row_judge(expectation, after, &rows[r], tol);

    for (int64_t r = begin; r < end; r++) {
        error += outcomes[r].error;
        norm += outcomes[r].norm;
        check->row_err = fmax(check->row_err, row_error(&expectation->rows[r], &outcomes[r]));
        row_refuse(check, expectation, after, &rows[r], &outcomes[r], tol);
    }
    double rel_err = relative(error, norm);
    if (rel_err > tol && !are_rounded(expectation, after, begin, end))
        refuse(check, "%s: the error is %.3g of the norm, at most %.3g is allowed",
               family->arrays[index].name, rel_err, tol);
    /* What is reported is the output nearest to its bound, or furthest past it. */
    if (check->tol < 0 || (check->tol == 0 && check->rel_err == 0) ||
        rel_err * check->tol > check->rel_err * tol) {
        check->rel_err = rel_err;
        check->tol = tol;
    }
}

static double linear_error(const struct qn_expectation *expectation, const double *got)
{
    double error = 0, norm = 0;
    for (int64_t unit = 0; unit < expectation->unit_count; unit++) {
        double wanted = expectation->linear[unit], difference = got[unit] - wanted;
        if (!isfinite(wanted) && !isfinite(got[unit]))
            continue; /* an Inf or NaN of the inputs: the sampled rows are compared by position */
        error += difference * difference;
        norm += wanted * wanted;
    }
    return relative(error, norm);
}

static int linear_judge(const struct qn_expectation *expectation, const struct qn_image *after,
                        struct quern_check *check, struct quern_message *why)
{
    double *got = malloc((size_t)expectation->unit_count * sizeof(*got));
    if (!got) {
        quern_refuse(why, "out of memory");
        return QUERN_NO_MEMORY;
    }
    int status = linear_all(expectation, after, got, why);
    double error = status ? 0 : linear_error(expectation, got);
    free(got);
    if (!(error <= check->tol))
        refuse(check,
               "linear check of the whole output: its error is %.3g, at most %.3g is allowed",
               error, check->tol);
    return status;
}

/* Whether the sampled units' rows are their share of the array: then all units make it up. */
static bool is_tiled(const struct qn_expectation *expectation, int index)
{
    double share = (double)expectation->evaluated / (double)expectation->unit_count;
    double total = (double)touched_elements(expectation->map, index);
    return (double)expectation->compared[index] >= 0.999 * share * total;
}

/* The first poisoned element of a block; -1: none. */
static int64_t find_poison(const struct qn_regions *map, const struct qn_image *after, int index,
                           int64_t first, int64_t count)
{
    double got[COMPARE_BLOCK];
    int is_any = 0;
    image_decode(map, after, index, first, count, got);
    for (int64_t i = 0; i < count; i++)
        is_any |= got[i] != got[i]; /* poison is a NaN; without a branch, this vectorises */
    for (int64_t i = 0; is_any && i < count; i++) {
        if (isnan(got[i]) && is_poison(map, after, index, first + i))
            return first + i;
    }
    return -1;
}

/* Sampled: a part of the output that nothing wrote may lie between the sampled rows. */
static void poison_judge(const struct qn_expectation *expectation, const struct qn_image *after,
                         int index, struct quern_check *check)
{
    const struct qn_regions *map = expectation->map;
    const int64_t total = map->layouts[index].count;
    int64_t found = INT64_MAX;
#pragma omp parallel for schedule(static) reduction(min : found)
    for (int64_t first = 0; first < total; first += COMPARE_BLOCK) {
        int64_t count = total - first < COMPARE_BLOCK ? total - first : COMPARE_BLOCK;
        int64_t at = find_poison(map, after, index, first, count);
        found = at >= 0 && at < found ? at : found;
    }
    if (found < INT64_MAX)
        refuse(check, "%s: element %lld was not written", map->spec.family->arrays[index].name,
               (long long)found);
}

static int sampled_judge(const struct qn_expectation *expectation, const struct qn_image *after,
                         struct quern_check *check, struct quern_message *why)
{
    const struct qn_regions *map = expectation->map;
    for (int i = 0; i < map->spec.family->array_count; i++) {
        if (check->ok && qn_is_poisoned(map, i) && qn_dtype_is_float(map->shapes[i].dtype) &&
            !map->regions[map->region_of[i]].is_pool && is_tiled(expectation, i))
            poison_judge(expectation, after, i, check);
    }
    if (check->ok && expectation->linear)
        return linear_judge(expectation, after, check, why);
    return QUERN_OK;
}

int qn_expect_compare(const struct qn_expectation *expectation, const struct qn_image *after,
                      struct quern_check *check, struct quern_message *why)
{
    int64_t total = output_elements(expectation->map), compared = 0;
    struct outcome *outcomes = malloc((size_t)(expectation->row_count + 1) * sizeof(*outcomes));
    int status = QUERN_OK;
    if (!outcomes) {
        quern_refuse(why, "out of memory");
        return QUERN_NO_MEMORY;
    }
    *check = (struct quern_check){ .ok = 1, .tol = -1, .seed = expectation->seed };
    for (int64_t begin = 0, end; begin < expectation->row_count; begin = end) {
        for (end = begin; end < expectation->row_count &&
                          expectation->rows[end].array == expectation->rows[begin].array;)
            end++;
        array_judge(expectation, after, begin, end, outcomes, check);
        compared += expectation->compared[expectation->rows[begin].array];
    }
    free(outcomes);
    check->tol = fmax(check->tol, 0);
    check->covered = total ? (double)compared / (double)total : 1;
    if (expectation->evaluated < expectation->unit_count)
        status = sampled_judge(expectation, after, check, why);
    return status;
}
