/* Families: the built-in ones that the build found in templates/, then those that the user registers
 * or brings as a plugin. A family's tables are checked once, here, so that the rest of jit/ can rely
 * on them. */
#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "jit/context.h"

extern const struct quern_family *const qn_builtin_families[]; /* generated; ends with NULL */

static bool is_name(const char *name)
{
    if (!name || !(isalpha((unsigned char)*name) || *name == '_') || strlen(name) > 24)
        return false;
    for (const char *p = name; *p; p++) {
        if (!isalnum((unsigned char)*p) && *p != '_')
            return false;
    }
    return true;
}

static int check_variant(const struct quern_family *family, const struct quern_variant *variant,
                         struct quern_message *why)
{
    if (!is_name(variant->name) && !(variant->name && strlen(variant->name) < 64))
        return quern_refuse(why, "family=%s: a variant has no name", family->name);
    if (variant->knob_count < 0 || variant->knob_count > QUERN_MAX_KNOBS)
        return quern_refuse(why, "variant=%s: knob_count=%d: must be from 0 to %d", variant->name,
                            variant->knob_count, QUERN_MAX_KNOBS);
    if (!variant->supports || !variant->heuristic || !variant->plan || !variant->bind)
        return quern_refuse(why, "variant=%s: must have supports, heuristic, plan and bind",
                            variant->name);
    return QUERN_OK;
}

static int check_params(const struct quern_family *family, struct quern_message *why)
{
    for (int i = 0; i < family->param_count; i++) {
        const struct quern_param *param = &family->params[i];
        bool needs_words = param->kind == QUERN_CHOICE || param->kind == QUERN_DTYPE;
        if (!is_name(param->name))
            return quern_refuse(why, "family=%s: parameter %d has no valid name", family->name, i);
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
    if (family->param_count < 1 || family->param_count > QUERN_MAX_PARAMS)
        return quern_refuse(why, "family=%s: param_count=%d: must be from 1 to %d", family->name,
                            family->param_count, QUERN_MAX_PARAMS);
    if (family->array_count < 1 || family->array_count > QUERN_MAX_ARRAYS)
        return quern_refuse(why, "family=%s: array_count=%d: must be from 1 to %d", family->name,
                            family->array_count, QUERN_MAX_ARRAYS);
    if (!family->shape || !family->units || !family->reference || !family->tolerance ||
        !family->cost || !family->variants || !family->variants[0])
        return quern_refuse(why, "family=%s: must have shape, units, reference, tolerance, cost "
                            "and a variant", family->name);
    QN_TRY(check_params(family, why));
    for (int i = 0; family->variants[i]; i++)
        QN_TRY(check_variant(family, family->variants[i], why));
    return QUERN_OK;
}

int quern_family_register(struct quern_context *ctx, const struct quern_family *family)
{
    struct quern_message why;
    int status = check_family(family, &why);
    if (status)
        return qn_fail_why(ctx, status, &why);
    pthread_mutex_lock(&ctx->lock);
    int count = atomic_load(&ctx->family_count);
    for (int i = 0; i < count && !status; i++) {
        if (!strcmp(ctx->families[i]->name, family->name))
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

int quern_plugin_load(struct quern_context *ctx, const char *path)
{
    const struct quern_family *(*list)(int);
    if (ctx->plugin_count == (int)(sizeof(ctx->plugins) / sizeof(ctx->plugins[0])))
        return qn_fail(ctx, QUERN_INVALID, "plugin=%s: at most %d plugins", path,
                       ctx->plugin_count);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return qn_fail(ctx, QUERN_INVALID, "plugin=%s: %s", path, dlerror());
    ctx->plugins[ctx->plugin_count++] = handle;
    *(void **)&list = dlsym(handle, "quern_plugin");
    if (!list)
        return qn_fail(ctx, QUERN_INVALID, "plugin=%s: must export quern_plugin()", path);
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
    return atomic_load(&ctx->family_count);
}

const struct quern_family *quern_family_at(struct quern_context *ctx, int index)
{
    return index >= 0 && index < quern_family_count(ctx) ? ctx->families[index] : NULL;
}

const struct quern_family *quern_family_find(struct quern_context *ctx, const char *name)
{
    for (int i = 0; name && i < quern_family_count(ctx); i++) {
        if (!strcmp(ctx->families[i]->name, name))
            return ctx->families[i];
    }
    return NULL;
}

void quern_family_describe(const struct quern_family *family,
                           struct quern_family_description *description)
{
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
