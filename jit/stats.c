/* Median, spread and the tie rule.
 *
 * Times have outliers on one side (another process, an interrupt, a clock change), so mean and
 * variance say little: the median says how long it takes, the median absolute deviation how sure
 * that is. Two candidates whose medians differ by less than that are not ordered by measuring; if
 * each tuning picked whichever happened to be ahead, machines with equal hardware would serve
 * different kernels. A tie therefore goes by what does not depend on the measurement.
 */
#include "jit/stats.h"

#include <math.h>
#include <stdlib.h>

#define LEAST_NOISE 0.01

static int double_compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median_of_sorted(const double *sorted, int64_t count)
{
    return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

/* The k-th smallest distance from `center`, without a second array: walk outwards from where
 * `center` stands in the sorted samples. An even count averages the middle two. */
static double deviation_of_sorted(const double *sorted, int64_t count, double center)
{
    int64_t left = count, right, needed = count / 2 + 1;
    double last = 0, previous = 0;
    while (left > 0 && sorted[left - 1] > center)
        left--;
    right = left; /* the first above center */
    while (needed--) {
        double below = left > 0 ? center - sorted[left - 1] : INFINITY;
        double above = right < count ? sorted[right] - center : INFINITY;
        previous = last;
        last = fmin(below, above);
        if (below <= above)
            left--;
        else
            right++;
    }
    return count % 2 ? last : (previous + last) / 2;
}

struct qn_stat qn_stat_of(double *samples, int64_t count)
{
    struct qn_stat stat = { 0, 0, count };
    if (count <= 0)
        return (struct qn_stat){ 0, 0, 0 };
    qsort(samples, (size_t)count, sizeof(*samples), double_compare);
    stat.median = median_of_sorted(samples, count);
    stat.spread = deviation_of_sorted(samples, count, stat.median);
    return stat;
}

bool qn_stat_is_tied(const struct qn_stat *a, const struct qn_stat *b)
{
    double noise = fmax(a->spread + b->spread, LEAST_NOISE * fmin(a->median, b->median));
    return fabs(a->median - b->median) < noise || a->median == b->median;
}

/* Of two that are tied. */
static bool is_preferred(const struct qn_contender *a, const struct qn_contender *b)
{
    if (a->is_default != b->is_default)
        return a->is_default;
    if (a->registers != b->registers)
        return a->registers < b->registers;
    if (a->shared_bytes != b->shared_bytes)
        return a->shared_bytes < b->shared_bytes;
    return a->order < b->order;
}

int qn_contender_pick(const struct qn_contender *contenders, int count)
{
    int fastest = count > 0 ? 0 : -1, best;
    for (int i = 1; i < count; i++) {
        double time = contenders[i].stat.median, least = contenders[fastest].stat.median;
        if (time < least || (time == least && contenders[i].order < contenders[fastest].order))
            fastest = i;
    }
    best = fastest;
    for (int i = 0; i < count; i++) {
        if (qn_stat_is_tied(&contenders[i].stat, &contenders[fastest].stat) &&
            is_preferred(&contenders[i], &contenders[best]))
            best = i;
    }
    return best;
}
