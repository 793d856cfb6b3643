/* What the library draws with: inputs, and samples of units. */
#ifndef QN_MIX_H
#define QN_MIX_H

#include <stdint.h>

/* splitmix64's finaliser: every bit of x reaches every bit of the result. */
static inline uint64_t qn_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

#endif
