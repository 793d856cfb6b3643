/* The obvious reference of gemm, in float64, a row of d at a time; and the linear check. */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include <math.h>

#include "gemm.h"

#define FEW_COLUMNS 16

/* 1: b has a row for each of k (packed panels as well); 0: for each of n. */
static int is_kn(const struct values *v)
{
    return v->layout || v->packed;
}

/* Row i of batch entry `entry` of b. */
static void read_row(struct quern_ref *ref, int64_t entry, int64_t i, double *row)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t rows = v->layout ? v->k : v->n, columns = v->layout ? v->n : v->k;
    if (!v->packed) {
        quern_ref_read(ref, ARRAY_b, (entry * rows + i) * columns, columns, row);
        return;
    }
    int64_t width = gemm_packed_width(v->packed), panels = gemm_ceil_div(v->n, width);
    int64_t panel_size = gemm_round_up(v->k, GEMM_PACKED_K) * width;
    int unit_k = gemm_unit_k((int)v->b);
    double units[GEMM_MAX_PANEL * 2];
    for (int64_t panel = 0; panel < panels; panel++) {
        int64_t first = (entry * panels + panel) * panel_size + i / unit_k * unit_k * width;
        quern_ref_read(ref, ARRAY_b, first, width * unit_k, units);
        for (int64_t j = panel * width; j < v->n && j < (panel + 1) * width; j++)
            row[j] = units[gemm_panel_offset(i % unit_k, j % width, width, unit_k)];
    }
}

static double dot(const double *x, const double *y, int64_t count)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

/* out += x b^T for batch entry `entry`: x[k], out[n]. One row of b is in memory at a time. Returns
 * the sum of the squares of all terms; of few columns only: many do not cancel together. */
static double multiply(struct quern_ref *ref, int64_t entry, const double *x, double *out)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t rows = is_kn(v) ? v->k : v->n, columns = is_kn(v) ? v->n : v->k;
    double *row = quern_ref_scratch(ref, columns), squares = 0;
    for (int64_t i = 0; i < rows; i++) {
        read_row(ref, entry, i, row);
        for (int64_t j = 0; v->n < FEW_COLUMNS && j < columns; j++)
            squares += pow((is_kn(v) ? x[i] : x[j]) * row[j], 2);
        for (int64_t j = 0; is_kn(v) && j < columns; j++)
            out[j] += x[i] * row[j];
        if (!is_kn(v))
            out[i] += dot(x, row, columns);
    }
    return squares;
}

/* What d holds besides the product. */
static void begin_row(struct quern_ref *ref, int64_t unit, double *bias, double *out)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    if (v->accumulate)
        quern_ref_read(ref, ARRAY_d, unit * v->n, v->n, out);
    if (v->bias)
        quern_ref_read(ref, ARRAY_bias, 0, v->n, bias);
    for (int64_t j = 0; j < v->n; j++)
        out[j] = (v->accumulate ? out[j] : 0) + (v->bias ? bias[j] : 0);
}

void gemm_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *a = quern_ref_scratch(ref, v->k), *d = quern_ref_scratch(ref, v->n);
    begin_row(ref, unit, quern_ref_scratch(ref, v->n), d);
    quern_ref_read(ref, ARRAY_a, unit * v->k, v->k, a);
    double squares = dot(d, d, v->n);
    squares += multiply(ref, unit / v->m, a, d);
    quern_ref_expect_sums(ref, ARRAY_d, unit * v->n, v->n, d, sqrt(squares));
}

/* Buffers of the linear check's inputs: x[n], b^T x [k], a row of b or a or the bias, and what d
 * holds besides the product. */
struct probe {
    double *x, *bx, *row, *rest;
};

/* The same random signs for every row and every part. */
static double *draw_signs(struct quern_ref *ref, uint64_t seed, int64_t count)
{
    double *x = quern_ref_scratch(ref, count);
    for (int64_t j = 0; j < count; j++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x[j] = seed >> 63 ? 1 : -1;
    }
    return x;
}

static void probe_entry(struct quern_ref *ref, int64_t entry, const struct probe *probe)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    for (int64_t i = 0; i < (is_kn(v) ? v->k : v->n); i++) {
        read_row(ref, entry, i, probe->row);
        if (is_kn(v))
            probe->bx[i] = dot(probe->row, probe->x, v->n);
        for (int64_t p = 0; !is_kn(v) && p < v->k; p++)
            probe->bx[p] = (i ? probe->bx[p] : 0) + probe->row[p] * probe->x[i];
    }
}

void gemm_linear_expect(struct quern_ref *ref, uint64_t seed, int64_t first, int64_t count,
                        double *wanted)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t longest = v->n > v->k ? v->n : v->k, entry = -1;
    struct probe probe = { draw_signs(ref, seed, v->n), quern_ref_scratch(ref, v->k),
                           quern_ref_scratch(ref, longest), quern_ref_scratch(ref, v->n) };
    for (int64_t unit = first; unit < first + count; unit++) {
        if (unit / v->m != entry)
            probe_entry(ref, entry = unit / v->m, &probe);
        begin_row(ref, unit, probe.row, probe.rest);
        wanted[unit - first] = dot(probe.rest, probe.x, v->n);
        quern_ref_read(ref, ARRAY_a, unit * v->k, v->k, probe.row);
        wanted[unit - first] += dot(probe.row, probe.bx, v->k);
    }
}

void gemm_linear_actual(struct quern_ref *ref, uint64_t seed, int64_t first, int64_t count,
                        double *got)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *x = draw_signs(ref, seed, v->n), *row = quern_ref_scratch(ref, v->n);
    for (int64_t i = 0; i < count; i++) {
        quern_ref_actual(ref, ARRAY_d, (first + i) * v->n, v->n, row);
        got[i] = dot(row, x, v->n);
    }
}
