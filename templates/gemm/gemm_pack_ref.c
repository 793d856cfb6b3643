/* The obvious reference of gemm_pack, a panel at a time. */
#define QUERN_DEF "gemm/gemm_pack.def"
#include <quern/family_def.h>

#include "gemm.h"

void gemm_pack_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t width = gemm_panel_width(v->panel);
    int64_t panels = gemm_ceil_div(v->n, width), entry = unit / panels;
    int64_t first = unit % panels * width;
    int64_t columns = v->n - first < width ? v->n - first : width;
    int64_t size = gemm_round_up(v->k, GEMM_PACKED_K) * width;
    int64_t lines = v->layout ? v->k : columns, length = v->layout ? columns : v->k;
    double *line = quern_ref_scratch(ref, length), *panel = quern_ref_scratch(ref, size);
    for (int64_t i = 0; i < lines; i++) {
        int64_t at =
            v->layout ? (entry * v->k + i) * v->n + first : (entry * v->n + first + i) * v->k;
        quern_ref_read(ref, ARRAY_b, at, length, line);
        for (int64_t j = 0; j < length; j++) {
            int64_t p = v->layout ? i : j, column = v->layout ? j : i;
            panel[gemm_panel_offset(p, column, width, gemm_unit_k((int)v->b))] = line[j];
        }
    }
    quern_ref_expect(ref, ARRAY_packed, unit * size, size, panel);
}
