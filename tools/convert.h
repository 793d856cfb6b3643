/* Number formats of array files: exact decoding to double, encoding with one rounding. */
#ifndef TOOLS_CONVERT_H
#define TOOLS_CONVERT_H

#include <stddef.h>
#include <stdint.h>

/* Non-zero for f32, bf16, f16, f64, e4m3 and e5m2. */
int convert_is_float(int dtype);

/* The value of the float at `bits`, which need not be aligned. Exact. */
double convert_decode(int dtype, const void *bits);

/* Store value as a float dtype, rounded to nearest, ties to even. What overflows becomes Inf, or
 * NaN in e4m3, which has no Inf; NaN stays NaN and every sign is kept. */
void convert_encode(int dtype, double value, void *bits);

/* `count` elements to a dense array, from one whose elements lie `stride` elements apart. Equal
 * dtypes are copied bit for bit; otherwise both must be floats. Neither side need be aligned. */
void convert_copy(int to_dtype, void *to, int from_dtype, const void *from, int64_t stride,
                  int64_t count);

#endif
