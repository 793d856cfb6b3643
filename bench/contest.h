/* Several implementations of one product, timed side by side.
 *
 *     workload     d[m,n] = a[m,k] b[n,k]^T on random data; `sets` copies of b (each with values of
 *                  its own), so that a call finds its weights outside the caches
 *     contestant   one implementation: call(self, set) computes with b[set] into its own d
 *
 *   1. check: every contestant computes the first and the last set into a poisoned d, compared with
 *      float64 sums at random places, and all of d with the first contestant's;
 *   2. time, in rounds: each contestant in turn settles, makes one call that is not timed (if calls
 *      are short), then a few timed ones, one set after another; the round's value is their median.
 *      Every other round goes backwards. Rounds during which other processes had more than QUIET of
 *      the machine are dropped if enough others remain, and waited out for a while if not;
 *   3. report: median and MAD over rounds, and the median of the ratios taken round by round.
 *
 * A contestant that fails, or computes something wrong, is left out with a line that says so.
 */
#ifndef BENCH_CONTEST_H
#define BENCH_CONTEST_H

#include "bench/figures.h"

enum { MAX_SETS = 64, MAX_CONTESTANTS = 10, CHECKED_PLACES = 4000, ENOUGH_ROUNDS = 5 };

struct workload {
    char label[48];
    int64_t m, n, k;
    int is_bf16, sets, threads;
    void *a, *b[MAX_SETS];
};

struct contestant {
    char name[96], key[16]; /* key: "tuned", "openblas", "onednn", "stream", ... */
    int (*call)(struct contestant *self, int set);
    void *state;
    const struct workload *work;
    void *d;
    int d_is_bf16;
    int is_reader; /* computes no product: only reads b[set] */
    double rel_err, call_s;
    int next_set, is_out;
    double round_s[MAX_SAMPLES];
};

struct contest {
    struct results *results;
    struct workload work;
    struct contestant entries[MAX_CONTESTANTS];
    int count, rounds, dropped;
    double others[MAX_SAMPLES]; /* share of the machine that other processes had in a round */
};

static int64_t weight_bytes(const struct workload *work)
{
    return work->n * work->k * (int64_t)element_bytes(work->is_bf16);
}

static double flops_of(const struct workload *work)
{
    return 2.0 * (double)work->m * (double)work->n * (double)work->k;
}

/* Copies of b so that at least `between` bytes are read before one is used again, as far as a
 * quarter of the memory goes. */
static void workload_fill(struct workload *work, int64_t between)
{
    int64_t bytes = weight_bytes(work), free_bytes;
    free_bytes = proc_kilobytes("/proc/meminfo", "MemAvailable") * 1024;
    work->sets = 1 + (int)((between + bytes - 1) / bytes);
    while (work->sets > 1 && (work->sets > MAX_SETS || work->sets * bytes > free_bytes / 4))
        work->sets--;
    work->a = big_alloc((size_t)(work->m * work->k) * element_bytes(work->is_bf16));
    fill_random(work->a, work->m * work->k, work->is_bf16, 11);
#pragma omp parallel for num_threads(work->threads)
    for (int set = 0; set < work->sets; set++) {
        work->b[set] = big_alloc((size_t)bytes + (64 << 10)); /* the reader prefetches past it */
        fill_random(work->b[set], work->n * work->k, work->is_bf16, 100 + (uint64_t)set);
    }
}

/* An entry with a d of its own, or NULL when there are too many. */
static struct contestant *contest_add(struct contest *contest, const char *key, int d_is_bf16)
{
    struct contestant *entry = &contest->entries[contest->count];
    if (contest->count == MAX_CONTESTANTS)
        return NULL;
    contest->count++;
    memset(entry, 0, sizeof *entry);
    snprintf(entry->key, sizeof entry->key, "%s", key);
    snprintf(entry->name, sizeof entry->name, "%s", key);
    entry->work = &contest->work;
    entry->d_is_bf16 = d_is_bf16;
    entry->rel_err = -1;
    entry->d = big_alloc((size_t)(contest->work.m * contest->work.n) * element_bytes(d_is_bf16));
    return entry;
}

static void contest_drop(struct contest *contest, struct contestant *entry, const char *why)
{
    entry->is_out = 1;
    fprintf(talk, "    %s is left out: %s\n", entry->name, why);
    add_fact(contest->results, "left out", "%s: %s: %s", contest->work.label, entry->name, why);
}

/* ---- 1. Check ------------------------------------------------------------------------------ */

/* ||d - reference|| / ||reference|| over random places, in float64. NaN where d has one. */
static double sampled_error(const struct contestant *entry, int set)
{
    const struct workload *w = entry->work;
    double wrong = 0, norm = 0;
    uint64_t seed = 7;
    for (int place = 0; place < CHECKED_PLACES; place++) {
        int64_t i = (int64_t)(random_bits(&seed) % (uint64_t)w->m);
        int64_t j = (int64_t)(random_bits(&seed) % (uint64_t)w->n);
        double sum = 0, got = load_element(entry->d, i * w->n + j, entry->d_is_bf16);
        for (int64_t p = 0; p < w->k; p++)
            sum += (double)load_element(w->a, i * w->k + p, w->is_bf16) *
                   (double)load_element(w->b[set], j * w->k + p, w->is_bf16);
        wrong += (got - sum) * (got - sum);
        norm += sum * sum;
    }
    return sqrt(wrong / norm);
}

static double difference(const struct contestant *left, const struct contestant *right)
{
    int64_t count = left->work->m * left->work->n;
    double wrong = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double a = load_element(left->d, i, left->d_is_bf16);
        double b = load_element(right->d, i, right->d_is_bf16);
        wrong += (a - b) * (a - b);
        norm += b * b;
    }
    return sqrt(wrong / norm);
}

static double tolerance_of(const struct contestant *entry)
{
    double f32 = 5e-8 * sqrt((double)entry->work->k);
    return entry->d_is_bf16 ? 2.5e-3 : f32 > 1e-6 ? f32 : 1e-6;
}

/* One set by everyone that is still in; `first` is whom all of d is compared with. */
static void check_set(struct contest *contest, int set)
{
    const struct contestant *first = NULL;
    char why[96];
    for (int i = 0; i < contest->count; i++) {
        struct contestant *entry = &contest->entries[i];
        const struct workload *w = entry->work;
        double error, limit = tolerance_of(entry);
        if (entry->is_out || entry->is_reader)
            continue;
        memset(entry->d, 0xff, (size_t)(w->m * w->n) * element_bytes(entry->d_is_bf16)); /* NaN */
        if (entry->call(entry, set)) {
            contest_drop(contest, entry, "its call failed");
            continue;
        }
        error = sampled_error(entry, set);
        if (first && difference(entry, first) > 2 * limit)
            error = difference(entry, first);
        if (!(error <= 2 * limit)) {
            snprintf(why, sizeof why, "WRONG, relative error %.2e, allowed %.2e", error, limit);
            contest_drop(contest, entry, why);
            continue;
        }
        entry->rel_err = error > entry->rel_err ? error : entry->rel_err;
        first = first ? first : entry;
    }
}

/* ---- 2. Time ------------------------------------------------------------------------------- */

static double timed_call(struct contestant *entry)
{
    double begin = call_clock_s(entry->work->threads), seconds;
    entry->is_out |= entry->call(entry, entry->next_set) != 0;
    seconds = call_clock_s(entry->work->threads) - begin;
    entry->next_set = (entry->next_set + 1) % entry->work->sets;
    return seconds;
}

/* Median of a few calls, one set after another. */
static double timed_turn(struct contestant *entry)
{
    double calls[16];
    int count = entry->call_s > 0 ? (int)(0.04 / entry->call_s) : 1;
    count = count < 1 ? 1 : count > 16 ? 16 : count;
    settle();
    if (entry->call_s < 0.02)
        timed_call(entry);
    for (int i = 0; i < count; i++)
        calls[i] = timed_call(entry);
    return median_of(calls, count);
}

/* One round; the share of the machine that others had is in contest->others. */
static void time_round(struct contest *contest, int round)
{
    struct noise noise = noise_now();
    for (int i = 0; i < contest->count; i++) {
        int turn = round % 2 ? contest->count - 1 - i : i;
        struct contestant *entry = &contest->entries[turn];
        if (!entry->is_out)
            entry->round_s[round] = timed_turn(entry);
    }
    contest->others[round] = noise_since(noise);
}

/* Move the quiet rounds to the front and forget the rest. */
static void drop_busy_rounds(struct contest *contest)
{
    int kept = 0;
    for (int round = 0; round < contest->rounds; round++) {
        if (contest->others[round] > QUIET)
            continue;
        for (int i = 0; i < contest->count; i++)
            contest->entries[i].round_s[kept] = contest->entries[i].round_s[round];
        contest->others[kept++] = contest->others[round];
    }
    contest->dropped = contest->rounds - kept;
    contest->rounds = kept;
}

static void time_rounds(struct contest *contest, double seconds, int most)
{
    int quiet = 0;
    for (int i = 0; i < contest->count; i++)
        if (!contest->entries[i].is_out) {
            timed_call(&contest->entries[i]);
            contest->entries[i].call_s = timed_call(&contest->entries[i]);
        }
    for (double begin = now_s(); contest->rounds < most; contest->rounds++) {
        double elapsed = now_s() - begin;
        if (elapsed > 2 * seconds && contest->rounds >= 3)
            break;
        if (elapsed > seconds && quiet >= ENOUGH_ROUNDS)
            break;
        time_round(contest, contest->rounds);
        if (contest->work.threads == 1)
            contest->others[contest->rounds] = 0; /* its own time is counted */
        quiet += contest->others[contest->rounds] <= QUIET;
    }
    if (quiet >= ENOUGH_ROUNDS)
        drop_busy_rounds(contest);
}

/* ---- 3. Report ----------------------------------------------------------------------------- */

/* How many times as fast `entry` is as `base`: the median over rounds, and its MAD. */
static double speed_ratio(const struct contest *contest, const struct contestant *entry,
                          const struct contestant *base, double *mad)
{
    double ratios[MAX_SAMPLES];
    if (!entry || !base || entry->is_out || base->is_out)
        return 0;
    for (int i = 0; i < contest->rounds; i++)
        ratios[i] = base->round_s[i] / entry->round_s[i];
    if (mad)
        *mad = mad_of(ratios, contest->rounds);
    return median_of(ratios, contest->rounds);
}

static double rate_of(const struct contestant *entry, double seconds)
{
    const struct workload *w = entry->work;
    if (entry->is_reader || w->m == 1)
        return (double)weight_bytes(w) / seconds * 1e-9;
    return flops_of(w) / seconds * 1e-9;
}

static const char *rate_unit(const struct contestant *entry)
{
    return entry->is_reader || entry->work->m == 1 ? "GB/s" : "GFLOPS";
}

static double median_s(const struct contest *contest, const struct contestant *entry)
{
    return median_of(entry->round_s, contest->rounds);
}

static double contest_noise(const struct contest *contest)
{
    return median_of(contest->others, contest->rounds);
}

static void contest_report(struct contest *contest)
{
    const struct contestant *base = NULL;
    for (int i = 0; i < contest->count; i++) {
        const struct contestant *entry = &contest->entries[i];
        struct detail detail = { .rounds = contest->rounds, .rel_err = entry->rel_err };
        if (entry->is_out)
            continue;
        snprintf(detail.where, sizeof detail.where, "%s", contest->work.label);
        snprintf(detail.who, sizeof detail.who, "%s", entry->name);
        snprintf(detail.unit, sizeof detail.unit, "%s", rate_unit(entry));
        detail.median_s = median_s(contest, entry);
        detail.mad_s = mad_of(entry->round_s, contest->rounds);
        detail.rate = rate_of(entry, detail.median_s);
        base = base ? base : entry;
        detail.ratio = speed_ratio(contest, entry, base, &detail.ratio_mad);
        add_detail(contest->results, &detail);
    }
    double others = contest_noise(contest);
    fprintf(talk, "    %d rounds, %d dropped as disturbed; others had %.0f%% of the machine%s\n",
            contest->rounds, contest->dropped, 100 * others,
            others > QUIET ? ": BUSY, distrust this case" : "");
}

/* The fastest contestant whose key begins with `key`; NULL if there is none. */
static const struct contestant *contest_best(const struct contest *contest, const char *key)
{
    const struct contestant *best = NULL;
    for (int i = 0; i < contest->count; i++) {
        const struct contestant *entry = &contest->entries[i];
        if (entry->is_out || strncmp(entry->key, key, strlen(key)))
            continue;
        if (!best || median_s(contest, entry) < median_s(contest, best))
            best = entry;
    }
    return best;
}

static void contest_run(struct contest *contest, double seconds, int most)
{
    check_set(contest, 0);
    if (contest->work.sets > 1)
        check_set(contest, contest->work.sets - 1);
    time_rounds(contest, seconds, most);
    contest_report(contest);
}
#endif
