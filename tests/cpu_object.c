/* Objects for the suites that feed the CPU backend good and bad ones. */
#include "tests/cpu_object.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "jit/cpu/clang.h"
#include "jit/cpu/cpu.h"

const char cpu_object_varied_source[] =
    "static int counter; int shared = 5; const float table[5] = { 1, 2, 3, 4, 5 };\n"
    "static const float *const rows[2] = { table, table + 2 };\n"
    "struct args { float *x; long n; char c[300]; };\n"
    "__attribute__((noinline)) void helper(float *x, long n)\n"
    "{ __builtin_memset(x, 0, n); }\n"
    "void k(const void *p, unsigned x, unsigned y, unsigned z)\n"
    "{ const struct args *g = p; struct args b = *g; b.c[x] = 1;\n"
    "  for (long i = 0; i < b.n; i++) b.x[i] *= rows[y & 1][x % 3] + b.c[y];\n"
    "  counter += shared++; helper(b.x, counter);\n"
    "  switch (z) { case 0: b.x[0] = 1; break; case 1: b.x[3] = 4; break; case 2: b.x[9] = 3;\n"
    "  break; case 3: b.x[5] = 7; break; case 4: b.x[1] = 2; } }\n";

unsigned cpu_object_dice(void)
{
    unsigned value;
    ck_assert_int_eq(getrandom(&value, sizeof value, 0), sizeof value);
    return value;
}

struct cpu_object cpu_object_make(const struct quern_target *target, const char *source)
{
    const struct qn_backend_options none = { 0 };
    char options[512];
    struct qn_compile_request request = { .source = source,
                                          .source_bytes = strlen(source),
                                          .target = target,
                                          .options = options,
                                          .timeout_s = 30 };
    struct qn_compile_result result;
    struct quern_message why = { "" };
    struct qn_clang clang;

    qn_cpu_target_options(target, options, sizeof options);
    ck_assert_int_eq(qn_clang_init(&clang, &none, &why), 0);
    int status = qn_clang_compile(&clang, &request, &result, &why);
    ck_assert_msg(!status, "%s", why.text);
    qn_clang_fini(&clang);
    free(result.log);
    free(result.report);
    return (struct cpu_object){ result.blob, result.blob_bytes };
}

void cpu_object_damage(unsigned char *data, size_t bytes, unsigned *state)
{
    int changes = 1 + rand_r(state) % 4;

    while (changes--) {
        size_t at = (size_t)rand_r(state) % bytes;
        if (rand_r(state) % 2)
            at = bytes - 1 - at % (bytes / 2); /* symbols, relocations, section headers */
        switch (rand_r(state) % 3) {
        case 0:
            data[at] ^= (unsigned char)(1 << rand_r(state) % 8);
            break;
        case 1:
            data[at] = (unsigned char)rand_r(state);
            break;
        default:
            data[at] = rand_r(state) % 2 ? 0xff : 0;
        }
    }
}
