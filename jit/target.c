/* Target text, for every kind of device.
 *
 *     target   = "cpu:x86-64-v" level features | "cpu:aarch64" | "sm_" number [ "a" ]
 *     level    = "1" | "2" | "3" | "4"
 *     features = { "+bf16" | "+vnni" | "+amx" }       only with level 4, any order, each once
 *     number   = two or three digits, the first not 0
 *
 * Invariants: the text that format writes, parse reads back to the same struct; two structs that
 * mean the same target are equal byte for byte (parse starts from zero), so that either form may be
 * compared or hashed.
 *
 * The features name AVX-512 and AMX instructions whose flags make a compiler use AVX-512 as well:
 * below level 4 they would be a target that claims one level and executes another, so they are
 * refused there.
 *
 * What exists is not decided here: sm_77 parses. A compiler that does not know it says so. */
#include "jit/target.h"

#include <stdio.h>
#include <string.h>

static const struct feature {
    const char *word;
    int bit;
} features[] = {
    { "bf16", QUERN_CPU_BF16 },
    { "vnni", QUERN_CPU_VNNI },
    { "amx", QUERN_CPU_AMX },
};
enum { FEATURE_COUNT = sizeof features / sizeof features[0] };

/* The rest of `text` after `prefix`, or NULL. */
static const char *after(const char *text, const char *prefix)
{
    size_t length = strlen(prefix);
    return strncmp(text, prefix, length) ? NULL : text + length;
}

/* "+bf16+amx" to bits; -1 for an unknown or repeated word. */
static int parse_features(const char *text)
{
    int bits = 0;

    while (*text) {
        const char *rest = NULL;
        int bit = 0;
        for (int i = 0; i < FEATURE_COUNT && !rest; i++) {
            rest = *text == '+' ? after(text + 1, features[i].word) : NULL;
            bit = features[i].bit;
        }
        if (!rest || (*rest && *rest != '+') || bits & bit)
            return -1;
        bits |= bit;
        text = rest;
    }
    return bits;
}

/* Returns 0 if `text` is not of this form; likewise below. */
static int parse_x86(const char *text, struct quern_target *target)
{
    const char *level = after(text, "cpu:x86-64-v");

    if (!level || *level < '1' || *level > '4')
        return 0;
    target->kind = QUERN_CPU;
    target->cpu_level = *level - '0';
    target->cpu_features = parse_features(level + 1);
    return target->cpu_features >= 0;
}

static int parse_aarch64(const char *text, struct quern_target *target)
{
    target->kind = QUERN_CPU;
    target->cpu_arch = 1;
    return !strcmp(text, "cpu:aarch64");
}

static int parse_sm(const char *text, struct quern_target *target)
{
    const char *digit = after(text, "sm_");
    int count = 0;

    if (!digit || *digit == '0')
        return 0;
    target->kind = QUERN_CUDA;
    for (; *digit >= '0' && *digit <= '9' && count < 4; digit++, count++)
        target->sm = target->sm * 10 + (*digit - '0');
    if (*digit == 'a')
        target->sm_suffix = *digit++;
    return (count == 2 || count == 3) && !*digit;
}

int qn_target_parse(const char *text, struct quern_target *target, struct quern_message *why)
{
    static int (*const forms[])(const char *, struct quern_target *) = { parse_x86, parse_aarch64,
                                                                         parse_sm };
    struct quern_target found;
    int is_known = 0;

    for (size_t i = 0; i < sizeof forms / sizeof forms[0] && !is_known; i++) {
        memset(&found, 0, sizeof found);
        is_known = forms[i](text, &found);
    }
    if (!is_known)
        return quern_refuse(why,
                            "target=%s: must be cpu:x86-64-v1..v4[+bf16][+vnni][+amx], cpu:aarch64 "
                            "or sm_NN[a]",
                            text);
    if (found.cpu_features && found.cpu_level < 4)
        return quern_refuse(why, "target=%s: +bf16, +vnni and +amx need cpu:x86-64-v4", text);
    *target = found;
    return 0;
}

void qn_target_format(const struct quern_target *target, char *text, size_t bytes)
{
    char words[32] = "";
    char *end = words;

    if (target->kind == QUERN_CUDA) {
        snprintf(text, bytes, "sm_%d%s", target->sm, target->sm_suffix ? "a" : "");
        return;
    }
    if (target->cpu_arch == 1) {
        snprintf(text, bytes, "cpu:aarch64");
        return;
    }
    for (int i = 0; i < FEATURE_COUNT; i++)
        if (target->cpu_features & features[i].bit)
            end += sprintf(end, "+%s", features[i].word);
    snprintf(text, bytes, "cpu:x86-64-v%d%s", target->cpu_level, words);
}
