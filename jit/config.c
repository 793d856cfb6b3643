/* Configs: a variant's knobs as text ("mr=14,nr=32") and back. A config read from disk or given by
 * hand is untrusted: qn_config_check() stands before anything is made from it. */
#include "jit/context.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/text.h"

static int knob_find(const struct quern_variant *variant, const char *name)
{
    for (int i = 0; i < variant->knob_count; i++) {
        if (!strcmp(variant->knobs[i].name, name))
            return i;
    }
    return -1;
}

static int refuse_knob(const struct quern_variant *variant, const char *name, const char *value,
                       struct quern_message *why)
{
    char known[256] = "";
    for (int i = 0; i < variant->knob_count; i++)
        qn_list_add(known, sizeof(known), variant->knobs[i].name);
    return quern_refuse(why, "config %s=%s: %s has no such name; it has: %s", name, value,
                        variant->name, known);
}

static int parse_knob(const struct quern_variant *variant, char *word, int32_t *config,
                      uint32_t *given, struct quern_message *why)
{
    char *equals = strchr(word, '='), *end;
    if (!equals)
        return quern_refuse(why, "config=%s: must be name=value, comma-separated", word);
    *equals = '\0';
    const char *text = equals + 1;
    int index = knob_find(variant, word);
    if (index < 0)
        return refuse_knob(variant, word, text, why);
    errno = 0;
    long value = strtol(text, &end, 10);
    const struct quern_knob *knob = &variant->knobs[index];
    if (errno || end == text || *end || value < knob->minimum || value > knob->maximum)
        return quern_refuse(why, "config %s=%s: must be a whole number from %d to %d", word, text,
                            knob->minimum, knob->maximum);
    if (*given >> index & 1)
        return quern_refuse(why, "config %s=%s: given twice", word, text);
    *given |= UINT32_C(1) << index;
    config[index] = (int32_t)value;
    return QUERN_OK;
}

int qn_config_parse(const struct quern_variant *variant, const char *text, int32_t *config,
                    struct quern_message *why)
{
    char copy[1024], *rest = NULL;
    uint32_t given = 0;
    if (strlen(text) >= sizeof(copy))
        return quern_refuse(why, "config: must be shorter than %zu characters", sizeof(copy));
    strcpy(copy, text);
    for (char *word = strtok_r(copy, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
        QN_TRY(parse_knob(variant, word, config, &given, why));
    return QUERN_OK;
}

void qn_config_text(const struct quern_variant *variant, const int32_t *config, char *text,
                    size_t bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < variant->knob_count && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%s=%d", i ? "," : "",
                                 variant->knobs[i].name, config[i]);
}

int qn_config_check(const struct quern_variant *variant, const struct quern_problem *problem,
                    const int32_t *config, struct quern_message *why)
{
    for (int i = 0; i < variant->knob_count; i++) {
        const struct quern_knob *knob = &variant->knobs[i];
        if (config[i] < knob->minimum || config[i] > knob->maximum)
            return quern_refuse(why, "config %s=%d: must be from %d to %d", knob->name, config[i],
                                knob->minimum, knob->maximum);
    }
    return variant->legal ? variant->legal(problem, config, why) : QUERN_OK;
}
