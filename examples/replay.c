/* What a server may do before it takes requests: make every call that it expects once, so that no
 * kernel is missing, and each is loaded. The calls are specs, a line each, from a file or from
 * standard input ("-"); without an argument two that are built in. A second argument is the device.
 *
 *     cc replay.c $(pkg-config --cflags --libs quern) -o replay
 *     QUERN_BASE=bundle.qdb QUERN_MODE=sealed QUERN_CACHE="" ./replay calls.txt
 *
 * docs/SHIPPING.md has the command that makes calls.txt of a plan of quern prebuild.
 */
#include <quern.h>
#include <quern/tune.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 1024 };

/* Memory for array `index` of the call, with valid contents if it is an input. */
static int draw_array(struct quern_context *ctx, const struct quern_spec *spec, int index,
                      struct quern_array *array)
{
    struct quern_shape shape;
    int status = quern_spec_shape(ctx, spec, index, &shape);
    if (status || shape.role == QUERN_ABSENT)
        return status;
    size_t bytes = quern_dtype_bytes(shape.dtype);
    for (int i = 0; i < shape.rank; i++)
        bytes *= (size_t)shape.dims[i];
    status = quern_memory_alloc(ctx, bytes, &array->data);
    if (status || !bytes)
        return status;
    array->size_bytes = bytes;
    void *host = calloc(bytes, 1);
    if (!host)
        return QUERN_NO_MEMORY;
    if (shape.role != QUERN_OUT)
        status = quern_fill(ctx, spec, index, 1, host);
    if (!status)
        status = quern_memory_copy(ctx, array->data, host, bytes);
    free(host);
    return status;
}

static int make_call(struct quern_context *ctx, const char *line)
{
    struct quern_array arrays[QUERN_MAX_ARRAYS] = { { NULL } };
    struct quern_family_description family;
    struct quern_spec spec;
    int status = quern_spec_parse(ctx, line, &spec);
    if (status)
        return status;
    quern_family_describe(spec.family, &family);
    for (int i = 0; !status && i < family.array_count; i++)
        status = draw_array(ctx, &spec, i, &arrays[i]);
    if (!status)
        status = quern_run(ctx, &spec, arrays, NULL);
    for (int i = 0; i < family.array_count; i++)
        quern_memory_free(ctx, arrays[i].data, arrays[i].size_bytes);
    return status;
}

/* How many calls could not be made. */
static int make_calls(struct quern_context *ctx, FILE *file, int *count)
{
    char line[LINE];
    int failed = 0;
    while (fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = 0;
        if (!*line || *line == '#')
            continue;
        ++*count;
        if (make_call(ctx, line)) {
            fprintf(stderr, "%s: %s\n", line, quern_errmsg(ctx));
            failed++;
        }
    }
    return failed;
}

int main(int argc, char **argv)
{
    static char built_in[] = "gemm m=2 n=8 k=8\nsilu_and_mul tokens=2 width=8\n";
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *ctx;
    int count = 0, failed = 1;
    FILE *file = argc < 2               ? fmemopen(built_in, strlen(built_in), "r")
                 : strcmp(argv[1], "-") ? fopen(argv[1], "r")
                                        : stdin;
    if (!file) {
        perror(argc < 2 ? "fmemopen" : argv[1]);
        return 1;
    }
    options.device = argc > 2 ? argv[2] : NULL;
    if (quern_context_create(&options, &ctx))
        fprintf(stderr, "%s\n", quern_errmsg(ctx));
    else
        failed = make_calls(ctx, file, &count);
    quern_context_destroy(ctx);
    fclose(file);
    printf("%d calls, %d of them failed\n", count, failed);
    return failed > 0;
}
