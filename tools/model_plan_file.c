/* A plan as JSON: what prebuild --dry-run --json prints and --plan reads.
 *
 *     {"calls": [{"family": "gemm", "params": {"m": 16, ...}, "where": "qkv", "layers": 32,
 *                 "count": 32, "provided": true}, ...]}
 *
 * Of a file only family and params must be there, and other members are not looked at. */
#include "model_plan.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *plan_params_json(const char *params)
{
    json_t *object = json_object();
    char text[PLAN_PARAMS], *rest, *end;
    snprintf(text, sizeof(text), "%s", params);
    for (char *name = strtok_r(text, " ", &rest); name; name = strtok_r(NULL, " ", &rest)) {
        char *value = strchr(name, '=');
        if (!value)
            continue;
        *value++ = 0;
        long long number = strtoll(value, &end, 10);
        json_object_set_new(object, name, *end ? json_string(value) : json_integer(number));
    }
    return object;
}

struct source {
    const char *path;
    char *why;
    int size;
};

__attribute__((format(printf, 2, 3))) static int refuse(const struct source *source,
                                                        const char *format, ...)
{
    int used = snprintf(source->why, (size_t)source->size, "plan=%s: ", source->path);
    va_list list;
    if (used < 0 || used >= source->size)
        return -1;
    va_start(list, format);
    vsnprintf(source->why + used, (size_t)(source->size - used), format, list);
    va_end(list);
    return -1;
}

/* "m=16 n=4096" of an object. */
static int read_params(const struct source *source, json_t *params, size_t index,
                       struct plan_call *call)
{
    const char *name;
    json_t *value;
    size_t used = 0;
    json_object_foreach(params, name, value)
    {
        char *at = call->params + used;
        size_t left = sizeof(call->params) - used;
        int length = -1;
        if (json_is_integer(value))
            length = snprintf(at, left, "%s%s=%lld", used ? " " : "", name,
                              (long long)json_integer_value(value));
        else if (json_is_real(value))
            length =
                snprintf(at, left, "%s%s=%.17g", used ? " " : "", name, json_real_value(value));
        else if (json_is_string(value))
            length = snprintf(at, left, "%s%s=%s", used ? " " : "", name, json_string_value(value));
        if (length < 0)
            return refuse(source, "calls[%zu].params.%s: must be a number or a text", index, name);
        if ((size_t)length >= left)
            return refuse(source, "calls[%zu].params: must be shorter than %zu characters", index,
                          sizeof(call->params));
        used += (size_t)length;
    }
    return 0;
}

static int read_call(const struct source *source, const json_t *entry, size_t index,
                     struct plan_call *call)
{
    const char *family = json_string_value(json_object_get(entry, "family"));
    const char *where = json_string_value(json_object_get(entry, "where"));
    json_t *params = json_object_get(entry, "params");
    *call = (struct plan_call){ .layers = json_integer_value(json_object_get(entry, "layers")),
                                .count = json_integer_value(json_object_get(entry, "count")) };
    if (!family || !*family || strlen(family) >= sizeof(call->family))
        return refuse(source, "calls[%zu].family: must be the name of a family", index);
    if (!json_is_object(params))
        return refuse(source, "calls[%zu].params: must be an object", index);
    snprintf(call->family, sizeof(call->family), "%s", family);
    snprintf(call->where, sizeof(call->where), "%s", where ? where : "plan");
    return read_params(source, params, index, call);
}

static int read_calls(const struct source *source, const json_t *calls, struct plan *plan)
{
    size_t count = json_array_size(calls);
    if (!count)
        return refuse(source, "calls: must be an array, and not empty");
    if (count > PLAN_MOST)
        return refuse(source, "calls: must be at most %d", PLAN_MOST);
    for (size_t i = 0; i < count; i++) {
        struct plan_call call;
        if (read_call(source, json_array_get(calls, i), i, &call))
            return -1;
        if (plan_add(plan, &call))
            return refuse(source, "memory ran out");
    }
    return 0;
}

int plan_read(const char *path, struct plan *plan, char *why, int size)
{
    const struct source source = { path, why, size };
    json_error_t error;
    *plan = (struct plan){ .calls = NULL };
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return error.line < 0
                   ? refuse(&source, "%s", error.text)
                   : refuse(&source, "must be JSON: line %d: %s", error.line, error.text);
    int status = read_calls(&source, json_object_get(root, "calls"), plan);
    json_decref(root);
    return status;
}
