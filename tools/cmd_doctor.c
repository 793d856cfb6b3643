/* quern doctor: what is here, what is missing and how to get it.
 *
 * It must also help where no context can be made: a cache that cannot be used, or a device that is
 * not here, is reported, and the rest of the machine looked at without it.
 */
#include "cmd.h"
#include "json_out.h"
#include "session.h"

#include <stdio.h>
#include <string.h>

static const char *const sections[] = { "cpu", "cuda", "cache" };

#define SECTION_COUNT (sizeof(sections) / sizeof(sections[0]))

static void add_fact(void *user, const char *section, const char *name, const char *value)
{
    json_object_set_new(json_object_get(user, section), name, json_out_text(value));
}

/* A context for looking around: without the cache, and on the CPU, if it must be. What went wrong
 * on the way is told, and is the exit code. */
static int open_somehow(struct session *session, const struct args *args, char cache_problem[512])
{
    struct quern_options options;
    int code = EXIT_DONE;

    *session = (struct session){ .args = args };
    session_options(session, &options);
    int status = quern_context_create(&options, &session->ctx);
    if (status == QUERN_STORE) {
        snprintf(cache_problem, 512, "%s", quern_errmsg(session->ctx));
        code = session_fail(session, status);
        session_close(session);
        options.cache = options.base = "";
        status = quern_context_create(&options, &session->ctx);
    }
    if (status == QUERN_DEVICE) {
        code = session_fail(session, status);
        session_close(session);
        options.device = "cpu";
        status = quern_context_create(&options, &session->ctx);
    }
    if (!status)
        status = session_load_plugins(session);
    return status ? session_fail(session, status) : code;
}

/* A device is there, but not its compiler: its version is a fact only of one that was found. */
static int lacks_compiler(const json_t *facts)
{
    static const char *const compilers[][2] = { { "clang", "clang_version" },
                                                { "nvrtc", "nvrtc_version" } };
    const char *usable = json_string_value(json_object_get(facts, "usable"));
    for (size_t i = 0; i < sizeof(compilers) / sizeof(compilers[0]); i++)
        if (json_object_get(facts, compilers[i][0]) && !json_object_get(facts, compilers[i][1]))
            return usable && !strcmp(usable, "yes");
    return 0;
}

static void print_facts(const json_t *facts)
{
    const char *name;
    json_t *value;

    printf("quern %s\n", quern_version());
    for (size_t i = 0; i < SECTION_COUNT; i++) {
        printf("\n%s\n", sections[i]);
        json_object_foreach(json_object_get(facts, sections[i]), name, value)
            printf("  %-12s %s\n", name,
                   json_string_length(value) || strcmp(name, "path") ? json_string_value(value)
                                                                     : "in memory");
        if (lacks_compiler(json_object_get(facts, sections[i])))
            printf("  %-12s no compiler: only kernels that are in the cache can run\n", "note");
    }
}

int cmd_doctor(const struct args *args)
{
    char cache_problem[512] = "";
    struct session session;
    json_t *facts =
        json_pack("{s:s, s:{}, s:{}, s:{}}", "version", quern_version(), "cpu", "cuda", "cache");

    int code = open_somehow(&session, args, cache_problem);
    if (session.ctx && facts) {
        int status = quern_doctor(session.ctx, add_fact, facts);
        if (status)
            code = session_fail(&session, status);
        if (*cache_problem) {
            json_object_clear(json_object_get(facts, "cache"));
            add_fact(facts, "cache", "usable", "no");
            add_fact(facts, "cache", "reason", cache_problem);
        }
    }
    if (args_has(args, OPTION_json)) {
        int printed = json_out_print(facts);
        code = printed ? printed : code;
    } else {
        print_facts(facts);
        json_decref(facts);
    }
    session_close(&session);
    return code;
}
