/* A device profile as a file, so that rates that were measured on a device are planned with:
 *
 *     quern device profile 1          the first line; another number is refused
 *     name=NVIDIA L4, 58 SMs          the device's: tuned configs are stored under it
 *     kind=cuda
 *     sm=89
 *     ...                             every member of struct quern_profile, once, in any order
 *
 * What is read is untrusted: each number has its bounds, and a line that is missing, unknown or
 * there twice is refused with the file's name.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jit/context.h"
#include "jit/device.h"
#include "jit/profile.h"

#define FIRST_LINE "quern device profile 1"
#define LINE_BYTES 256

/* Member, whether it is whole, the least and the most that it may be. */
#define NUMBER_LIST(X)                                                                             \
    X(sm, 1, 0, 999)                                                                               \
    X(cores, 1, 1, 1 << 20)                                                                        \
    X(l1_bytes, 1, 0, 0x1p40)                                                                      \
    X(l2_bytes, 1, 0, 0x1p40)                                                                      \
    X(l3_bytes, 1, 0, 0x1p40)                                                                      \
    X(memory_gbps, 0, 0, 1e7)                                                                      \
    X(l2_gbps, 0, 0, 1e7)                                                                          \
    X(tensor_tflops, 0, 0, 1e7)                                                                    \
    X(f32_tflops, 0, 0, 1e7)                                                                       \
    X(launch_us, 0, 0, 1e6)

enum {
    LINE_NAME,
    LINE_KIND,
#define X(member, ...) LINE_##member,
    NUMBER_LIST(X)
#undef X
        LINE_COUNT
};

static const char *const line_names[LINE_COUNT] = { "name", "kind",
#define X(member, ...) #member,
                                                    NUMBER_LIST(X)
#undef X
};

/* ---- Reading ------------------------------------------------------------------------------- */

static int number_read(const char *text, int is_whole, double least, double most, double *number)
{
    char *end;
    *number = strtod(text, &end);
    return end == text || *end || !isfinite(*number) || *number < least || *number > most ||
           (is_whole && *number != floor(*number));
}

static int value_read(struct quern_profile *profile, int line, const char *text)
{
    double number = 0;
    switch (line) {
    case LINE_NAME:
        snprintf(profile->name, sizeof(profile->name), "%s", text);
        return !*text || strlen(text) >= sizeof(profile->name);
    case LINE_KIND:
        profile->kind = strcmp(text, "cuda") ? QUERN_CPU : QUERN_CUDA;
        return strcmp(text, "cuda") && strcmp(text, "cpu");
#define X(member, is_whole, least, most)                                                           \
    case LINE_##member:                                                                            \
        if (number_read(text, is_whole, least, most, &number))                                     \
            return 1;                                                                              \
        profile->member = (__typeof__(profile->member))number;                                     \
        return 0;
        NUMBER_LIST(X)
#undef X
    default:
        return 1;
    }
}

static int line_find(const char *name)
{
    int line = 0;
    while (line < LINE_COUNT && strcmp(line_names[line], name))
        line++;
    return line;
}

/* One line after the first; `seen` has a bit for each that was there. */
static int line_read(struct quern_profile *profile, const char *path, char *text, uint32_t *seen,
                     struct quern_message *why)
{
    char *value = strchr(text, '=');
    if (value)
        *value++ = 0;
    int line = value ? line_find(text) : LINE_COUNT;
    if (line == LINE_COUNT || *seen >> line & 1)
        return quern_refuse(
            why, "device-profile=%s: %.60s: must be a line that a profile has, once", path, text);
    *seen |= 1u << line;
    if (value_read(profile, line, value))
        return quern_refuse(why, "device-profile=%s: %s=%.60s: is out of bounds", path, text,
                            value);
    return QUERN_OK;
}

static int lines_read(FILE *file, const char *path, struct quern_profile *profile,
                      struct quern_message *why)
{
    char text[LINE_BYTES];
    uint32_t seen = 0;
    int status = QUERN_OK, count = 0;
    while (!status && fgets(text, sizeof(text), file)) {
        text[strcspn(text, "\n")] = 0;
        if (count++)
            status = line_read(profile, path, text, &seen, why);
        else if (strcmp(text, FIRST_LINE))
            return quern_refuse(why, "device-profile=%s: must begin with \"" FIRST_LINE "\"", path);
    }
    if (status)
        return status;
    for (int i = 0; i < LINE_COUNT; i++)
        if (!(seen >> i & 1))
            return quern_refuse(why, "device-profile=%s: %s: must be given", path, line_names[i]);
    return QUERN_OK;
}

int qn_profile_get(const char *name, struct quern_profile *profile, struct quern_message *why)
{
    if (!strpbrk(name, "/."))
        return qn_profile_find(name, profile, why);
    FILE *file = fopen(name, "re");
    if (!file)
        return quern_refuse(why, "device-profile=%s: %s", name, strerror(errno));
    struct quern_profile read = { .name = "" };
    int status = lines_read(file, name, &read, why);
    fclose(file);
    if (!status)
        *profile = read;
    return status;
}

/* ---- Writing ------------------------------------------------------------------------------- */

int quern_profile_of(struct quern_context *ctx, struct quern_profile *profile)
{
    QN_TRY(qn_require(ctx, "profile", profile));
    return qn_profile_for(ctx, &ctx->target, profile);
}

static int profile_print(FILE *file, const struct quern_profile *profile)
{
    fprintf(file, FIRST_LINE "\nname=%s\nkind=%s\n", profile->name,
            profile->kind == QUERN_CUDA ? "cuda" : "cpu");
#define X(member, is_whole, ...)                                                                   \
    fprintf(file, "%s=%.*g\n", #member, is_whole ? 17 : 6, (double)profile->member);
    NUMBER_LIST(X)
#undef X
    return fflush(file) || ferror(file) || fsync(fileno(file));
}

int quern_profile_save(struct quern_context *ctx, const struct quern_profile *profile,
                       const char *path)
{
    char made[4096];
    QN_TRY(qn_require(ctx, "profile", profile));
    QN_TRY(qn_require(ctx, "path", path));
    if (snprintf(made, sizeof(made), "%s.%d.tmp", path, (int)getpid()) >= (int)sizeof(made))
        return qn_fail(ctx, QUERN_INVALID, "device-profile=%.100s...: is too long", path);
    FILE *file = fopen(made, "wex");
    if (!file)
        return qn_fail(ctx, QUERN_STORE, "device-profile=%s: %s", path, strerror(errno));
    int failed = profile_print(file, profile);
    failed |= fclose(file);
    failed = failed || rename(made, path);
    if (!failed)
        return QUERN_OK;
    int code = errno;
    unlink(made);
    return qn_fail(ctx, QUERN_STORE, "device-profile=%s: %s", path, strerror(code));
}
