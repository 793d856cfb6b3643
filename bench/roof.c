/* The roof: what this machine can do at most, measured. A shared object for bench/harness/roof.py.
 *
 *     f32     fused multiply-adds in registers, nothing else      2 flops a lane
 *     bf16    vdpbf16ps in registers (AVX512_BF16)                4 flops a lane
 *     amx     tdpbf16ps in tiles (AMX-BF16)                       16384 flops an instruction
 *     stream  reading memory once, in the order that is fastest here (several streams a thread,
 *             several prefetch distances are tried), summed so that nothing is left out
 *
 * Kernels are compiled for their instruction set by target attributes and chosen at run time; off
 * x86-64 only the plain vector kernels are there. Rates are flops and bytes a second. With one
 * thread the clock is that thread's own time, else the wall. One caller at a time.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__clang__)
#define UNROLL_ALL _Pragma("clang loop unroll(full)")
#else
#define UNROLL_ALL _Pragma("GCC unroll 16")
#endif

#define EXPORT __attribute__((visibility("default")))

enum { ACCUMULATORS = 14 }; /* independent chains: latency 4-5, two units, within 16 registers */

/* How a thread goes through its share of memory: in blocks of `streams` pieces of `span` bytes (0:
 * all of the share at once), the pieces side by side, prefetching `ahead` bytes along each piece
 * and from its end into the next block. */
struct roof_pattern {
    int streams, ahead;
    int64_t span;
};

enum roof_kind { ROOF_F32, ROOF_BF16, ROOF_AMX };

EXPORT double roof_peak(int kind, int threads, double seconds);
EXPORT uint64_t roof_read(const char *data, int64_t bytes, int threads,
                          const struct roof_pattern *pattern);
EXPORT void roof_choose(const char *data, int64_t bytes, struct roof_pattern *pattern);

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

static double call_clock_s(int threads)
{
    return clock_s(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC);
}

/* ---- Multiply-adds in registers ------------------------------------------------------------ */

/* Runs `rounds` and returns something that depends on every chain. */
typedef float peak_function(int64_t rounds);

#define DEFINE_PEAK_F32(name, attribute, bytes)                                                    \
    attribute static float name(int64_t rounds)                                                    \
    {                                                                                              \
        typedef float vec __attribute__((vector_size(bytes)));                                     \
        vec chain[ACCUMULATORS], half = { 0 }, sum = { 0 };                                        \
        half += 0.5f;                                                                              \
        for (int i = 0; i < ACCUMULATORS; i++)                                                     \
            chain[i] = half + (float)(i + rounds % 3);                                             \
        for (int64_t r = 0; r < rounds; r++) {                                                     \
            UNROLL_ALL for (int i = 0; i < ACCUMULATORS; i++) chain[i] = chain[i] * half + half;   \
        }                                                                                          \
        for (int i = 0; i < ACCUMULATORS; i++)                                                     \
            sum += chain[i];                                                                       \
        return sum[0];                                                                             \
    }

typedef uint64_t stream_function(const char *data, int64_t bytes, struct roof_pattern pattern);

#define DEFINE_STREAM(name, attribute, width)                                                      \
    attribute static inline __attribute__((always_inline)) uint64_t name##_n(                      \
        const char *data, int64_t bytes, const int streams, struct roof_pattern pattern)           \
    {                                                                                              \
        typedef uint64_t vec __attribute__((vector_size(width)));                                  \
        int64_t span = pattern.span ? pattern.span : bytes / streams / 256 * 256;                  \
        vec sum[8] = { { 0 } };                                                                    \
        for (; bytes >= span * streams && bytes > 0; data += span * streams)                       \
            for (int64_t at = (bytes -= span * streams, 0); at < span; at += 256)                  \
                for (int s = 0; s < streams; s++) {                                                \
                    const char *p = data + s * span + at, *next = p + pattern.ahead;               \
                    if (at + pattern.ahead >= span)                                                \
                        next += (streams - 1) * span;                                              \
                    if (pattern.ahead)                                                             \
                        for (int line = 0; line < 256; line += 64)                                 \
                            __builtin_prefetch(next + line, 0, 3);                                 \
                    UNROLL_ALL for (int i = 0; i < 256 / width; i++) sum[i % 8] +=                 \
                        *(const vec *)(p + i * width);                                             \
                }                                                                                  \
        for (; bytes > 0; bytes -= 64, data += 64)                                                 \
            sum[0] += *(const vec *)data;                                                          \
        for (int i = 1; i < 8; i++)                                                                \
            sum[0] += sum[i];                                                                      \
        return sum[0][0] + sum[0][1];                                                              \
    }                                                                                              \
    attribute static uint64_t name(const char *data, int64_t bytes, struct roof_pattern pattern)   \
    {                                                                                              \
        if (pattern.streams == 1)                                                                  \
            return name##_n(data, bytes, 1, pattern);                                              \
        if (pattern.streams == 2)                                                                  \
            return name##_n(data, bytes, 2, pattern);                                              \
        return name##_n(data, bytes, 4, pattern);                                                  \
    }

DEFINE_PEAK_F32(peak_f32_base, , 16)
DEFINE_STREAM(stream_base, , 16)

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f")))
DEFINE_PEAK_F32(peak_f32_avx2, AVX2, 32)
DEFINE_PEAK_F32(peak_f32_avx512, AVX512, 64)
DEFINE_STREAM(stream_avx2, AVX2, 32)
DEFINE_STREAM(stream_avx512, AVX512, 64)

__attribute__((target("avx512f,avx512bf16"))) static float peak_bf16_avx512(int64_t rounds)
{
    __m512 chain[ACCUMULATORS], sum = _mm512_setzero_ps();
    __m512bh half = (__m512bh)_mm512_set1_epi16((short)(0x3f00 + rounds % 2));
    for (int i = 0; i < ACCUMULATORS; i++)
        chain[i] = _mm512_set1_ps((float)i);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL_ALL for (int i = 0; i < ACCUMULATORS; i++) chain[i] =
            _mm512_dpbf16_ps(chain[i], half, half);
    }
    for (int i = 0; i < ACCUMULATORS; i++)
        sum = _mm512_add_ps(sum, chain[i]);
    return _mm512_cvtss_f32(sum);
}

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Four accumulating tiles, two of each operand: what a kernel of 32 x 32 outputs has in flight. */
__attribute__((target("amx-tile,amx-bf16"))) static float peak_bf16_amx(int64_t rounds)
{
    float out[256];
    struct tile_config config = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    for (int i = 0; i < 256; i++)
        out[i] = 0x1.010100p-7f * (float)(1 + rounds % 2);
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, out, 64);
    _tile_loadd(5, out, 64);
    _tile_loadd(6, out, 64);
    _tile_loadd(7, out, 64);
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_release();
    return out[0];
}

/* The processor has AMX-BF16 and the kernel lets this process use it. */
static int has_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 5) != 5)
        return 0;
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

static int has_avx512_bf16(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
           (a >> 5 & 1);
}
#endif

/* A peak kernel and the flops of one of its rounds. */
struct peak {
    peak_function *run;
    double flops;
};

static struct peak peak_f32(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return (struct peak){ peak_f32_avx512, ACCUMULATORS * 32.0 };
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return (struct peak){ peak_f32_avx2, ACCUMULATORS * 16.0 };
#endif
    return (struct peak){ peak_f32_base, ACCUMULATORS * 8.0 };
}

static struct peak peak_bf16(void)
{
#if defined(__x86_64__)
    if (has_avx512_bf16())
        return (struct peak){ peak_bf16_avx512, ACCUMULATORS * 64.0 };
#endif
    return (struct peak){ NULL, 0 };
}

static struct peak peak_amx(void)
{
#if defined(__x86_64__)
    if (has_amx())
        return (struct peak){ peak_bf16_amx, 4 * 16384.0 };
#endif
    return (struct peak){ NULL, 0 };
}

static double peak_once_s(struct peak peak, int threads, int64_t rounds)
{
    volatile float sink;
    double begin = call_clock_s(threads);
#pragma omp parallel num_threads(threads)
    sink = peak.run(rounds);
    (void)sink;
    return call_clock_s(threads) - begin;
}

/* Flops a second of `kind` (enum roof_kind), the best of runs that last `seconds` together: a peak
 * is what nothing disturbed. 0: this machine has no such instruction. */
EXPORT double roof_peak(int kind, int threads, double seconds)
{
    struct peak peak = kind == ROOF_F32 ? peak_f32() : kind == ROOF_BF16 ? peak_bf16() : peak_amx();
    double best = 0;
    int64_t rounds = 1 << 12;
    if (!peak.run)
        return 0;
    while (peak_once_s(peak, 1, rounds) < 0.01)
        rounds *= 2;
    for (double begin = now_s(); best <= 0 || now_s() - begin < seconds;) {
        double once = peak_once_s(peak, threads, rounds);
        best = fmax(best, peak.flops * (double)rounds * threads / once);
    }
    return best;
}

/* ---- Reading memory ------------------------------------------------------------------------ */

static stream_function *stream_kernel(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return stream_avx512;
    if (__builtin_cpu_supports("avx2"))
        return stream_avx2;
#endif
    return stream_base;
}

/* Read `bytes` at data (64-byte aligned) with `threads` threads, each a contiguous share; what is
 * left of a share's 4096 bytes at the end is not read. The sum of what was there. */
EXPORT uint64_t roof_read(const char *data, int64_t bytes, int threads,
                          const struct roof_pattern *pattern)
{
    stream_function *kernel = stream_kernel();
    uint64_t sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        int64_t share = bytes / omp_get_num_threads() / 4096 * 4096;
        sum += kernel(data + share * omp_get_thread_num(), share, *pattern);
    }
    return sum;
}

static double read_rate(const char *data, int64_t bytes, const struct roof_pattern *pattern)
{
    double begin = call_clock_s(1);
    uint64_t sum = roof_read(data, bytes, 1, pattern);
    __asm__ volatile("" ::"r"(sum)); /* keep the loads */
    return (double)bytes / (call_clock_s(1) - begin);
}

/* The fastest way for one thread to read `bytes` of memory, into *pattern. */
EXPORT void roof_choose(const char *data, int64_t bytes, struct roof_pattern *pattern)
{
    static const int ahead[] = { 0, 512, 1024 };
    static const int64_t span[] = { 0, 64 << 10, 256 << 10 };
    double best = 0;
    for (int i = 0; i < 27; i++) {
        struct roof_pattern trial = { 1 << i % 3, ahead[i / 3 % 3], span[i / 9] };
        double rate = 0;
        for (int r = 0; r < 3; r++)
            rate = fmax(rate, read_rate(data, bytes, &trial));
        if (rate > best) {
            best = rate;
            *pattern = trial;
        }
    }
}
