/* quern build: compile a spec into the cache, for each target of a list. The targets need not be
 * here: a fleet's kernels can be made on a machine without a GPU. */
#include "cmd.h"
#include "human.h"
#include "json_out.h"
#include "session.h"

#include <stdio.h>
#include <string.h>

static json_t *report_json(const struct quern_report *report)
{
    return json_pack("{s:s, s:s, s:s, s:o, s:s, s:s, s:o}", "target", report->target, "bucket",
                     report->bucket, "variant", report->variant, "config",
                     json_out_config(report->config), "config_from",
                     json_out_config_from(report->config_from), "artifact",
                     json_out_artifact_from(report->artifact), "steps", json_out_steps(report));
}

static void print_report(const struct quern_report *report)
{
    char time[HUMAN_BYTES];
    double compile_ms = 0;

    for (int i = 0; i < report->step_count; i++)
        compile_ms += report->steps[i].compile_ms;
    human_time(compile_ms * 1e3, time);
    printf("%s  %s %s (%s)  ", report->target, report->variant, report->config,
           json_out_config_from(report->config_from));
    if (report->artifact == QUERN_FROM_COMPILER)
        printf("compiled in %s\n", time);
    else
        printf("already in the cache\n");
}

/* Take the next name off a comma-separated list. 0 at its end. */
static int next_target(const char **list, char *target, size_t size)
{
    if (!*list)
        return 0;
    size_t length = strcspn(*list, ",");
    snprintf(target, size, "%.*s", (int)length, *list);
    *list = (*list)[length] ? *list + length + 1 : NULL;
    return 1;
}

/* Every target of the list is one, and served, before the first is compiled. */
static int check_targets(struct session *session, const struct quern_spec *spec, const char *list)
{
    struct quern_request request;
    char target[128];
    const char *rest = list;
    int is_list = strchr(list, ',') != NULL, status = QUERN_OK;

    session_request(session, spec, &request);
    request.target = target;
    while (is_list && !status && next_target(&rest, target, sizeof(target))) {
        char *source = NULL;
        if (!*target)
            return complain(EXIT_USAGE,
                            "target=%s: must be TARGET or TARGET,TARGET: there is a "
                            "comma with no name beside it",
                            list);
        status = quern_generate(session->ctx, &request, &source);
        quern_text_free(source);
    }
    return status ? session_fail(session, status) : EXIT_DONE;
}

static int build_target(struct session *session, const struct quern_spec *spec, const char *target,
                        json_t *builds)
{
    struct quern_request request;
    struct quern_report report;

    session_request(session, spec, &request);
    request.target = target;
    int status = quern_build(session->ctx, &request, &report);
    if (status)
        return session_fail(session, status);
    if (builds)
        json_array_append_new(builds, report_json(&report));
    else
        print_report(&report);
    return EXIT_DONE;
}

static int print_builds(const struct quern_spec *spec, json_t *builds)
{
    struct quern_family_description family;
    char text[1024];

    quern_family_describe(spec->family, &family);
    session_spec_text(spec, text);
    return json_out_print(
        json_pack("{s:s, s:s, s:O}", "family", family.name, "spec", text, "builds", builds));
}

int cmd_build(const struct args *args)
{
    struct session session;
    struct quern_spec spec;
    char target[128];
    const char *list = args->text[OPTION_target];
    json_t *builds = args_has(args, OPTION_json) ? json_array() : NULL;
    int code = session_open(&session, args);

    if (!code)
        code = session_spec(&session, 1, &spec);
    if (!code && !list)
        code = build_target(&session, &spec, NULL, builds);
    if (!code && list)
        code = check_targets(&session, &spec, list);
    while (!code && next_target(&list, target, sizeof(target)))
        code = build_target(&session, &spec, target, builds);
    if (!code && builds)
        code = print_builds(&spec, builds);
    json_decref(builds);
    session_close(&session);
    return code;
}
