/* A progress bar on stderr, when that is a terminal; else nothing. */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include <quern/tune.h>

struct progress {
    int is_shown;
    double drawn_s;  /* when the bar was last drawn, in the tuner's seconds */
    double budget_s; /* when the search ends at the latest; 0: it ends with the last candidate */
};

void progress_init(struct progress *progress, int is_quiet, double budget_s);
/* Draw the state of a search; at most ten times a second, and at its end. */
void progress_update(struct progress *progress, const struct quern_tune_progress *state);
/* Take the bar off the line, so that something else can be written. Any thread may. */
void progress_clear(const struct progress *progress);

#endif
