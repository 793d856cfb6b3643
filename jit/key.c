/* The two keys, as canonical text: one name=value a line, in a fixed order, nothing of the
 * machine's paths, locale or environment. They are hashed and compared by the store; `quern cache
 * explain` prints the lines that differ.
 *
 *     artifact                               tuned
 *       kind=artifact                          kind=tuned
 *       format=1                               format=1
 *       target=cpu:x86-64-v4+bf16              family=gemm
 *       options=-std=gnu11 -O3 ...             m=512            dynamic: left out of the group
 *       define.BM=64                           n=4096
 *       file.gemm/gemm_cpu.c=<xxh3>            a=bf16
 *       source=<xxh3 of the flattened text>    align.a=16
 *                                              profile=...
 */
#include <stdlib.h>
#include <string.h>

#include "jit/emit.h"
#include "jit/target.h"

#define KEY_FORMAT 1

int qn_artifact_key(struct quern_context *ctx, const struct quern_step *step,
                    const struct quern_target *target, const char *options, const char *files,
                    struct qn_unit *unit)
{
    struct qn_text text = { 0 };
    char target_text[96], hex[QN_KEY_HEX];
    qn_target_format(target, target_text, sizeof(target_text));
    qn_key_hex(unit->source, unit->source_bytes, hex);
    qn_text_print(&text, "kind=artifact\nformat=%d\ntarget=%s\noptions=%s\n", KEY_FORMAT,
                  target_text, options);
    for (int i = 0; i < step->define_count; i++)
        qn_text_print(&text, "define.%s=%s\n", step->defines[i].name, step->defines[i].value);
    qn_text_append(&text, files, strlen(files));
    qn_text_print(&text, "source=%s\n", hex);
    if (text.is_failed) {
        qn_text_fini(&text);
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    }
    unit->key_text = text.data;
    return QUERN_OK;
}

static void append_param(struct qn_text *text, const struct quern_param *param, int64_t value)
{
    char word[64];
    qn_value_text(param, value, true, word, sizeof(word));
    qn_text_print(text, "%s=%s\n", param->name, word);
}

/* The bucket's lines; the dynamic parameters only if `is_whole`. */
static void append_bucket(struct qn_text *text, const struct qn_bucket *bucket,
                          const struct quern_profile *profile, bool is_whole)
{
    const struct quern_family *family = bucket->spec.family;
    qn_text_print(text, "kind=tuned\nformat=%d\nfamily=%s\n", KEY_FORMAT, family->name);
    for (int i = 0; i < family->param_count; i++) {
        const struct quern_param *param = &family->params[i];
        bool is_dynamic = param->param_class == QUERN_DYNAMIC || param->param_class == QUERN_HINT;
        if (is_whole || !is_dynamic)
            append_param(text, param, bucket->spec.values[i]);
    }
    for (int i = 0; i < family->array_count; i++) {
        struct quern_shape shape;
        family->shape(&bucket->spec, i, &shape);
        if (shape.role != QUERN_ABSENT)
            qn_text_print(text, "align.%s=%d\n", family->arrays[i].name, bucket->alignment[i]);
    }
    qn_text_print(text, "profile=%s\n", profile->name);
}

int qn_tuned_key(const struct qn_bucket *bucket, const struct quern_profile *profile, char **text,
                 char **group)
{
    struct qn_text whole = { 0 }, part = { 0 };
    append_bucket(&whole, bucket, profile, true);
    append_bucket(&part, bucket, profile, false);
    if (whole.is_failed || part.is_failed) {
        qn_text_fini(&whole);
        qn_text_fini(&part);
        return QUERN_NO_MEMORY;
    }
    *text = whole.data;
    *group = part.data;
    return QUERN_OK;
}
