/* Inputs of kda_gate_cumsum: sequences of every length, 0 and 1 among them; gates from weak to
 * strong, so that sums have any magnitude. */
#define QUERN_DEF "kda/kda_gate_cumsum.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "kda_gate_cumsum.h"
#include "kda_kinds.h"

static uint64_t draw(uint64_t seed, int64_t i)
{
    uint64_t x = seed + (uint64_t)(i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* In [0, 1), in steps of 2^-7, which every dtype has exactly. */
static double unit_of(uint64_t bits)
{
    return (double)(bits >> 57) * 0x1p-7;
}

/* A quarter of the sequences have no token, a quarter one; the last has what is left. */
static void draw_cu_seqlens(const struct values *v, uint64_t seed, void *data)
{
    int64_t begin = 0;
    for (int64_t s = 0; s <= v->n; s++) {
        if (v->index == QUERN_I64)
            ((int64_t *)data)[s] = begin;
        else
            ((int32_t *)data)[s] = (int32_t)begin;
        int64_t rest = v->t - begin, most = s < v->n ? 4 * rest / (v->n - s) : 0;
        uint64_t bits = draw(seed, s);
        int64_t length = bits % 4 == 0   ? 0
                         : bits % 4 == 1 ? 1
                                         : (int64_t)((bits >> 8) % (uint64_t)(most + 1));
        begin += s + 1 >= v->n || length > rest ? rest : length;
    }
}

/* A value that is a multiple of 2^-7 with few bits, in the dtype: no rounding. */
static void put(int dtype, void *data, int64_t i, double value)
{
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof(bits));
    if (dtype == QUERN_F32)
        ((float *)data)[i] = single;
    else if (dtype == QUERN_BF16)
        ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    else
        ((uint16_t *)data)[i] =
            (uint16_t)(single == 0
                           ? 0
                           : (bits >> 16 & 0x8000) | ((bits & 0x7fffffff) - 0x38000000) >> 13);
}

/* For a gate from -8 to 8; without one a decay: weak, up to -2, up to -16, now and then -1000. */
static void draw_g(const struct values *v, uint64_t seed, void *data)
{
    static const double strengths[] = { 0x1p-6, 0x1p-6, 2, 16 };
    int64_t count = v->t * v->hv * (v->decay == KDA_DECAY_SCALAR ? 1 : v->k);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = draw(seed, i);
        double unit = unit_of(bits), decay = -unit * strengths[bits % 4];
        if (!v->gate)
            put((int)v->g, data, i, bits % 1024 == 3 ? -1000 : decay);
        else
            put((int)v->g, data, i, 16 * unit - 8);
    }
}

int kda_gate_cumsum_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    seed = draw(seed, -2 - index);
    if (index == ARRAY_cu_seqlens) {
        draw_cu_seqlens(v, seed, data);
    } else if (index == ARRAY_g) {
        draw_g(v, seed, data);
    } else if (index == ARRAY_A_log) {
        /* Rates from 0.05 to 16; the first at most 1, so that no row consists of gates so strong
         * that their argument's rounding is all there is of them. */
        for (int64_t i = 0; i < v->hv; i++)
            ((float *)data)[i] = (float)((i ? 5.75 : 3) * unit_of(draw(seed, i)) - 3);
    } else {
        return 0;
    }
    return 1;
}
