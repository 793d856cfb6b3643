/* A matrix product, twice: d[m,n] = a[m,k] b[n,k]^T in f32.
 *
 * The first call finds a kernel for the shape: in memory, in the cache, or by compiling one. The
 * second has it at hand. Run the program again, and the first call finds in the cache what the
 * compiler made the last time.
 *
 *     cc gemm.c $(pkg-config --cflags --libs quern) -o gemm && ./gemm
 */
#include <quern.h>
#include <quern/gemm.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { M = 192, N = 256, K = 320 };

static double now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec * 1e-6;
}

/* Small whole numbers: their products and sums are exact in f32, so that the check may be too. */
static void fill(float *values, int count)
{
    for (int i = 0; i < count; i++)
        values[i] = (float)(rand() % 9 - 4);
}

static int count_wrong(const float *a, const float *b, const float *d)
{
    int wrong = 0;
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            float sum = 0;
            for (int l = 0; l < K; l++)
                sum += a[i * K + l] * b[j * K + l];
            wrong += d[i * N + j] != sum;
        }
    }
    return wrong;
}

/* Where the kernel of these arguments came from. */
static int print_origin(struct quern_context *ctx, const struct quern_gemm_spec *spec,
                        const struct quern_gemm_arrays *arrays)
{
    static const char *const origins[] = { "memory", "the cache", "the compiler" };
    struct quern_kernel *kernel;
    struct quern_report report;
    int status = quern_gemm_prepare(ctx, spec, arrays, &kernel);

    if (status)
        return status;
    quern_kernel_report(kernel, &report);
    printf("kernel: %s from %s in %.1f ms, for %s\n        %s\n", report.variant,
           origins[report.artifact], report.first_call_ms, report.target, report.config);
    return QUERN_OK;
}

int main(void)
{
    static float a[M * K], b[N * K], d[M * N];
    struct quern_gemm_spec spec = QUERN_GEMM_SPEC_INIT;
    struct quern_gemm_arrays arrays = { .a = { a }, .b = { b }, .d = { d } };
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *ctx;

    options.device = "cpu"; /* the arrays are in host memory */
    fill(a, M * K);
    fill(b, N * K);
    spec.m = M;
    spec.n = N;
    spec.k = K;

    int status = quern_context_create(&options, &ctx);
    if (!status)
        status = print_origin(ctx, &spec, &arrays);
    for (int call = 1; !status && call <= 2; call++) {
        double start_ms = now_ms();
        status = quern_gemm(ctx, &spec, &arrays, NULL);
        printf("call %d: %.3f ms\n", call, now_ms() - start_ms);
    }
    if (status)
        fprintf(stderr, "%s\n", quern_errmsg(ctx));
    quern_context_destroy(ctx);
    if (status)
        return 1;
    int wrong = count_wrong(a, b, d);
    printf("check:  %d of %d elements wrong\n", wrong, M * N);
    return wrong != 0;
}
