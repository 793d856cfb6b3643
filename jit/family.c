/* Families: the built-in ones that the build found in templates/, then those that the user
 * registers or brings as a plugin. A family's tables are checked once, here, so that the rest of
 * jit/ can rely on them. */
#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "jit/context.h"
#include "jit/embedded.h"

#define MAX_PLUGINS (sizeof(((struct quern_context *)0)->plugins) / sizeof(void *))

/* Letters, digits, _ and those of `more`, at most `most` of them, a letter or _ first. */
static bool is_name_of(const char *name, size_t most, const char *more)
{
    if (!name || !(isalpha((unsigned char)*name) || *name == '_') || strlen(name) > most)
        return false;
    for (const char *p = name; *p; p++) {
        if (!isalnum((unsigned char)*p) && *p != '_' && !strchr(more, *p))
            return false;
    }
    return true;
}

static bool is_name(const char *name)
{
    return is_name_of(name, 24, "");
}

/* A knob becomes a define: its name has room there, and a step's prefix. */
static int check_knobs(const struct quern_variant *variant, struct quern_message *why)
{
    if (variant->knob_count && !variant->knobs)
        return quern_refuse(why, "variant=%s: knobs=NULL: must be %d knobs", variant->name,
                            variant->knob_count);
    for (int i = 0; i < variant->knob_count; i++) {
        const struct quern_knob *knob = &variant->knobs[i];
        if (!is_name_of(knob->name, sizeof(((struct quern_define *)0)->name) - 1, "."))
            return quern_refuse(why, "variant=%s: knob %d has no valid name", variant->name, i);
        if (knob->minimum > knob->maximum)
            return quern_refuse(why, "variant=%s: knob %s: from %d to %d", variant->name,
                                knob->name, knob->minimum, knob->maximum);
        for (int j = 0; j < i; j++) {
            if (!strcmp(variant->knobs[j].name, knob->name))
                return quern_refuse(why, "variant=%s: knob %s is listed twice", variant->name,
                                    knob->name);
        }
    }
    return QUERN_OK;
}

static int check_variant(const struct quern_family *family, const struct quern_variant *variant,
                         struct quern_message *why)
{
    if (!is_name_of(variant->name, 63, ""))
        return quern_refuse(why, "family=%s: a variant has no valid name", family->name);
    if (variant->knob_count < 0 || variant->knob_count > QUERN_MAX_KNOBS)
        return quern_refuse(why, "variant=%s: knob_count=%d: must be from 0 to %d", variant->name,
                            variant->knob_count, QUERN_MAX_KNOBS);
    if (!variant->supports || !variant->heuristic || !variant->plan || !variant->bind)
        return quern_refuse(why, "variant=%s: must have supports, heuristic, plan and bind",
                            variant->name);
    return check_knobs(variant, why);
}

static int check_variants(const struct quern_family *family, struct quern_message *why)
{
    for (int i = 0; family->variants[i]; i++) {
        QN_TRY(check_variant(family, family->variants[i], why));
        if (qn_variant_find(family, family->variants[i]->name) != family->variants[i])
            return quern_refuse(why, "family=%s: variant %s is listed twice", family->name,
                                family->variants[i]->name);
    }
    return QUERN_OK;
}

static int check_params(const struct quern_family *family, struct quern_message *why)
{
    for (int i = 0; i < family->param_count; i++) {
        const struct quern_param *param = &family->params[i];
        bool needs_words = param->kind == QUERN_CHOICE || param->kind == QUERN_DTYPE;
        if (!is_name(param->name))
            return quern_refuse(why, "family=%s: parameter %d has no valid name", family->name, i);
        if ((unsigned)param->kind > QUERN_REAL || (unsigned)param->param_class > QUERN_SCALAR)
            return quern_refuse(why,
                                "family=%s: %s: kind=%d class=%d: must be of the lists in "
                                "quern.h",
                                family->name, param->name, (int)param->kind,
                                (int)param->param_class);
        if (needs_words != (param->domain != NULL))
            return quern_refuse(why, "family=%s: %s: a domain of words goes with CHOICE and DTYPE",
                                family->name, param->name);
        if ((param->kind == QUERN_REAL) != (param->param_class == QUERN_SCALAR))
            return quern_refuse(why, "family=%s: %s: REAL goes with SCALAR", family->name,
                                param->name);
        for (int j = 0; j < i; j++) {
            if (!strcmp(family->params[j].name, param->name))
                return quern_refuse(why, "family=%s: parameter %s is listed twice", family->name,
                                    param->name);
        }
        QN_TRY(qn_param_check(param, why));
    }
    return QUERN_OK;
}

static int check_arrays(const struct quern_family *family, struct quern_message *why)
{
    for (int i = 0; i < family->array_count; i++) {
        const char *name = family->arrays[i].name;
        if (!is_name(name))
            return quern_refuse(why, "family=%s: array %d has no valid name", family->name, i);
        for (int j = 0; j < i; j++) {
            if (!strcmp(family->arrays[j].name, name))
                return quern_refuse(why, "family=%s: array %s is listed twice", family->name, name);
        }
    }
    for (const struct quern_source *s = family->sources; s && s->path; s++) {
        if (!s->text)
            return quern_refuse(why, "family=%s: source %s has no text", family->name, s->path);
    }
    return QUERN_OK;
}

static int check_family(const struct quern_family *family, struct quern_message *why)
{
    if (!family || !is_name(family->name))
        return quern_refuse(why, "family: must have a name of letters, digits and _, at most 24");
    if (family->abi != QUERN_FAMILY_ABI)
        return quern_refuse(why, "family=%s: abi=%d: must be %d", family->name, family->abi,
                            QUERN_FAMILY_ABI);
    if (family->alias && !is_name(family->alias))
        return quern_refuse(why, "family=%s: its alias must be letters, digits and _, at most 24",
                            family->name);
    if (family->param_count < 1 || family->param_count > QUERN_MAX_PARAMS)
        return quern_refuse(why, "family=%s: param_count=%d: must be from 1 to %d", family->name,
                            family->param_count, QUERN_MAX_PARAMS);
    if (family->array_count < 1 || family->array_count > QUERN_MAX_ARRAYS)
        return quern_refuse(why, "family=%s: array_count=%d: must be from 1 to %d", family->name,
                            family->array_count, QUERN_MAX_ARRAYS);
    if (!family->shape || !family->units || !family->reference || !family->tolerance ||
        !family->cost || !family->variants || !family->variants[0])
        return quern_refuse(why,
                            "family=%s: must have shape, units, reference, tolerance, cost "
                            "and a variant",
                            family->name);
    if (!family->params || !family->arrays)
        return quern_refuse(why, "family=%s: %s=NULL: must be the tables of its .def", family->name,
                            family->params ? "arrays" : "params");
    QN_TRY(check_params(family, why));
    QN_TRY(check_arrays(family, why));
    return check_variants(family, why);
}

static bool is_named(const struct quern_family *family, const char *name)
{
    return !strcmp(family->name, name) || (family->alias && !strcmp(family->alias, name));
}

int quern_family_register(struct quern_context *ctx, const struct quern_family *family)
{
    struct quern_message why;
    if (!ctx)
        return QUERN_INVALID;
    int status = check_family(family, &why);
    if (status)
        return qn_fail_why(ctx, status, &why);
    pthread_mutex_lock(&ctx->lock);
    int count = atomic_load(&ctx->family_count);
    for (int i = 0; i < count && !status; i++) {
        if (is_named(ctx->families[i], family->name) ||
            (family->alias && is_named(ctx->families[i], family->alias)))
            status = quern_refuse(&why, "family=%s: registered already", family->name);
    }
    if (!status && count == QN_MAX_FAMILIES)
        status = quern_refuse(&why, "family=%s: at most %d families", family->name, count);
    if (!status) {
        ctx->families[count] = family;
        atomic_store(&ctx->family_count, count + 1);
    }
    pthread_mutex_unlock(&ctx->lock);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}

static int register_all(struct quern_context *ctx, const char *path,
                        const struct quern_family *(*list)(int))
{
    int count = 0;
    for (const struct quern_family *family; (family = list(count)); count++)
        QN_TRY(quern_family_register(ctx, family));
    return count ? QUERN_OK : qn_fail(ctx, QUERN_INVALID, "plugin=%s: has no family", path);
}

/* Keeps the handle until the context ends; false if there are too many. */
static bool plugin_keep(struct quern_context *ctx, void *handle)
{
    pthread_mutex_lock(&ctx->lock);
    bool has_room = ctx->plugin_count < (int)MAX_PLUGINS;
    if (has_room)
        ctx->plugins[ctx->plugin_count++] = handle;
    pthread_mutex_unlock(&ctx->lock);
    return has_room;
}

int quern_plugin_load(struct quern_context *ctx, const char *path)
{
    const struct quern_family *(*list)(int);
    QN_TRY(qn_require(ctx, "plugin", path));
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return qn_fail(ctx, QUERN_INVALID, "plugin=%s: %s", path, dlerror());
    *(void **)&list = dlsym(handle, "quern_plugin");
    if (!list || !plugin_keep(ctx, handle)) {
        dlclose(handle);
        return list ? qn_fail(ctx, QUERN_INVALID, "plugin=%s: at most %d plugins", path,
                              (int)MAX_PLUGINS)
                    : qn_fail(ctx, QUERN_INVALID, "plugin=%s: must export quern_plugin()", path);
    }
    return register_all(ctx, path, list);
}

int qn_families_init(struct quern_context *ctx)
{
    for (int i = 0; qn_builtin_families[i]; i++)
        QN_TRY(quern_family_register(ctx, qn_builtin_families[i]));
    return QUERN_OK;
}

void qn_families_fini(struct quern_context *ctx)
{
    for (int i = 0; i < ctx->plugin_count; i++)
        dlclose(ctx->plugins[i]);
}

int quern_family_count(struct quern_context *ctx)
{
    return ctx ? atomic_load(&ctx->family_count) : 0;
}

const struct quern_family *quern_family_at(struct quern_context *ctx, int index)
{
    return index >= 0 && index < quern_family_count(ctx) ? ctx->families[index] : NULL;
}

const struct quern_family *quern_family_find(struct quern_context *ctx, const char *name)
{
    for (int i = 0; name && i < quern_family_count(ctx); i++) {
        if (is_named(ctx->families[i], name))
            return ctx->families[i];
    }
    return NULL;
}

void quern_family_describe(const struct quern_family *family,
                           struct quern_family_description *description)
{
    if (!family || !description)
        return;
    int max = (int)(sizeof(description->variants) / sizeof(description->variants[0]));
    *description = (struct quern_family_description){
        .name = family->name,
        .folder = family->folder ? family->folder : "",
        .doc = family->doc ? family->doc : "",
        .params = family->params,
        .arrays = family->arrays,
        .param_count = family->param_count,
        .array_count = family->array_count,
    };
    for (int i = 0; family->variants[i] && i < max; i++)
        description->variants[description->variant_count++] = family->variants[i]->name;
}

const struct quern_variant *qn_variant_find(const struct quern_family *family, const char *name)
{
    for (int i = 0; family->variants[i]; i++) {
        if (!strcmp(family->variants[i]->name, name))
            return family->variants[i];
    }
    return NULL;
}
