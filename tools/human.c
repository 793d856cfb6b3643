/* Numbers as people like to read them: three digits and a unit. */
#include "human.h"

#include <stdio.h>
#include <time.h>

/* value in the largest unit that leaves it at least 1, each `step` times the one before. */
static void scale(double value, double step, const char *const *units, int unit_count, char *text)
{
    int unit = 0;
    while (unit + 1 < unit_count && value >= step) {
        value /= step;
        unit++;
    }
    int decimals = value < 10 ? 2 : value < 100 ? 1 : 0;
    snprintf(text, HUMAN_BYTES, "%.*f %s", decimals, value, units[unit]);
}

void human_time(double us, char text[HUMAN_BYTES])
{
    static const char *const units[] = { "ns", "us", "ms", "s" };
    scale(us * 1e3, 1e3, units, 4, text);
}

void human_size(int64_t bytes, char text[HUMAN_BYTES])
{
    static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
    if (bytes < 1024)
        snprintf(text, HUMAN_BYTES, "%lld bytes", (long long)bytes);
    else
        scale((double)bytes, 1024, units, 5, text);
}

void human_date(int64_t unix_seconds, char text[HUMAN_BYTES])
{
    time_t seconds = (time_t)unix_seconds;
    struct tm date;
    if (!unix_seconds || !localtime_r(&seconds, &date) ||
        !strftime(text, HUMAN_BYTES, "%Y-%m-%d %H:%M", &date))
        snprintf(text, HUMAN_BYTES, "-");
}
