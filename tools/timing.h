/* What a search's times say of the machine that they were taken on. */
#ifndef TOOLS_TIMING_H
#define TOOLS_TIMING_H

/* Half of the samples are further from their median than half of it, or one config is more times
 * the other's speed than configs differ: threads were waited for. Such a speed-up is doubtful. */
static inline int timing_is_disturbed(double time_us, double spread_us, double heuristic_us,
                                      double heuristic_spread_us)
{
    enum { MOST_TIMES = 20 };
    return spread_us > time_us / 2 || heuristic_spread_us > heuristic_us / 2 ||
           heuristic_us > MOST_TIMES * time_us;
}

#endif
