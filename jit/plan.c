/* Building a plan: what a variant's plan() calls. Overflows are remembered in the plan (a
 * step_count or define_count past its limit) and refused by qn_plan_check(), so that plan() itself
 * needs no error path. */
#include "jit/plan.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static struct quern_step *step_append(struct quern_plan *plan, enum quern_step_kind kind,
                                      const char *name)
{
    int index = plan->step_count++;
    struct quern_step *step = &plan->steps[index < QUERN_MAX_STEPS ? index : QUERN_MAX_STEPS - 1];
    memset(step, 0, sizeof(*step));
    step->kind = kind;
    snprintf(step->name, sizeof(step->name), "%s", name);
    return step;
}

struct quern_step *quern_plan_kernel(struct quern_plan *plan, const char *name, const char *source,
                                     const char *entry)
{
    struct quern_step *step = step_append(plan, QUERN_STEP_KERNEL, name);
    snprintf(step->source, sizeof(step->source), "%s", source);
    snprintf(step->entry, sizeof(step->entry), "%s", entry);
    return step;
}

struct quern_step *quern_plan_memset(struct quern_plan *plan, const char *name)
{
    return step_append(plan, QUERN_STEP_MEMSET, name);
}

void quern_step_define_text(struct quern_step *step, const char *name, const char *value)
{
    int index = step->define_count++;
    if (index >= QUERN_MAX_DEFINES)
        return;
    struct quern_define *define = &step->defines[index];
    size_t name_bytes = strlen(name), value_bytes = strlen(value);
    if (name_bytes >= sizeof(define->name) || value_bytes >= sizeof(define->value)) {
        step->define_count = QUERN_MAX_DEFINES + 1;
        return;
    }
    memcpy(define->name, name, name_bytes + 1);
    memcpy(define->value, value, value_bytes + 1);
}

void quern_step_define(struct quern_step *step, const char *name, int64_t value)
{
    char text[32];
    snprintf(text, sizeof(text), "%lld", (long long)value);
    quern_step_define_text(step, name, text);
}

void quern_step_define_config(struct quern_step *step, const struct quern_variant *variant,
                              const int32_t *config)
{
    for (int i = 0; i < variant->knob_count; i++) {
        char name[sizeof(step->defines[0].name)];
        size_t n = 0;
        for (const char *p = variant->knobs[i].name; *p && n + 1 < sizeof(name); p++)
            name[n++] = *p == '.' ? '_' : (char)toupper((unsigned char)*p);
        name[n] = '\0';
        quern_step_define(step, name, config[i]);
    }
}

int qn_plan_check(const struct quern_plan *plan, const char *variant, struct quern_message *why)
{
    if (plan->step_count < 1 || plan->step_count > QUERN_MAX_STEPS)
        return quern_refuse(why, "variant=%s: its plan has %d steps; must be from 1 to %d", variant,
                            plan->step_count, QUERN_MAX_STEPS);
    for (int i = 0; i < plan->step_count; i++) {
        if (plan->steps[i].define_count > QUERN_MAX_DEFINES)
            return quern_refuse(why, "variant=%s: step %s has too many or too long defines",
                                variant, plan->steps[i].name);
    }
    if (plan->workspace_bytes < 0)
        return quern_refuse(why, "variant=%s: workspace_bytes=%lld: must be at least 0", variant,
                            (long long)plan->workspace_bytes);
    return QUERN_OK;
}

bool qn_steps_share(const struct quern_step *a, const struct quern_step *b)
{
    if (a->kind != b->kind || strcmp(a->source, b->source) || a->define_count != b->define_count)
        return false;
    for (int i = 0; i < a->define_count; i++) {
        if (strcmp(a->defines[i].name, b->defines[i].name) ||
            strcmp(a->defines[i].value, b->defines[i].value))
            return false;
    }
    return true;
}
