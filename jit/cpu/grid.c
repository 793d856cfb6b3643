/* Running a grid: entry(args, x, y, z) once for every block, x fastest.
 *
 *     index    0        1       ...   gx-1       gx      ...   gx*gy*gz-1
 *     block  (0,0,0) (1,0,0)       (gx-1,0,0) (0,1,0)        (gx-1,gy-1,gz-1)
 *
 *     PARALLEL  threads take the next index as they become free (blocks differ in work: causal
 *               rows, ragged tiles), so the order is whatever it comes to
 *     FORWARD   one thread, 0 up;  REVERSE: one thread, down to 0
 *
 * Waking a team costs microseconds, more than a small block does, so one block, one thread, or a
 * call from inside someone's parallel region runs in the calling thread. The team is no larger than
 * the grid. libgomp keeps one team for each thread that calls: a host that launches from eight
 * threads at once has eight teams on the same cores and should open its devices with fewer threads.
 * A team does not live on in a forked child, and libgomp would wait for it for ever: the thread
 * that forked runs its grids alone there.
 *
 * Writes of all blocks are visible to the caller on return (the region ends in a barrier). */
#include <omp.h>
#include <unistd.h>

#include "jit/cpu/cpu.h"

struct grid {
    qn_cpu_entry *entry;
    const void *args;
    uint32_t x_count, y_count;
    int64_t blocks;
};

static void run_block(const struct grid *grid, int64_t index)
{
    uint64_t row = (uint64_t)index / grid->x_count;
    uint32_t x = (uint32_t)((uint64_t)index - row * grid->x_count);

    grid->entry(grid->args, x, (uint32_t)(row % grid->y_count), (uint32_t)(row / grid->y_count));
}

/* The process in which the calling thread has a team; 0: nowhere. libgomp keeps the team itself in
 * a thread-local, which a fork copies with this one. */
static _Thread_local pid_t team_process;

static int is_team_lost(void)
{
    return team_process && team_process != getpid();
}

static void run_parallel(const struct grid *grid, int threads)
{
    int team = grid->blocks < threads ? (int)grid->blocks : threads;

    team_process = getpid();
#pragma omp parallel for schedule(dynamic) num_threads(team)
    for (int64_t i = 0; i < grid->blocks; i++)
        run_block(grid, i);
}

static void run_serial(const struct grid *grid, int is_reverse)
{
    for (int64_t i = 0; i < grid->blocks; i++)
        run_block(grid, is_reverse ? grid->blocks - 1 - i : i);
}

int qn_grid_default_threads(void)
{
    int threads = omp_get_max_threads();
    return threads < QN_MOST_THREADS ? threads : QN_MOST_THREADS;
}

int qn_grid_run(qn_cpu_entry *entry, const struct quern_step_launch *step, int threads,
                enum qn_grid_order order, struct quern_message *why)
{
    const uint32_t *count = step->grid;
    struct grid grid = { entry, step->args, count[0], count[1], 0 };

    if (!count[0] || !count[1] || !count[2])
        return 0;
    if (__builtin_mul_overflow((uint64_t)count[0] * count[1], count[2], &grid.blocks))
        return quern_refuse(why, "grid=%ux%ux%u: must have fewer than 2^63 blocks", count[0],
                            count[1], count[2]);
    if (order != QN_GRID_PARALLEL || grid.blocks == 1 || threads == 1 || omp_in_parallel() ||
        is_team_lost())
        run_serial(&grid, order == QN_GRID_REVERSE);
    else
        run_parallel(&grid, threads);
    return 0;
}
