/* The obvious reference of gemm, in float64, a row of d at a time; and the linear check. */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include <math.h>

#include "gemm.h"

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

/* out += x b^T for batch entry `entry`: x[k], out[n]. One row of b is in memory at a time. */
static void multiply(struct quern_ref *ref, int64_t entry, const double *x, double *out)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t rows = is_kn(v) ? v->k : v->n, columns = is_kn(v) ? v->n : v->k;
    double *row = quern_ref_scratch(ref, columns);
    for (int64_t i = 0; i < rows; i++) {
        read_row(ref, entry, i, row);
        for (int64_t j = 0; j < columns; j++) {
            if (is_kn(v))
                out[j] += x[i] * row[j];
            else
                out[i] += x[j] * row[j];
        }
    }
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
    multiply(ref, unit / v->m, a, d);
    quern_ref_expect(ref, ARRAY_d, unit * v->n, v->n, d);
}

/* Buffers of the linear check: x[n] of random signs, b^T x [k], a row of d, bias or a, and
 * one of what d holds besides the product. */
struct probe {
    double *x, *bx, *row, *rest;
};

static double dot(const double *x, const double *y, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * y[i];
    return sum;
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

double gemm_linear_check(struct quern_ref *ref, uint64_t seed)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t longest = v->n > v->k ? v->n : v->k;
    struct probe probe = { quern_ref_scratch(ref, v->n), quern_ref_scratch(ref, v->k),
                           quern_ref_scratch(ref, longest), quern_ref_scratch(ref, v->n) };
    double error = 0, norm = 0;
    for (int64_t j = 0; j < v->n; j++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        probe.x[j] = seed >> 63 ? 1 : -1;
    }
    for (int64_t unit = 0; unit < v->batch * v->m; unit++) {
        if (unit % v->m == 0)
            probe_entry(ref, unit / v->m, &probe);
        begin_row(ref, unit, probe.row, probe.rest);
        double expected = dot(probe.rest, probe.x, v->n);
        quern_ref_read(ref, ARRAY_a, unit * v->k, v->k, probe.row);
        expected += dot(probe.row, probe.bx, v->k);
        quern_ref_actual(ref, ARRAY_d, unit * v->n, v->n, probe.row);
        double actual = dot(probe.row, probe.x, v->n);
        if (!isfinite(expected) && !isfinite(actual))
            continue; /* an Inf or NaN of the inputs: the sampled rows are compared by position */
        error += (actual - expected) * (actual - expected);
        norm += expected * expected;
    }
    return error ? sqrt(error / norm) : 0;
}
