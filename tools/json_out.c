/* JSON on stdout. Objects are made by jansson, whose packing functions take over what they are
 * given and pass a NULL (no memory) on, so that one test at the end, in json_out_print(), is
 * enough. */
#include "json_out.h"

#include "args.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REAL_DIGITS 9

int json_out_print(json_t *object)
{
    if (!object)
        return complain(EXIT_FAILED, "out of memory for the JSON output");
    char *text = json_dumps(object, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(REAL_DIGITS));
    json_decref(object);
    if (!text)
        return complain(EXIT_FAILED, "out of memory for the JSON output");
    int status = puts(text);
    free(text);
    return status < 0 ? complain(EXIT_FAILED, "stdout: cannot be written") : EXIT_DONE;
}

json_t *json_out_real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *json_out_text(const char *text)
{
    if (!text)
        return json_null();
    json_t *string = json_string(text);
    if (string)
        return string;
    char *ascii = strdup(text); /* a path or a log in another encoding */
    if (!ascii)
        return NULL;
    for (char *at = ascii; *at; at++)
        if ((unsigned char)*at > '~')
            *at = '?';
    string = json_string(ascii);
    free(ascii);
    return string;
}

json_t *json_out_config(const char *config)
{
    json_t *object = json_object();
    char pair[128], name[64];
    const char *value;

    for (const char *at = config; object && *at;) {
        size_t length = strcspn(at, ",");
        snprintf(pair, sizeof(pair), "%.*s", (int)length, at);
        if (!args_split(pair, name, sizeof(name), &value))
            json_object_set_new(object, name, json_integer(strtoll(value, NULL, 10)));
        at += length + (at[length] == ',');
    }
    return object;
}

static json_t *reported(int64_t value)
{
    return value < 0 ? json_null() : json_integer(value);
}

json_t *json_out_steps(const struct quern_report *report)
{
    json_t *steps = json_array();
    for (int i = 0; steps && i < report->step_count; i++) {
        const struct quern_step_report *step = &report->steps[i];
        json_array_append_new(steps,
                              json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o}", "step", step->name,
                                        "from", json_out_artifact_from(step->from), "compile_ms",
                                        json_out_real(step->compile_ms), "load_ms",
                                        json_out_real(step->load_ms), "registers",
                                        reported(step->registers), "spills", reported(step->spills),
                                        "shared_bytes", reported(step->shared_bytes)));
    }
    return steps;
}

const char *json_out_config_from(int config_from)
{
    switch (config_from) {
    case QUERN_CONFIG_GIVEN:
        return "given";
    case QUERN_CONFIG_TUNED:
        return "tuned";
    case QUERN_CONFIG_NEIGHBOUR:
        return "neighbour";
    default:
        return "heuristic";
    }
}

const char *json_out_artifact_from(int artifact_from)
{
    switch (artifact_from) {
    case QUERN_FROM_COMPILER:
        return "compiled";
    case QUERN_FROM_DISK:
        return "disk";
    default:
        return "memory";
    }
}
