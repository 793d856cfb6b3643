/* Logits that make choosing hard: multiples of 1/16, so that many are equal in every dtype; an
 * eighth of the experts is liked by most tokens and an eighth by hardly any. Every sixteenth token
 * has NaN, infinities and zeros of both signs among its logits. */
#include <math.h>
#include <string.h>

#include "moe_route.h"

/* Number i of a seed's sequence: splitmix64. */
static uint64_t draw(uint64_t seed, int64_t i)
{
    uint64_t x = seed + (uint64_t)(i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* In sixteenths, less than 256 of them: 8 bits of mantissa. */
static float logit(uint64_t seed, int64_t token, int64_t expert, int64_t experts)
{
    static const float odd[] = { NAN, -INFINITY, INFINITY, -0.0f, 0.0f, 1e30f, -1e30f, -NAN };
    const uint64_t liking = draw(~seed, expert) % 8, bits = draw(seed, token * experts + expert);
    const int base = liking == 0 ? 40 : liking == 1 ? -64 : 0;
    const int noise = (int)(bits % 49) + (int)(bits / 64 % 49) - 48;
    if (token % 16 == 5 && (bits >> 32) % 8 == 0)
        return odd[(bits >> 40) % 8];
    return (float)(base + noise) / 16;
}

/* What is drawn has a short mantissa; f16 has no 1e30 and takes infinity. */
static void put(int dtype, void *data, int64_t i, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (dtype == QUERN_F32)
        ((float *)data)[i] = value;
    else if (dtype == QUERN_BF16)
        ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    else if (magnitude > 0x7f800000)
        ((uint16_t *)data)[i] = (uint16_t)(sign | 0x7e00);
    else if (magnitude >= 0x47800000)
        ((uint16_t *)data)[i] = (uint16_t)(sign | 0x7c00);
    else
        ((uint16_t *)data)[i] = (uint16_t)(sign | (magnitude ? (magnitude - 0x38000000) >> 13 : 0));
}

int moe_route_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct moe_route route = moe_route_of(spec);
    if (index == MOE_ROUTE_LOGITS) {
#pragma omp parallel for
        for (int64_t token = 0; token < route.tokens; token++) {
            for (int64_t e = 0; e < route.experts; e++)
                put(route.dtype, data, token * route.experts + e,
                    logit(seed, token, e, route.experts));
        }
    }
    if (index == MOE_ROUTE_BIAS) {
        for (int64_t e = 0; e < route.experts; e++)
            ((float *)data)[e] = (float)(int)(draw(seed, e) % 17 - 8) / 32;
    }
    return index == MOE_ROUTE_LOGITS || index == MOE_ROUTE_BIAS;
}
