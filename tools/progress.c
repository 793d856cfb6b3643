/* A progress bar on a terminal:
 *
 *     [#########...........]  14/30, 2 failed, best 1.21 ms, 3.4/s, 5 s left
 *
 * It is one line, redrawn in place and cut to the terminal's width, so that it never scrolls.
 */
#include "progress.h"

#include "human.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BAR_CELLS 20
#define REDRAW_S 0.1
#define CLEAR_LINE "\r\033[K"

void progress_init(struct progress *progress, int is_quiet, double budget_s)
{
    const char *term = getenv("TERM");
    int is_capable = term && *term && strcmp(term, "dumb");
    progress->is_shown = !is_quiet && is_capable && isatty(STDERR_FILENO);
    progress->drawn_s = -REDRAW_S;
    progress->budget_s = budget_s;
}

static int terminal_columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || size.ws_col < 20)
        return 80;
    return size.ws_col;
}

/* "5 s": until the last candidate, or until the budget ends if that comes first. */
static void describe_rest(const struct progress *progress, const struct quern_tune_progress *state,
                          double rate, char text[HUMAN_BYTES])
{
    double left_s = rate > 0 ? (state->total - state->done) / rate : progress->budget_s;
    double budget_left_s = progress->budget_s - state->seconds;

    if (progress->budget_s > 0 && budget_left_s < left_s)
        left_s = budget_left_s > 0 ? budget_left_s : 0;
    if (left_s > 0 || rate > 0)
        snprintf(text, HUMAN_BYTES, "%.0f s", left_s);
    else
        snprintf(text, HUMAN_BYTES, "? s");
}

static void describe(const struct progress *progress, const struct quern_tune_progress *state,
                     char *text, size_t size)
{
    char bar[BAR_CELLS + 1], best[HUMAN_BYTES] = "none yet", left[HUMAN_BYTES];
    double share = state->total > 0 ? (double)state->done / state->total : 0;
    size_t filled = share < 1 ? (size_t)(BAR_CELLS * share) : BAR_CELLS;
    double rate = state->seconds > 0 ? state->done / state->seconds : 0;

    memset(bar, '.', BAR_CELLS);
    memset(bar, '#', filled);
    bar[BAR_CELLS] = 0;
    if (state->best_us > 0)
        human_time(state->best_us, best);
    describe_rest(progress, state, rate, left);
    snprintf(text, size, "[%s]  %d/%d, %d failed, best %s, %.1f/s, %s left", bar, state->done,
             state->total, state->failed, best, rate, left);
}

void progress_update(struct progress *progress, const struct quern_tune_progress *state)
{
    char text[256];
    int is_last = state->done >= state->total;

    if (!progress->is_shown || (!is_last && state->seconds - progress->drawn_s < REDRAW_S))
        return;
    progress->drawn_s = state->seconds;
    describe(progress, state, text, sizeof(text));
    fprintf(stderr, CLEAR_LINE "%.*s", terminal_columns() - 1, text);
    fflush(stderr);
}

void progress_clear(const struct progress *progress)
{
    if (progress->is_shown)
        fputs(CLEAR_LINE, stderr);
}
