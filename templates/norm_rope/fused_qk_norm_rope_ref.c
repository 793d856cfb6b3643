/* The obvious reference of fused_qk_norm_rope, in float64 but for what the definition has in f32:
 * the turn of a pair, and its product with the position. A unit is a token. */
#define QUERN_DEF "norm_rope/fused_qk_norm_rope.def"
#include <quern/family_def.h>

#include <math.h>

#include "fused_qk_norm_rope.h"

static void normalise(struct quern_ref *ref, int weights, double *x, int64_t d, double eps)
{
    double *weight = quern_ref_scratch(ref, d), sum = 0;
    quern_ref_read(ref, weights, 0, d, weight);
    for (int64_t i = 0; i < d; i++)
        sum += x[i] * x[i];
    for (int64_t i = 0; i < d; i++)
        x[i] *= weight[i] / sqrt(sum / (double)d + eps);
}

static void rotate(const struct values *v, const struct norm_rope_scalars *scalars, double position,
                   double *x)
{
    for (int64_t i = 0; i < v->rotary_dim / 2; i++) {
        double turn = pow(scalars->base, -2.0 * (double)i / (double)v->rotary_dim);
        double ramp = norm_rope_ramp(scalars, i);
        turn = (float)(turn * (1 - ramp) + turn / scalars->factor * ramp);
        double angle = (float)((float)position * turn);
        double c = cos(angle) * scalars->attention_factor;
        double s = sin(angle) * scalars->attention_factor;
        double *a = &x[v->interleaved ? 2 * i : i];
        double *b = v->interleaved ? a + 1 : a + v->rotary_dim / 2;
        double left = *a, right = *b;
        *a = left * c - right * s;
        *b = right * c + left * s;
    }
}

void fused_qk_norm_rope_reference(struct quern_ref *ref, int64_t unit)
{
    const struct quern_spec *spec = quern_ref_spec(ref);
    const struct values *v = values_of(spec);
    const struct norm_rope_scalars scalars = norm_rope_scalars_of(spec);
    double *x = quern_ref_scratch(ref, v->d), position;
    quern_ref_read(ref, ARRAY_positions, unit, 1, &position);
    for (int64_t h = 0; h < v->hq + v->hk; h++) {
        const int64_t at = (unit * (v->hq + v->hk + v->hv) + h) * v->d;
        quern_ref_read(ref, ARRAY_qkv, at, v->d, x);
        normalise(ref, h < v->hq ? ARRAY_q_weight : ARRAY_k_weight, x, v->d, scalars.eps);
        rotate(v, &scalars, position, x);
        quern_ref_expect(ref, ARRAY_qkv, at, v->d, x);
    }
    if (v->hq + v->hk == 0)
        quern_ref_expect(ref, ARRAY_qkv, 0, 0, x);
}
