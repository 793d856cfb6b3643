/* quern families: what can be asked for. All of it comes from the families' lists and variants, so
 * that a plugin's family looks like a built-in one. */
#include "cmd.h"
#include "json_out.h"
#include "session.h"

#include <quern/family.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char *class_word(const struct quern_param *param)
{
    static const char *const words[] = { "static", "dynamic", "hint", "scalar" };
    return words[param->param_class];
}

static const char *device_word(const struct quern_variant *variant)
{
    return variant->device == QUERN_CUDA ? "cuda" : "cpu";
}

/* A doc may be left out. */
static const char *doc_of(const char *doc)
{
    return doc ? doc : "";
}

/* Copy word `index` of a blank-separated list. 0 past its end. */
static int word_at(const char *list, int64_t index, char *word, size_t size)
{
    for (; *list; list += strspn(list, " ")) {
        size_t length = strcspn(list, " ");
        if (!index--) {
            snprintf(word, size, "%.*s", (int)length, list);
            return 1;
        }
        list += length;
    }
    return 0;
}

/* Whether text may leave out a parameter without a default, since others imply its value. */
static int is_implied(const struct quern_family *family,
                      const struct quern_family_description *about, int index)
{
    struct quern_spec spec = { .family = family };

    if (!family->implied || about->params[index].default_value != QUERN_REQUIRED)
        return 0;
    for (int i = 0; i < about->param_count; i++) {
        spec.values[i] = about->params[i].default_value;
        if (spec.values[i] == QUERN_REQUIRED && i != index)
            spec.values[i] = 1;
    }
    family->implied(&spec);
    return spec.values[index] != QUERN_REQUIRED;
}

/* Of a list "QUERN_I32" is i32; what depends on a parameter stays as it is written. */
static void dtype_text(const char *dtype, char *text, size_t size)
{
    for (int i = 0; i < QUERN_DTYPE_COUNT; i++) {
        char word[32];
        snprintf(word, sizeof(word), "QUERN_%s", quern_dtype_name(i));
        if (!strcasecmp(word, dtype))
            dtype = quern_dtype_name(i);
    }
    snprintf(text, size, "%s", dtype);
}

/* "lse ? OUT : ABSENT" as "OUT if lse", "inplace ? INOUT : OUT" as "INOUT if inplace, else OUT". */
static void role_text(const char *role, char *text, size_t size)
{
    const char *yes = strstr(role, " ? "), *no = yes ? strstr(yes, " : ") : NULL;

    if (!no || strstr(no, " ? "))
        snprintf(text, size, "%s", role);
    else
        snprintf(text, size, "%.*s if %.*s%s%s", (int)(no - yes - 3), yes + 3, (int)(yes - role),
                 role, strcmp(no, " : ABSENT") ? ", else " : "",
                 strcmp(no, " : ABSENT") ? no + 3 : "");
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static json_t *domain_json(const struct quern_param *param)
{
    json_t *words;
    char word[64];

    switch (param->kind) {
    case QUERN_SIZE:
        return json_pack("{s:I}", "min", (json_int_t)param->minimum);
    case QUERN_FLAG:
        return json_pack("[i, i]", 0, 1);
    case QUERN_CHOICE:
    case QUERN_DTYPE:
        words = json_array();
        for (int64_t i = 0; word_at(param->domain, i, word, sizeof(word)); i++)
            json_array_append_new(words, json_string(word));
        return words;
    default:
        return json_null(); /* any finite number */
    }
}

static json_t *default_json(const struct quern_param *param)
{
    char word[64];

    if (param->default_value == QUERN_REQUIRED || param->kind == QUERN_REAL)
        return json_null();
    if (param->kind == QUERN_DTYPE)
        return json_string(quern_dtype_name((int)param->default_value));
    if (param->kind == QUERN_CHOICE &&
        word_at(param->domain, param->default_value, word, sizeof(word)))
        return json_string(word);
    return json_integer(param->default_value);
}

static json_t *variant_json(const struct quern_variant *variant)
{
    json_t *knobs = json_array();

    for (int i = 0; i < variant->knob_count; i++) {
        const struct quern_knob *knob = &variant->knobs[i];
        json_array_append_new(knobs, json_pack("{s:s, s:i, s:i, s:s}", "name", knob->name, "min",
                                               (int)knob->minimum, "max", (int)knob->maximum, "doc",
                                               doc_of(knob->doc)));
    }
    return json_pack("{s:s, s:s, s:s, s:o}", "variant", variant->name, "device",
                     device_word(variant), "doc", doc_of(variant->doc), "knobs", knobs);
}

static json_t *family_json(const struct quern_family *family)
{
    struct quern_family_description about;
    json_t *params = json_array(), *arrays = json_array(), *variants = json_array();
    json_t *kernels = json_array();

    quern_family_describe(family, &about);
    for (int i = 0; i < about.param_count; i++) {
        const struct quern_param *param = &about.params[i];
        json_array_append_new(params,
                              json_pack("{s:s, s:s, s:o, s:o, s:s}", "name", param->name, "class",
                                        class_word(param), "domain", domain_json(param), "default",
                                        default_json(param), "doc", param->doc));
    }
    for (int i = 0; i < about.array_count; i++) {
        const struct quern_array_info *array = &about.arrays[i];
        json_array_append_new(arrays,
                              json_pack("{s:s, s:s, s:s, s:s}", "name", array->name, "role",
                                        array->role, "dtype", array->dtype, "shape", array->shape));
    }
    for (int i = 0; family->variants[i]; i++) {
        json_array_append_new(variants, json_string(family->variants[i]->name));
        json_array_append_new(kernels, variant_json(family->variants[i]));
    }
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o}", "name", about.name, "folder", about.folder,
                     "params", params, "arrays", arrays, "variants", variants, "kernels", kernels);
}

static int print_json(struct session *session, const struct quern_family *only)
{
    json_t *families = json_array();

    for (int i = 0; i < quern_family_count(session->ctx); i++) {
        const struct quern_family *family = quern_family_at(session->ctx, i);
        if (!only || family == only)
            json_array_append_new(families, family_json(family));
    }
    return json_out_print(json_pack("{s:o}", "families", families));
}

/* ---- Text ---------------------------------------------------------------------------------- */

static void domain_text(const struct quern_param *param, char *text, size_t size)
{
    switch (param->kind) {
    case QUERN_SIZE:
        snprintf(text, size, "at least %" PRId64, param->minimum);
        break;
    case QUERN_FLAG:
        snprintf(text, size, "0 1");
        break;
    case QUERN_REAL:
        snprintf(text, size, "number");
        break;
    default:
        snprintf(text, size, "%s", param->domain);
    }
}

static void default_text(const struct quern_param *param, int is_implied, char *text, size_t size)
{
    if (param->kind == QUERN_REAL)
        snprintf(text, size, "not given");
    else if (is_implied)
        snprintf(text, size, "implied");
    else if (param->default_value == QUERN_REQUIRED)
        snprintf(text, size, "required");
    else if (param->kind == QUERN_DTYPE)
        snprintf(text, size, "%s", quern_dtype_name((int)param->default_value));
    else if (param->kind != QUERN_CHOICE ||
             !word_at(param->domain, param->default_value, text, size))
        snprintf(text, size, "%" PRId64, param->default_value);
}

static void print_params(const struct quern_family *family,
                         const struct quern_family_description *about)
{
    char domain[128], otherwise[64];

    printf("\n  %-14s %-8s %-18s %-10s\n", "parameter", "class", "allowed", "default");
    for (int i = 0; i < about->param_count; i++) {
        const struct quern_param *param = &about->params[i];
        domain_text(param, domain, sizeof(domain));
        default_text(param, is_implied(family, about, i), otherwise, sizeof(otherwise));
        printf("  %-14s %-8s %-18s %-10s %s\n", param->name, class_word(param), domain, otherwise,
               param->doc);
    }
}

static void print_arrays(const struct quern_family_description *about)
{
    char role[128], dtype[64];

    printf("\n  %-14s %-26s %-9s %s\n", "array", "role", "dtype", "shape");
    for (int i = 0; i < about->array_count; i++) {
        const struct quern_array_info *array = &about->arrays[i];
        role_text(array->role, role, sizeof(role));
        dtype_text(array->dtype, dtype, sizeof(dtype));
        printf("  %-14s %-26s %-9s [%s]  %s\n", array->name, role, dtype, array->shape, array->doc);
    }
}

static void print_variants(const struct quern_family *family)
{
    printf("\n  %-22s %-8s %s\n", "variant", "device", "what it is");
    for (int i = 0; family->variants[i]; i++) {
        const struct quern_variant *variant = family->variants[i];
        printf("  %-22s %-8s %s\n", variant->name, device_word(variant), doc_of(variant->doc));
    }
}

/* What --config takes, variant by variant. */
static void print_knobs(const struct quern_family *family)
{
    char bounds[32];

    for (int i = 0; family->variants[i]; i++) {
        const struct quern_variant *variant = family->variants[i];
        if (variant->knob_count)
            printf("\n  config of %s\n", variant->name);
        for (int k = 0; k < variant->knob_count; k++) {
            const struct quern_knob *knob = &variant->knobs[k];
            snprintf(bounds, sizeof(bounds), "%d to %d", (int)knob->minimum, (int)knob->maximum);
            printf("  %-14s %-18s %s\n", knob->name, bounds, doc_of(knob->doc));
        }
    }
}

static void print_family(const struct quern_family *family)
{
    struct quern_family_description about;

    quern_family_describe(family, &about);
    printf("%s (templates/%s): %s\n", about.name, about.folder, about.doc);
    print_variants(family);
    print_params(family, &about);
    print_arrays(&about);
    print_knobs(family);
}

static void print_list(struct session *session)
{
    for (int i = 0; i < quern_family_count(session->ctx); i++) {
        struct quern_family_description about;
        quern_family_describe(quern_family_at(session->ctx, i), &about);
        printf("%-20s %s\n", about.name, about.doc);
    }
    printf("\nquern families FAMILY shows its variants, parameters, arrays and configs.\n");
}

int cmd_families(const struct args *args)
{
    const struct quern_family *only = NULL;
    struct session session;
    int code = session_open(&session, args);

    if (!code)
        code = session_no_more_words(&session, 2);
    if (!code && args->word_count > 1) {
        only = session_family(&session, args->words[1]);
        code = only ? EXIT_DONE : EXIT_USAGE;
    }
    if (!code && args_has(args, OPTION_json))
        code = print_json(&session, only);
    else if (!code && only)
        print_family(only);
    else if (!code)
        print_list(&session);
    session_close(&session);
    return code;
}
