/* call_cost: nanoseconds of quern's calls, made and timed in C.
 *
 *     Python (harness/call_child.py)                      here
 *     struct call_cost: the functions' addresses,  --->  `calls` calls in a row between two
 *     a prepared kernel, its spec and arrays       <---  readings of the clock: ns a call
 *
 * A shared object that links to nothing of quern's: the caller has libquern loaded and hands over
 * the addresses, so that what is timed is the very library, context and kernel that Python calls
 * beside it. It waits for no device: on a GPU the time is the host's, and the caller sees to it
 * that the driver's queue takes a batch whole. It prepares nothing and judges nothing.
 *
 * Every function returns QUERN_OK or the first status that a call returned, and writes *ns, the
 * mean of the batch in nanoseconds a call, only on QUERN_OK. Threads: one caller a struct.
 */
#include <quern.h>
#include <time.h>

/* Mirrored by CallCost in harness/call_child.py. */
struct call_cost {
    int (*launch)(struct quern_context *, struct quern_kernel *, const struct quern_spec *,
                  const struct quern_array *, const struct quern_call *);
    int (*run)(struct quern_context *, const struct quern_spec *, const struct quern_array *,
               const struct quern_call *);
    int (*dispatch)(struct quern_context *, const struct quern_spec *, const struct quern_array *,
                    struct quern_kernel **);
    struct quern_context *ctx;
    struct quern_kernel *kernel;
    const struct quern_spec *spec;
    const struct quern_array *arrays;
    struct quern_call call;
};

/* `calls` times quern_launch() of the prepared kernel. */
QUERN_API int call_cost_launch(const struct call_cost *what, int calls, double *ns);
/* `calls` times quern_run(): dispatch and launch, as the generated quern_<family>() does. */
QUERN_API int call_cost_run(const struct call_cost *what, int calls, double *ns);
/* `calls` times quern_dispatch(), parameter `param` of the spec taken from `values` in turn; their
 * number, `count`, is a power of two. The first turn is not counted: it compiles. */
QUERN_API int call_cost_dispatch(const struct call_cost *what, int param, const int64_t *values,
                                 int count, int calls, double *ns);

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

int call_cost_launch(const struct call_cost *what, int calls, double *ns)
{
    double begin = now_ns();
    for (int i = 0; i < calls; i++) {
        int status = what->launch(what->ctx, what->kernel, what->spec, what->arrays, &what->call);
        if (status)
            return status;
    }
    *ns = (now_ns() - begin) / calls;
    return QUERN_OK;
}

int call_cost_run(const struct call_cost *what, int calls, double *ns)
{
    double begin = now_ns();
    for (int i = 0; i < calls; i++) {
        int status = what->run(what->ctx, what->spec, what->arrays, &what->call);
        if (status)
            return status;
    }
    *ns = (now_ns() - begin) / calls;
    return QUERN_OK;
}

int call_cost_dispatch(const struct call_cost *what, int param, const int64_t *values, int count,
                       int calls, double *ns)
{
    struct quern_spec spec = *what->spec;
    struct quern_kernel *kernel;
    double begin = 0;
    for (int i = -count; i < calls; i++) {
        int status;
        if (!i)
            begin = now_ns();
        spec.values[param] = values[i & (count - 1)];
        status = what->dispatch(what->ctx, &spec, what->arrays, &kernel);
        if (status)
            return status;
    }
    *ns = (now_ns() - begin) / calls;
    return QUERN_OK;
}
