/* quern prebuild: from a model's config.json to the calls that one rank makes of it, and to a
 * bundle: a cache with a kernel for each of them. A bundle that is not whole is completed, since
 * what it has is found there; --check says what it lacks. */
#include "cmd.h"
#include "json_out.h"
#include "model_trouble.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Printing ------------------------------------------------------------------------------ */

static int print_json(struct session *session, const struct plan *plan)
{
    json_t *calls = json_array();
    for (int i = 0; i < plan->count; i++) {
        const struct plan_call *call = &plan->calls[i];
        json_array_append_new(
            calls, json_pack("{s:s, s:o, s:s, s:I, s:I, s:b}", "family", call->family, "params",
                             plan_params_json(call->params), "where", call->where, "layers",
                             (json_int_t)call->layers, "count", (json_int_t)call->count, "provided",
                             plan_call_is_provided(session->ctx, call)));
    }
    return json_out_print(json_pack("{s:o}", "calls", calls));
}

static int is_provided(void *user, const struct plan_call *call)
{
    return plan_call_is_provided(((struct session *)user)->ctx, call);
}

static int print_text(struct session *session, const struct plan *plan)
{
    return plan_print(plan, is_provided, session) ? complain(EXIT_FAILED, "out of memory")
                                                  : EXIT_DONE;
}

/* ---- What came of it ----------------------------------------------------------------------- */

static json_t *troubles_json(const struct batch *batch)
{
    json_t *list = json_array();
    for (int i = 0; i < batch->count; i++) {
        const struct task *task = &batch->tasks[i];
        if (is_trouble(task))
            json_array_append_new(
                list,
                json_pack("{s:s, s:s, s:s, s:i, s:s, s:o, s:o}", "family", task->call->family,
                          "params", task->call->params, "target", task->target, "rank", task->rank,
                          "what", task->state == TASK_FAILED ? "failed" : "missing", "why",
                          json_out_text(task->why), "log", json_out_text(task->log)));
    }
    return list;
}

/* Of a check: whether the model would ever miss. */
static void print_verdict(const struct batch *batch, const struct troubles *troubles)
{
    int missing = batch_count(batch, TASK_MISSING), failed = batch_count(batch, TASK_FAILED);
    int present = batch_count(batch, TASK_PRESENT), is_whole = present == batch->count;
    if (missing)
        printf("would miss %d kernel%s of %d call%s; ", troubles->missing,
               troubles->missing == 1 ? "" : "s", missing, missing == 1 ? "" : "s");
    if (failed)
        printf("%d call%s failed; ", failed, failed == 1 ? "" : "s");
    printf("%s%d call%s%s", is_whole ? "nothing would miss: " : "", present,
           present == 1 ? "" : "s", is_whole ? "" : " found theirs");
}

/* Of a build: kernels and, apart, the calls that needed none. */
static void print_sum(const struct batch *batch)
{
    int compiled = batch_count(batch, TASK_COMPILED), calls = 0, candidates = 0;
    for (int i = 0; i < batch->count; i++) {
        int is_present = batch->tasks[i].state == TASK_PRESENT;
        calls += is_present && !batch->tasks[i].rank;
        candidates += is_present && batch->tasks[i].rank;
    }
    printf("%d kernel%s compiled; %d call%s", compiled, compiled == 1 ? "" : "s", calls,
           calls == 1 ? "" : "s");
    if (candidates)
        printf(" and %d candidate%s", candidates, candidates == 1 ? "" : "s");
    printf(" found theirs there; %d failed", batch_count(batch, TASK_FAILED));
}

static void print_report(const struct batch *batch, const struct troubles *troubles)
{
    if (args_has(batch->args, OPTION_check))
        print_verdict(batch, troubles);
    else
        print_sum(batch);
    printf(", in %.1f s", batch->seconds);
    if (batch->not_provided)
        printf("; %d call%s of operators that quern does not provide", batch->not_provided,
               batch->not_provided == 1 ? " is" : "s are");
    putchar('\n');
}

static int batch_report(const struct batch *batch)
{
    int failed = batch_count(batch, TASK_FAILED), missing = batch_count(batch, TASK_MISSING);
    int compiled = batch_count(batch, TASK_COMPILED), present = batch_count(batch, TASK_PRESENT);
    int waiting = batch_count(batch, TASK_WAITING), printed = EXIT_DONE;
    int code = failed || missing || waiting ? EXIT_FAILED : batch->is_cut;
    struct troubles troubles;
    if (troubles_init(&troubles, batch))
        return complain(EXIT_FAILED, "out of memory");
    if (args_has(batch->args, OPTION_json))
        printed = json_out_print(json_pack(
            "{s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:o}", "compiled", compiled, "present", present,
            "missing", missing, "failed", failed, "not_begun", waiting, "not_provided",
            batch->not_provided, "seconds", batch->seconds, "troubles", troubles_json(batch)));
    else
        print_report(batch, &troubles);
    troubles_print(&troubles);
    troubles_fini(&troubles);
    if (waiting && !batch->is_cut)
        complain(EXIT_FAILED, "interrupted: %d not begun; the same command goes on from here",
                 waiting);
    return code ? code : printed;
}

/* ---- The verb ------------------------------------------------------------------------------ */

enum { MAX_TARGETS = 32, COMPILE_MIB = 160, MODEL_NAME = 256 };

/* A bare --target list, taken apart. */
struct targets {
    char *list;
    const char *names[MAX_TARGETS];
    int count;
};

static int targets_add(struct targets *targets, const char *name)
{
    for (int i = 0; i < targets->count; i++)
        if (!strcmp(targets->names[i], name))
            return EXIT_DONE;
    if (targets->count == MAX_TARGETS)
        return complain(EXIT_USAGE, "target=%s: must be one of at most %d", name, MAX_TARGETS);
    targets->names[targets->count++] = name;
    return EXIT_DONE;
}

static int targets_init(struct targets *targets, const char *given)
{
    char *rest;
    int code = EXIT_DONE;
    size_t length = given ? strlen(given) : 0;
    targets->count = 0;
    if (length && (given[0] == ',' || given[length - 1] == ',' || strstr(given, ",,"))) {
        targets->list = NULL;
        return complain(EXIT_USAGE,
                        "target=%s: must be TARGET or TARGET,TARGET: there is a comma with no "
                        "name beside it",
                        given);
    }
    targets->list = strdup(given ? given : "");
    if (!targets->list)
        return complain(EXIT_FAILED, "out of memory");
    for (char *at = strtok_r(targets->list, ",", &rest); at && !code;
         at = strtok_r(NULL, ",", &rest))
        code = targets_add(targets, at);
    if (!code && !targets->count)
        code = complain(EXIT_USAGE, "target: must be given: --target sm_90a,cpu:x86-64-v4");
    return code;
}

/* Refuses a target that there is not, before anything is written. */
static int targets_check(struct session *session, const struct targets *targets)
{
    for (int i = 0; i < targets->count; i++) {
        struct quern_request request = QUERN_REQUEST_INIT;
        struct quern_spec spec;
        char *text = NULL;
        request.spec = &spec;
        request.target = targets->names[i];
        int status = quern_spec_parse(session->ctx, "copy n=1", &spec);
        if (!status)
            status = quern_generate(session->ctx, &request, &text);
        quern_text_free(text);
        if (status == QUERN_INVALID)
            return session_fail(session, status);
    }
    return EXIT_DONE;
}

/* A plan file is whole: what a plan is made for would change nothing of it. */
static int check_plan_alone(const struct args *args)
{
    static const struct {
        enum option_id id;
        const char *name;
    } others[] = { { OPTION_model, "model" },
                   { OPTION_tp, "tp" },
                   { OPTION_ep, "ep" },
                   { OPTION_max_tokens, "max-tokens" },
                   { OPTION_max_batch, "max-batch" },
                   { OPTION_max_seq, "max-seq" },
                   { OPTION_page, "page" },
                   { OPTION_dtype, "dtype" },
                   { OPTION_kv_dtype, "kv-dtype" } };
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (args_has(args, others[i].id))
            return complain(EXIT_USAGE, "%s=%s: must not come with --plan", others[i].name,
                            args->text[others[i].id]);
    return EXIT_DONE;
}

static int make_plan(const struct args *args, struct plan *plan)
{
    const struct plan_options options = {
        .tp = args->tp,
        .ep = args->ep,
        .max_tokens = args->max_tokens,
        .max_batch = args->max_batch,
        .max_seq = args->max_seq,
        .page = args->page,
        .dtype = args->text[OPTION_dtype],
        .kv_dtype = args->text[OPTION_kv_dtype],
    };
    struct model model;
    char warning[512], why[512];
    if (args_has(args, OPTION_plan)) {
        int code = check_plan_alone(args);
        if (!code && plan_read(args->text[OPTION_plan], plan, why, sizeof(why)))
            code = complain(EXIT_FAILED, "%s", why);
        return code;
    }
    if (!args_has(args, OPTION_model))
        return complain(EXIT_USAGE, "model: must be given: --model config.json");
    if (model_read(args->text[OPTION_model], &model, warning, why, sizeof(why)))
        return complain(EXIT_FAILED, "%s", why);
    if (*warning && !args_has(args, OPTION_quiet))
        fprintf(stderr, "quern: %s\n", warning);
    if (plan_model(&model, &options, plan, why, sizeof(why)))
        return complain(EXIT_FAILED, "%s", why);
    return EXIT_DONE;
}

/* Whether the folder of a path is there; it would be made, and where -o is mistyped nobody wants
 * that. */
static int is_in_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX];
    struct stat info;
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    return !stat(folder, &info) && S_ISDIR(info.st_mode);
}

/* The bundle's path: of -o, or with --check the word. What is there must be a bundle: SQLite would
 * take an empty file for one, and sealed a missing one. */
static int find_bundle(const struct args *args, const char **path)
{
    int is_check = args_has(args, OPTION_check);
    struct stat info;
    if (is_check && args->word_count < 2)
        return complain(EXIT_USAGE, "bundle: must be given: prebuild --check BUNDLE --model ...");
    if (!is_check && !args_has(args, OPTION_output))
        return complain(EXIT_USAGE, "output: must be given: -o bundle.qdb, or --dry-run");
    *path = is_check ? args->words[1] : args->text[OPTION_output];
    const char *name = is_check ? "bundle" : "output";
    int is_absent = stat(*path, &info);
    if (is_absent && (is_check || errno != ENOENT))
        return complain(EXIT_FAILED, "%s=%s: %s", name, *path, strerror(errno));
    if (is_absent && !is_in_folder(*path))
        return complain(EXIT_FAILED, "output=%s: must be in a folder that exists", *path);
    if (!**path || (!is_absent && (!S_ISREG(info.st_mode) || !info.st_size)))
        return complain(EXIT_FAILED, "%s=%s: must be a bundle of quern's, or not exist yet", name,
                        *path);
    return EXIT_DONE;
}

/* As many threads as --jobs, else processors, that --memory has room for. The figure is for the
 * calls of Kimi-Linear-48B: NVRTC took 158 MiB with one job and 35 more with a second, the largest
 * clang 108. One job runs however little there is. */
static int count_jobs(const struct args *args)
{
    int64_t jobs = args->jobs ? args->jobs : sysconf(_SC_NPROCESSORS_ONLN);
    int64_t most = args->memory ? args->memory / COMPILE_MIB : jobs;
    jobs = jobs > most ? most : jobs;
    return jobs > 0 ? (int)jobs : 1;
}

/* "Llama-3.1-8B" of ".../Llama-3.1-8B/config.json" and of ".../Llama-3.1-8B.json". */
static void name_model(const char *path, char name[MODEL_NAME])
{
    const char *end = path + strlen(path), *begin;
    if (end - path > 12 && !strcmp(end - 12, "/config.json"))
        end -= 12;
    else if (end - path > 5 && !strcmp(end - 5, ".json"))
        end -= 5;
    for (begin = end; begin > path && begin[-1] != '/'; begin--)
        ;
    snprintf(name, MODEL_NAME, "%.*s", (int)(end - begin), begin);
}

/* A path such as "config.json" or "./config.json" has no name in it, but its folder has, unless it
 * is the root. So has a folder's, however it is written. */
static void name_folder(const char *path, char name[MODEL_NAME])
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX];
    struct stat info;
    if (!stat(path, &info) && S_ISDIR(info.st_mode))
        snprintf(folder, sizeof(folder), "%s", path);
    else
        snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) + 1 : 1,
                 slash ? path : ".");
    char *whole = realpath(folder, NULL);
    if (whole && whole[1])
        snprintf(name, MODEL_NAME, "%s", strrchr(whole, '/') + 1);
    free(whole);
}

static void name_plan(const struct args *args, char name[MODEL_NAME])
{
    static const char *const unnamed[] = { "", "config", ".", ".." };
    name_model(args->text[args_has(args, OPTION_plan) ? OPTION_plan : OPTION_model], name);
    for (size_t i = 0; i < sizeof(unnamed) / sizeof(unnamed[0]); i++)
        if (args_has(args, OPTION_model) && !strcmp(name, unnamed[i]))
            return name_folder(args->text[OPTION_model], name);
}

/* The manifest's words for what is built. */
static void tell_origin(const struct args *args, struct batch *batch, char model[MODEL_NAME],
                        char rank[64])
{
    name_plan(args, model);
    snprintf(rank, 64, "tp=%lld ep=%lld", (long long)args->tp, (long long)args->ep);
    if (args_has(args, OPTION_plan)) /* which does not say */
        rank[0] = 0;
    batch->model = model;
    batch->rank = rank;
}

static int build_plan(struct session *session, const struct plan *plan)
{
    const struct args *args = session->args;
    struct targets targets;
    struct batch batch = { .tasks = NULL };
    const char *bundle = NULL;
    char rank[64], model[MODEL_NAME];
    int code = targets_init(&targets, args->text[OPTION_target]);
    if (!code)
        code = targets_check(session, &targets);
    if (!code)
        code = find_bundle(args, &bundle);
    if (!code && batch_init(&batch, args, session->ctx, plan, targets.names, targets.count,
                            args_has(args, OPTION_check) ? 0 : (int)args->candidates))
        code = complain(EXIT_FAILED, "out of memory");
    if (!code && !batch.count)
        code = complain(EXIT_FAILED, "quern provides none of the %d calls; --dry-run lists them",
                        plan->count);
    if (!code && !args_has(args, OPTION_check)) {
        batch.known = session->ctx;
        tell_origin(args, &batch, model, rank);
    }
    if (!code)
        code = batch_run(&batch, bundle, count_jobs(args));
    if (!code)
        code = batch_report(&batch);
    batch_fini(&batch);
    free(targets.list);
    return code;
}

/* The session plans, looks families up, and with --cache knows what was tuned; the bundle has a
 * context of its own. */
int cmd_prebuild(const struct args *args)
{
    struct session session;
    struct plan plan = { .calls = NULL };
    struct args own = *args;
    int code;
    if (!args_has(args, OPTION_cache))
        own.text[OPTION_cache] = "";
    if ((code = session_require_cache(args)))
        return code;
    code = session_open(&session, &own);
    if (!code)
        code = session_no_more_words(&session, args_has(args, OPTION_check) ? 2 : 1);
    if (!code)
        code = make_plan(args, &plan);
    if (!code && args_has(args, OPTION_dry_run))
        code =
            args_has(args, OPTION_json) ? print_json(&session, &plan) : print_text(&session, &plan);
    else if (!code)
        code = build_plan(&session, &plan);
    plan_fini(&plan);
    session_close(&session);
    return code;
}
