/* What every part of the benchmark measures with: clocks, medians, random data, memory in huge
 * pages, and how busy the machine was with other people's work meanwhile.
 */
#ifndef BENCH_SAMPLING_H
#define BENCH_SAMPLING_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MAX_SAMPLES 512

static double clock_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double now_s(void)
{
    return clock_s(CLOCK_MONOTONIC);
}

/* What calls are timed with: the wall, or with one thread that thread's own time, which a busy
 * machine hardly changes. */
static double call_clock_s(int threads)
{
    return clock_s(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC);
}

/* ---- Median and median absolute deviation -------------------------------------------------- */

static int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* At most MAX_SAMPLES values; 0 for none. */
static double median_of(const double *values, int count)
{
    double sorted[MAX_SAMPLES];
    if (count <= 0)
        return 0;
    memcpy(sorted, values, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_doubles);
    return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
}

static double mad_of(const double *values, int count)
{
    double distance[MAX_SAMPLES], median = median_of(values, count);
    for (int i = 0; i < count; i++)
        distance[i] = fabs(values[i] - median);
    return median_of(distance, count);
}

/* ---- Data ---------------------------------------------------------------------------------- */

static uint64_t random_bits(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15)); /* splitmix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static size_t element_bytes(int is_bf16)
{
    return is_bf16 ? 2 : 4;
}

static float load_element(const void *data, int64_t index, int is_bf16)
{
    uint32_t bits;
    float value;
    if (!is_bf16)
        return ((const float *)data)[index];
    bits = (uint32_t)((const uint16_t *)data)[index] << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Uniform in [-1, 1); bf16 rounded to nearest even. */
static void fill_random(void *data, int64_t count, int is_bf16, uint64_t seed)
{
    for (int64_t i = 0; i < count; i++) {
        float value = (float)(int32_t)(random_bits(&seed) >> 32) * 0x1p-31f;
        uint32_t bits;
        if (!is_bf16) {
            ((float *)data)[i] = value;
            continue;
        }
        memcpy(&bits, &value, sizeof bits);
        ((uint16_t *)data)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

/* Zeroed, in huge pages where the kernel has them; never freed: a case is a process. */
static void *big_alloc(size_t bytes)
{
    size_t huge = (size_t)2 << 20, size = (bytes + 2 * huge - 1) / huge * huge;
    char *data =
        mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        fprintf(stderr, "cpu_peers: no memory for %zu bytes\n", bytes);
        _exit(1);
    }
    data += (huge - (uintptr_t)data % huge) % huge;
    madvise(data, size, MADV_HUGEPAGE);
    return data;
}

/* "MemAvailable" of /proc/meminfo, "VmRSS" of /proc/self/status; -1 if it is not there. */
static int64_t proc_kilobytes(const char *path, const char *field)
{
    char line[256];
    long long value = -1;
    size_t length = strlen(field);
    FILE *file = fopen(path, "r");
    while (file && value < 0 && fgets(line, sizeof line, file))
        if (!strncmp(line, field, length) && line[length] == ':')
            value = atoll(line + length + 1);
    if (file)
        fclose(file);
    return value;
}

/* More than this share of the processors in others' hands, and a measurement is disturbed. */
#define QUIET 0.04

/* ---- Noise --------------------------------------------------------------------------------- */

struct noise {
    double wall_s, own_s, busy_s, steal_s;
};

static double seconds_of(struct timeval time)
{
    return (double)time.tv_sec + 1e-6 * (double)time.tv_usec;
}

/* What this process and the children it has waited for had is own. */
static struct noise noise_now(void)
{
    struct noise noise = { now_s(), clock_s(CLOCK_PROCESS_CPUTIME_ID), 0, 0 };
    double field[8] = { 0 }, ticks = (double)sysconf(_SC_CLK_TCK);
    struct rusage children;
    FILE *file = fopen("/proc/stat", "r");
    if (!getrusage(RUSAGE_CHILDREN, &children))
        noise.own_s += seconds_of(children.ru_utime) + seconds_of(children.ru_stime);
    if (file && fscanf(file, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", field, field + 1, field + 2,
                       field + 3, field + 4, field + 5, field + 6, field + 7) == 8) {
        noise.busy_s = (field[0] + field[1] + field[2] + field[5] + field[6]) / ticks;
        noise.steal_s = field[7] / ticks;
    }
    if (file)
        fclose(file);
    return noise;
}

/* Share of the processors that other processes (and the hypervisor) had since `begin`, 0..1. */
static double noise_since(struct noise begin)
{
    struct noise end = noise_now();
    double cpus = (double)sysconf(_SC_NPROCESSORS_ONLN), wall = end.wall_s - begin.wall_s;
    double others = end.busy_s - begin.busy_s - (end.own_s - begin.own_s);
    others += end.steal_s - begin.steal_s;
    return others > 0 && wall > 0 ? others / (wall * cpus) : 0;
}

/* Wait until no thread of this process spins any more: an idle team of OpenBLAS or libgomp burns a
 * core for a while after each call, which the next one to be timed would pay for. */
static void settle(void)
{
    double begin = now_s();
    struct timespec pause = { 0, 2000000 };
    for (;;) {
        double wall = now_s(), cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
        nanosleep(&pause, NULL);
        cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        wall = now_s() - wall;
        if (cpu < 0.05 * wall || now_s() - begin > 0.3)
            return;
    }
}
#endif
