/* Numbers of every dtype as float64, and back: for references, checks and drawn inputs. Host memory
 * only. Every value of every float dtype is a float64, so decoding is exact. */
#ifndef QN_DTYPE_H
#define QN_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

#include <quern.h>

bool qn_dtype_is_float(int dtype);

/* `count` dense elements at `from` as float64. An i64 beyond 2^53 is rounded. */
void qn_dtype_decode(int dtype, const void *from, int64_t count, double *values);

/* Round to nearest, ties to even, once: never by way of f32. Overflow gives Inf; in e4m3, which has
 * none, NaN, as Inf does. Integers saturate, and NaN gives 0. */
void qn_dtype_encode(int dtype, const double *values, int64_t count, void *to);

/* One element; a dtype outside the list gives NaN. */
double qn_dtype_get(int dtype, const void *from);
/* `value` as it reads after a round trip through dtype. */
double qn_dtype_round(int dtype, double value);

#endif
