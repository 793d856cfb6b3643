/* Roofs: what a device was measured to sustain, from its profile or the profile's file.
 *
 *     quern device profile 1
 *     name=NVIDIA L4, 58 SMs
 *     memory_gbps=250
 *     tensor_tflops=60       of bf16 products; 0: f32_tflops stands for it
 *     f32_tflops=20
 *     launch_us=1.2          what the shortest call takes
 *
 * A report is made anywhere: the profile need not be of a device that is here, which a context
 * would ask for. Lines of other names are not looked at.
 */
#include "roof.h"

#include "args.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int is_short(enum quern_dtype dtype)
{
    return dtype == QUERN_BF16 || dtype == QUERN_F16 || dtype == QUERN_E4M3 || dtype == QUERN_E5M2;
}

void roof_call_of(struct quern_context *ctx, const struct quern_spec *spec, struct roof_call *call)
{
    const struct quern_family *family = spec->family;
    struct quern_cost cost = { 0 };
    struct quern_shape shape;
    *call = (struct roof_call){ 0 };
    if (!family->cost)
        return;
    family->cost(spec, &cost);
    call->flops = isfinite(cost.flops) ? cost.flops : 0;
    call->bytes = isfinite(cost.bytes) ? cost.bytes : 0;
    for (int i = 0; i < family->array_count && !call->is_tensor; i++)
        call->is_tensor = !quern_spec_shape(ctx, spec, i, &shape) && shape.role != QUERN_ABSENT &&
                          is_short(shape.dtype);
}

double roof_tflops(const struct quern_profile *profile, int is_tensor)
{
    return is_tensor && profile->tensor_tflops > 0 ? profile->tensor_tflops : profile->f32_tflops;
}

double roof_us(const struct quern_profile *profile, const struct roof_call *call)
{
    double peak = roof_tflops(profile, call->is_tensor);
    double flops_us = call->flops > 0 ? call->flops / peak * 1e-6 : 0;
    if ((call->flops > 0 && peak <= 0) || profile->memory_gbps <= 0 ||
        (call->flops <= 0 && call->bytes <= 0))
        return NAN;
    return fmax(fmax(flops_us, call->bytes / profile->memory_gbps * 1e-3), profile->launch_us);
}

/* ---- The file ------------------------------------------------------------------------------ */

/* Within what a device may have, or 0. */
static double rate_of(const char *text)
{
    double rate = strtod(text, NULL);
    return rate >= 1e-9 && rate <= 1e7 ? rate : 0;
}

static void take_line(struct quern_profile *profile, const char *name, const char *value)
{
    const struct {
        const char *name;
        double *rate;
    } rates[] = { { "memory_gbps", &profile->memory_gbps },
                  { "tensor_tflops", &profile->tensor_tflops },
                  { "f32_tflops", &profile->f32_tflops },
                  { "launch_us", &profile->launch_us } };
    if (!strcmp(name, "name"))
        snprintf(profile->name, sizeof(profile->name), "%s", value);
    for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++)
        if (!strcmp(name, rates[i].name))
            *rates[i].rate = rate_of(value);
}

int roof_read(struct quern_profile *profile, const char *path)
{
    static const char first[] = "quern device profile 1\n";
    char line[256], name[32];
    const char *value;
    FILE *file = fopen(path, "re");

    *profile = (struct quern_profile){ 0 };
    if (!file && !strpbrk(path, "/."))
        return complain(EXIT_FAILED,
                        "device-profile=%s: must be a file, as quern sweep --device-profile-out "
                        "writes it: a report takes no name",
                        path);
    if (!file)
        return complain(EXIT_FAILED, "device-profile=%s: cannot be read: %s", path,
                        strerror(errno));
    int is_profile = fgets(line, sizeof(line), file) && !strcmp(line, first);
    while (is_profile && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        if (!args_split(line, name, sizeof(name), &value))
            take_line(profile, name, value);
    }
    fclose(file);
    if (!is_profile || !profile->name[0] || profile->memory_gbps <= 0)
        return complain(EXIT_FAILED,
                        "device-profile=%s: must be a device profile with name and memory_gbps",
                        path);
    return EXIT_DONE;
}
