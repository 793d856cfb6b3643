/* The pipeline, from a bucket to a loaded kernel. qn_build() is all of it:
 *
 *     bucket --choose--> variant + config --plan--> steps --emit--> units of source + keys
 *                                                                    |
 *        kernel <--load-- modules <-- artifacts <-- store: hit ------+
 *                                         ^                          | miss
 *                                         +----- compile, put <------+  under the key's lease
 *
 * A unit is a distinct (source, defines); steps that share one share its artifact, and units that
 * the store lacks are made side by side. Everything a
 * build owns hangs on struct build and is released in one place. Letters of --dump: b bucket,
 * c config, p plan, e emitted source, k keys, a artifacts.
 */
#include "jit/build.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/candidate.h"
#include "jit/device.h"
#include "jit/plan.h"
#include "jit/target.h"
#include "jit/text.h"

#define COMPILE_TIMEOUT_S 120.0
#define LEASE_TIMEOUT_S 150.0
#define LEASE_EXPIRY_S 30.0
#define MAX_RANK 4096
#define MAX_RELOADS 8

struct build {
    struct quern_context *ctx;
    const struct qn_build_request *request;
    const struct qn_backend *backend; /* of the target's kind */
    struct qn_device *device;
    char options[512];
    char compiler[256]; /* identity; "" when there is none or sealed: any stored row will do */
    struct quern_message no_compiler;
    struct qn_unit units[QUERN_MAX_STEPS];
    int unit_count;
    int unit_of[QUERN_MAX_STEPS]; /* step -> unit, -1 for a memset */
    struct qn_artifact artifacts[QUERN_MAX_STEPS];
    enum quern_artifact_from from[QUERN_MAX_STEPS];
    double compile_ms[QUERN_MAX_STEPS];
    struct qn_artifact refused[MAX_RELOADS]; /* of the unit that is being loaded: they do not */
    int refused_count;
    struct quern_kernel *kernel;
    pthread_mutex_t lock; /* log: units compile side by side */
    char *log;            /* a compiler's, after a failure */
};

/* ---- Plan ---------------------------------------------------------------------------------- */

static void report_choice(struct build *build, const struct qn_choice *choice)
{
    struct quern_report *report = &build->kernel->report;
    snprintf(report->variant, sizeof(report->variant), "%s", choice->variant->name);
    qn_target_format(build->request->target, report->target, sizeof(report->target));
    quern_spec_text(&build->request->bucket->spec, report->bucket, sizeof(report->bucket));
    qn_config_text(choice->variant, choice->config, report->config, sizeof(report->config));
    report->config_from = choice->from;
    if (qn_is_dumped(build->ctx, 'b'))
        qn_log(build->ctx, QUERN_LOG_DEBUG, "bucket: %s", report->bucket);
    if (qn_is_dumped(build->ctx, 'c'))
        qn_log(build->ctx, QUERN_LOG_DEBUG, "config: %s %s", report->variant, report->config);
}

static void dump_plan(struct build *build)
{
    const struct quern_plan *plan = build->kernel->plan;
    if (!qn_is_dumped(build->ctx, 'p'))
        return;
    qn_log(build->ctx, QUERN_LOG_DEBUG, "plan: %d steps, workspace %lld bytes", plan->step_count,
           (long long)plan->workspace_bytes);
    for (int i = 0; i < plan->step_count; i++)
        qn_log(build->ctx, QUERN_LOG_DEBUG, "plan: step %d %s %s:%s", i, plan->steps[i].name,
               plan->steps[i].source, plan->steps[i].entry);
}

static int stage_plan(struct build *build, const struct qn_choice *choice)
{
    struct quern_kernel *kernel = build->kernel;
    const struct qn_build_request *request = build->request;
    const struct quern_problem problem = { &request->bucket->spec, request->target,
                                           request->profile, request->bucket->alignment };
    struct quern_message why;

    kernel->family = request->bucket->spec.family;
    kernel->variant = choice->variant;
    kernel->bucket = *request->bucket;
    memcpy(kernel->config, choice->config, sizeof(kernel->config));
    report_choice(build, choice);
    choice->variant->plan(&problem, choice->config, kernel->plan);
    if (qn_plan_check(kernel->plan, choice->variant->name, &why))
        return qn_fail_why(build->ctx, QUERN_INTERNAL, &why);
    kernel->report.workspace_bytes = kernel->plan->workspace_bytes;
    dump_plan(build);
    return QUERN_OK;
}

/* ---- Emit ---------------------------------------------------------------------------------- */

/* Of the template text alone, without defines: what a tuned row remembers as its template. */
static int digest_templates(struct build *build)
{
    char hexes[QUERN_MAX_STEPS * QN_KEY_HEX] = "", hex[QN_KEY_HEX];
    for (int u = 0; u < build->unit_count; u++) {
        const struct qn_unit *unit = &build->units[u];
        qn_key_hex(unit->source + unit->body, unit->source_bytes - unit->body, hex);
        strcat(hexes, hex);
    }
    qn_key_hex(hexes, strlen(hexes), hex);
    build->kernel->digest = strdup(hex);
    return build->kernel->digest ? QUERN_OK : qn_fail(build->ctx, QUERN_NO_MEMORY, "out of memory");
}

static int stage_emit(struct build *build)
{
    struct quern_kernel *kernel = build->kernel;
    build->backend->options(build->request->target, build->options, sizeof(build->options));
    QN_TRY(qn_emit(build->ctx, kernel->family, kernel->plan, build->request->target, build->options,
                   build->units, &build->unit_count, build->unit_of));
    for (int u = 0; u < build->unit_count; u++) {
        if (qn_is_dumped(build->ctx, 'e'))
            qn_log(build->ctx, QUERN_LOG_DEBUG, "source of step %s: %zu bytes (quern gen shows it)",
                   kernel->plan->steps[build->units[u].first_step].name,
                   build->units[u].source_bytes);
        if (qn_is_dumped(build->ctx, 'k'))
            qn_log(build->ctx, QUERN_LOG_DEBUG, "key:\n%s", build->units[u].key_text);
    }
    return digest_templates(build);
}

/* ---- Artifacts ----------------------------------------------------------------------------- */

static int accept_any(void *user, const struct qn_artifact *artifact)
{
    struct build *build = user;
    struct quern_target target;
    struct quern_message why;
    for (int i = 0; i < build->refused_count; i++) {
        const struct qn_artifact *refused = &build->refused[i];
        if (refused->blob_bytes == artifact->blob_bytes &&
            !memcmp(refused->blob, artifact->blob, artifact->blob_bytes))
            return 0;
    }
    return !qn_target_parse(artifact->target, &target, &why) &&
           !build->backend->accepts(build->device, &target, &why);
}

static int accept_none(void *user, const struct qn_artifact *artifact)
{
    (void)user, (void)artifact;
    return 0;
}

/* The local compiler's row, else one of a base; without a compiler, or sealed, the newest. Of
 * another compiler's rows only one that runs here. */
static int find_artifact(struct build *build, int u, bool is_again)
{
    const char *compiler = build->compiler[0] ? build->compiler : NULL;
    int (*accept)(void *, const struct qn_artifact *) =
        build->request->is_loaded ? accept_any : NULL;
    if (compiler && build->request->is_local)
        accept = accept_none;
    return (is_again ? qn_artifact_find_again : qn_artifact_find)(
        build->ctx->store, build->units[u].key_text, compiler, accept, build, &build->artifacts[u]);
}

static int fail_sealed(struct build *build, int u)
{
    const char *cache = qn_store_path(build->ctx->store);
    const char *base = qn_store_base(build->ctx->store) ? build->ctx->options.base : "";
    bool has_both = *cache && *base;
    char hex[QN_KEY_HEX];
    qn_key_hex(build->units[u].key_text, strlen(build->units[u].key_text), hex);
    return qn_fail(build->ctx, QUERN_SEALED,
                   "mode=sealed: artifact %s (%s, step %s, config %s %s) is not in %s%s%s%s%s", hex,
                   build->kernel->report.bucket,
                   build->kernel->plan->steps[build->units[u].first_step].name,
                   build->kernel->report.variant, build->kernel->report.config,
                   *cache   ? "cache="
                   : !*base ? "the cache (in memory)"
                            : "",
                   cache, has_both ? " nor in " : "", *base ? "base=" : "", base);
}

static char *text_dup(const char *text)
{
    return strdup(text ? text : "");
}

/* The line of a report that is the entry's, "" if it has none: a report has a line an entry,
 * "entry=NAME registers=64 spills=0 shared=1024". */
static const char *report_line(const char *report, const char *entry)
{
    char begin[80];
    size_t length = (size_t)snprintf(begin, sizeof(begin), "entry=%s ", entry);
    while (report && *report) {
        if (!strncmp(report, begin, length))
            return report;
        report += strcspn(report, "\n");
        report += *report == '\n';
    }
    return "";
}

/* The names of all entries of a report: "copy, copy_tail". */
static void report_names(const char *report, char *text, size_t bytes)
{
    size_t length = 0;
    text[0] = '\0';
    for (const char *at = report; (at = strstr(at, "entry=")) && length < bytes; at++) {
        const char *name = at + strlen("entry=");
        length += (size_t)snprintf(text + length, bytes - length, "%s%.*s", length ? ", " : "",
                                   (int)strcspn(name, " \n"), name);
    }
}

/* A compiler that reports names every entry there is: one that a step asks for and that is not
 * among them would only be missed when the artifact is loaded, perhaps on another machine. */
static int check_entries(const struct build *build, int u, const char *report,
                         struct quern_message *why)
{
    const struct quern_plan *plan = build->kernel->plan;
    char names[256];
    for (int i = 0; report && *report && i < plan->step_count; i++) {
        if (build->unit_of[i] != u || *report_line(report, plan->steps[i].entry))
            continue;
        report_names(report, names, sizeof(names));
        quern_refuse(why, "entry=%s: not in %s, which has %s", plan->steps[i].entry,
                     plan->steps[i].source, names);
        return QUERN_COMPILE;
    }
    return QUERN_OK;
}

/* Compile unit u and store it; the artifact then owns the blob. */
static int compile_artifact(struct build *build, int u)
{
    struct quern_context *ctx = build->ctx;
    struct qn_unit *unit = &build->units[u];
    struct qn_artifact *artifact = &build->artifacts[u];
    const struct qn_compile_request request = { unit->source, unit->source_bytes,
                                                build->request->target, build->options,
                                                COMPILE_TIMEOUT_S };
    struct qn_compile_result result = { 0 };
    struct quern_message why;
    double start = qn_now_ms();
    int status = build->backend->compile(build->device, &request, &result, &why);
    if (!status)
        status = check_entries(build, u, result.report, &why);
    if (status) {
        pthread_mutex_lock(&build->lock);
        free(build->log);
        build->log = result.log;
        pthread_mutex_unlock(&build->lock);
        result.log = NULL;
        qn_compile_result_fini(&result);
        return qn_fail_why(ctx, status, &why);
    }
    build->compile_ms[u] = qn_now_ms() - start;
    *artifact = (struct qn_artifact){
        .text = text_dup(unit->key_text),
        .source = text_dup(unit->source),
        .compiler = text_dup(build->compiler),
        .target = text_dup(build->kernel->report.target),
        .family = text_dup(build->kernel->family->name),
        .log = result.log,
        .report = result.report,
        .blob = result.blob,
        .blob_bytes = result.blob_bytes,
        .compile_ms = build->compile_ms[u],
    };
    if (!artifact->text || !artifact->source || !artifact->compiler || !artifact->target ||
        !artifact->family)
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    qn_artifact_put(ctx->store, artifact);
    build->from[u] = QUERN_FROM_COMPILER;
    qn_log(ctx, QUERN_LOG_INFO, "compiled %s step %s (%s) in %.1f ms", build->kernel->family->name,
           build->kernel->plan->steps[unit->first_step].name, build->kernel->report.config,
           build->compile_ms[u]);
    return QUERN_OK;
}

/* What the store lacks is made, once across processes: the holder of the key's lease compiles, the
 * others find its row. */
static int make_artifact(struct build *build, int u)
{
    struct qn_lease *lease = NULL;
    char hex[QN_KEY_HEX], name[64];
    int status = QUERN_OK;

    if (build->ctx->is_sealed)
        return fail_sealed(build, u);
    if (!build->compiler[0])
        return qn_fail_why(build->ctx, QUERN_NO_COMPILER, &build->no_compiler);
    qn_key_hex(build->units[u].key_text, strlen(build->units[u].key_text), hex);
    snprintf(name, sizeof(name), "compile %s", hex);
    int waited = qn_lease_acquire(build->ctx->store, name, LEASE_TIMEOUT_S, LEASE_EXPIRY_S, &lease);
    if (waited != QN_STORE_OK || find_artifact(build, u, true) != QN_STORE_OK)
        status = compile_artifact(build, u);
    qn_lease_release(lease);
    return status;
}

static int get_artifact(struct build *build, int u)
{
    build->from[u] = QUERN_FROM_DISK;
    return find_artifact(build, u, false) == QN_STORE_OK ? QUERN_OK : make_artifact(build, u);
}

/* A unit that is made in a thread of its own. */
struct making {
    struct build *build;
    int unit, status;
    char why[1024]; /* errors are the thread's: this one is handed on */
    pthread_t thread;
};

static void *making_main(void *user)
{
    struct making *making = user;
    making->status = make_artifact(making->build, making->unit);
    if (making->status)
        snprintf(making->why, sizeof(making->why), "%s", quern_errmsg(making->build->ctx));
    return NULL;
}

/* Units are made side by side, the first in the calling thread, by as many threads as the context
 * may still have: a tuner's builds share them. */
static int make_artifacts(struct build *build, const int *missing, int count)
{
    struct making makings[QUERN_MAX_STEPS];
    atomic_int *makers = &build->ctx->makers;
    int thread_count = 0, status = QUERN_OK;
    if (build->request->is_loaded)
        qn_bases_tell(build->ctx);
    while (thread_count < count - 1 && atomic_fetch_add(makers, 1) < build->ctx->max_makers) {
        struct making *making = &makings[thread_count];
        *making = (struct making){ .build = build, .unit = missing[count - 1 - thread_count] };
        if (pthread_create(&making->thread, NULL, making_main, making))
            break;
        thread_count++;
    }
    if (thread_count < count - 1)
        atomic_fetch_sub(makers, 1);
    for (int i = 0; i < count - thread_count && !status; i++)
        status = make_artifact(build, missing[i]);
    for (int i = 0; i < thread_count; i++) {
        pthread_join(makings[i].thread, NULL);
        if (!status && makings[i].status)
            status = qn_fail(build->ctx, makings[i].status, "%s", makings[i].why);
    }
    atomic_fetch_sub(makers, thread_count);
    return status;
}

static int stage_artifacts(struct build *build)
{
    int missing[QUERN_MAX_STEPS], count = 0;
    if (!build->ctx->is_sealed &&
        build->backend->compiler(build->device, build->compiler, sizeof(build->compiler),
                                 &build->no_compiler))
        build->compiler[0] = '\0';
    for (int u = 0; u < build->unit_count; u++) {
        build->from[u] = QUERN_FROM_DISK;
        if (find_artifact(build, u, false) != QN_STORE_OK)
            missing[count++] = u;
    }
    return count ? make_artifacts(build, missing, count) : QUERN_OK;
}

/* ---- Load ---------------------------------------------------------------------------------- */

/* The module of unit u and the functions of the steps that use it. */
static int load_unit(struct build *build, int u, double *load_ms)
{
    struct quern_kernel *kernel = build->kernel;
    struct quern_message why;
    double start = qn_now_ms();
    int status =
        build->backend->load(build->device, build->request->target, build->artifacts[u].blob,
                             build->artifacts[u].blob_bytes, &kernel->modules[u], &why);
    for (int i = 0; i < kernel->plan->step_count && !status; i++) {
        if (build->unit_of[i] == u)
            status =
                build->backend->function(build->device, kernel->modules[u],
                                         kernel->plan->steps[i].entry, &kernel->functions[i], &why);
    }
    *load_ms = qn_now_ms() - start;
    return status ? qn_fail_why(build->ctx, status, &why) : QUERN_OK;
}

/* Another artifact for one that was stored and does not load, whatever its hash says. With a
 * compiler the row is set aside, or passed over where it is a base's, and made again if no other
 * file has one. Without one, or sealed, every row stays, since another machine's driver may take
 * it, and the next older one is tried. */
static int replace_artifact(struct build *build, int u)
{
    struct qn_artifact *artifact = &build->artifacts[u];
    int status;
    if (build->compiler[0]) {
        qn_artifact_drop(build->ctx->store, artifact);
        qn_artifact_fini(artifact);
        status = get_artifact(build, u);
        if (status)
            qn_log(build->ctx, QUERN_LOG_WARN, "%s", quern_errmsg(build->ctx));
        return status;
    }
    build->refused[build->refused_count++] = *artifact;
    *artifact = (struct qn_artifact){ 0 };
    return find_artifact(build, u, true) == QN_STORE_OK ? QUERN_OK : QUERN_LOAD;
}

static void refused_fini(struct build *build)
{
    while (build->refused_count)
        qn_artifact_fini(&build->refused[--build->refused_count]);
}

/* The caller reads why the first one did not load, unless the last has a reason itself. */
static int reload_unit(struct build *build, int u, double *load_ms)
{
    struct quern_kernel *kernel = build->kernel;
    struct quern_message first;
    int status = QUERN_LOAD;
    quern_refuse(&first, "%s", quern_errmsg(build->ctx));
    for (int i = 0; i < MAX_RELOADS && status == QUERN_LOAD; i++) {
        if (kernel->modules[u])
            build->backend->unload(build->device, kernel->modules[u]);
        kernel->modules[u] = NULL;
        if (replace_artifact(build, u)) {
            status = qn_fail_why(build->ctx, QUERN_LOAD, &first);
            break;
        }
        status = load_unit(build, u, load_ms);
        if (build->from[u] == QUERN_FROM_COMPILER)
            break;
    }
    refused_fini(build);
    return status;
}

static int stage_load(struct build *build, double load_ms[QUERN_MAX_STEPS])
{
    for (int u = 0; u < build->unit_count; u++) {
        int status = load_unit(build, u, &load_ms[u]);
        if (status == QUERN_LOAD && build->from[u] == QUERN_FROM_DISK)
            status = reload_unit(build, u, &load_ms[u]);
        if (status)
            return status;
    }
    return QUERN_OK;
}

/* The number behind `name` in a line, or `missing`. */
static int64_t report_number(const char *line, const char *name, int64_t missing)
{
    const char *found = strstr(line, name);
    return found && found < line + strcspn(line, "\n") ? strtoll(found + strlen(name), NULL, 10)
                                                       : missing;
}

static void report_steps(struct build *build, const double load_ms[QUERN_MAX_STEPS])
{
    struct quern_report *report = &build->kernel->report;
    const struct quern_plan *plan = build->kernel->plan;
    report->artifact = QUERN_FROM_MEMORY;
    report->step_count = plan->step_count;
    for (int i = 0; i < plan->step_count; i++) {
        struct quern_step_report *step = &report->steps[i];
        int u = build->unit_of[i];
        memcpy(step->name, plan->steps[i].name, sizeof(step->name));
        step->registers = step->spills = -1;
        if (u < 0)
            continue;
        const char *line = report_line(build->artifacts[u].report, plan->steps[i].entry);
        step->from = (int)build->from[u];
        step->compile_ms = build->units[u].first_step == i ? build->compile_ms[u] : 0;
        step->load_ms = build->units[u].first_step == i ? load_ms[u] : 0;
        step->registers = (int)report_number(line, " registers=", -1);
        step->spills = (int)report_number(line, " spills=", -1);
        step->shared_bytes = report_number(line, " shared=", 0) + plan->steps[i].shared_bytes;
        if (step->from > report->artifact)
            report->artifact = step->from;
        if (qn_is_dumped(build->ctx, 'a'))
            qn_log(build->ctx, QUERN_LOG_DEBUG, "artifact: step %s, %zu bytes, %s", step->name,
                   build->artifacts[u].blob_bytes,
                   step->from == QUERN_FROM_DISK ? "from the store" : "compiled");
    }
}

/* ---- All of it ----------------------------------------------------------------------------- */

static int build_init(struct build *build, struct quern_context *ctx,
                      const struct qn_build_request *request)
{
    memset(build, 0, sizeof(*build));
    pthread_mutex_init(&build->lock, NULL);
    build->ctx = ctx;
    build->request = request;
    QN_TRY(qn_device_for(ctx, request->target, &build->backend, &build->device));
    build->kernel = calloc(1, sizeof(*build->kernel));
    if (build->kernel)
        build->kernel->plan = calloc(1, sizeof(*build->kernel->plan));
    return build->kernel && build->kernel->plan ? QUERN_OK
                                                : qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
}

static void build_fini(struct build *build)
{
    for (int u = 0; u < build->unit_count; u++)
        qn_artifact_fini(&build->artifacts[u]);
    qn_units_fini(build->units, build->unit_count);
    qn_kernel_destroy(build->ctx, build->kernel);
    pthread_mutex_destroy(&build->lock);
    free(build->log);
}

/* A bucket served by a config that was not tuned for it: what a sweep will want to know. Who only
 * builds is not served. */
static void record_miss(struct build *build)
{
    const struct quern_report *report = &build->kernel->report;
    char *text, *group;
    if (report->config_from == QUERN_CONFIG_GIVEN || report->config_from == QUERN_CONFIG_TUNED ||
        qn_tuned_key(build->request->bucket, build->request->profile, &text, &group))
        return;
    qn_miss_put(build->ctx->store, text, report->bucket, build->kernel->family->name);
    free(text);
    free(group);
}

/* Whoever asked for the compiler's log gets it, else the log hook does. */
static void hand_over_log(struct build *build, char **log)
{
    if (log) {
        *log = build->log;
        build->log = NULL;
    } else if (build->log && *build->log) {
        qn_log(build->ctx, QUERN_LOG_WARN, "compiler log:\n%s", build->log);
    }
}

/* What is chosen without the tuned rows of `files` files, to its end. *from: where it came from. */
static int build_choice(struct quern_context *ctx, const struct qn_build_request *request,
                        int files, struct quern_kernel **kernel, char **log,
                        enum quern_config_from *from)
{
    double start = qn_now_ms(), load_ms[QUERN_MAX_STEPS] = { 0 };
    struct qn_choice choice = { .from = QUERN_CONFIG_GIVEN };
    struct build build;

    int status = build_init(&build, ctx, request);
    if (!status)
        status = qn_choose_without(ctx, request, files, &choice);
    *from = choice.from;
    if (!status)
        status = stage_plan(&build, &choice);
    if (!status)
        status = stage_emit(&build);
    if (!status)
        status = stage_artifacts(&build);
    if (!status && request->is_loaded)
        status = stage_load(&build, load_ms);
    if (!status) {
        report_steps(&build, load_ms);
        if (request->is_loaded)
            record_miss(&build);
        build.kernel->report.first_call_ms = qn_now_ms() - start;
        *kernel = build.kernel;
        build.kernel = NULL;
    }
    hand_over_log(&build, log);
    build_fini(&build);
    return status;
}

/* Sealed, a winner whose kernel is nowhere is no reason to fail while another config's is here: a
 * cache that outlived an update has winners that the new bundle knows nothing of. The caller reads
 * what the best choice lacks. */
int qn_build(struct quern_context *ctx, const struct qn_build_request *request,
             struct quern_kernel **kernel, char **log)
{
    enum quern_config_from from;
    char first[1024];
    int status = build_choice(ctx, request, 0, kernel, log, &from);
    if (status != QUERN_SEALED)
        return status;
    snprintf(first, sizeof(first), "%s", quern_errmsg(ctx));
    for (int files = 1;
         status == QUERN_SEALED && (from == QUERN_CONFIG_TUNED || from == QUERN_CONFIG_NEIGHBOUR);
         files++)
        status = build_choice(ctx, request, files, kernel, log, &from);
    if (status == QUERN_OK)
        qn_log(ctx, QUERN_LOG_INFO, "another config serves: %s", first);
    return status == QUERN_SEALED ? qn_fail(ctx, status, "%s", first) : status;
}

void qn_kernel_destroy(struct quern_context *ctx, struct quern_kernel *kernel)
{
    if (!kernel)
        return;
    for (int u = 0; u < QUERN_MAX_STEPS && kernel->modules[u]; u++)
        ctx->backend->unload(ctx->device, kernel->modules[u]);
    free(kernel->plan);
    free(kernel->digest);
    free(kernel);
}

void qn_compile_result_fini(struct qn_compile_result *result)
{
    free(result->blob);
    free(result->log);
    free(result->report);
    *result = (struct qn_compile_result){ 0 };
}

/* ---- Public forms that load nothing -------------------------------------------------------- */

int qn_target_of(struct quern_context *ctx, const struct quern_request *request,
                 struct quern_target *target, struct quern_profile *profile)
{
    struct quern_message why;
    *target = ctx->target;
    if (request->target && qn_target_parse(request->target, target, &why))
        return qn_fail_why(ctx, QUERN_INVALID, &why);
    if (target->kind == QUERN_CUDA && target->sm >= 90 && !target->sm_suffix)
        return qn_fail(ctx, QUERN_INVALID,
                       "target=sm_%d: must be sm_%da, which is what such a device asks for",
                       target->sm, target->sm);
    return qn_profile_for(ctx, target, profile);
}

/* The candidate of request->rank, as the build's variant and config; they point into *candidate. */
static int name_candidate(struct quern_context *ctx, const struct quern_request *request,
                          struct qn_build_request *build, struct qn_candidate *candidate)
{
    struct qn_candidates candidates;
    char *text, *group;
    if (request->rank < 0 || request->rank > MAX_RANK || request->config)
        return qn_fail(ctx, QUERN_INVALID,
                       "request.rank=%d: must be 0 to %d, and 0 with request.config", request->rank,
                       MAX_RANK);
    if (qn_tuned_key(build->bucket, build->profile, &text, &group))
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    int status = qn_candidates_list(&candidates, ctx, build, group, request->rank + 1);
    if (!status && candidates.count <= request->rank)
        status = qn_fail(ctx, QUERN_MISS, "request.rank=%d: must be below %d: there are no more",
                         request->rank, candidates.count);
    if (!status) {
        *candidate = candidates.list[request->rank];
        build->variant = candidate->variant->name;
        build->config = candidate->text;
    }
    qn_candidates_fini(&candidates, ctx);
    free(text);
    free(group);
    return status;
}

int quern_build(struct quern_context *ctx, const struct quern_request *request,
                struct quern_report *report)
{
    struct quern_target target;
    struct quern_profile profile;
    struct qn_bucket bucket;
    struct quern_kernel *kernel;
    QN_TRY(qn_request_check(ctx, request));
    QN_TRY(qn_require(ctx, "report", report));
    QN_TRY(qn_target_of(ctx, request, &target, &profile));
    qn_bucket_make(request->spec, request->arrays, &bucket);
    struct qn_build_request build = { &bucket,         &target, &profile, request->variant,
                                      request->config, false,   false };
    struct qn_candidate candidate;
    if (request->rank)
        QN_TRY(name_candidate(ctx, request, &build, &candidate));
    QN_TRY(qn_build(ctx, &build, &kernel, NULL));
    *report = kernel->report;
    qn_kernel_destroy(ctx, kernel);
    return request->origin ? qn_origin_note(ctx, request->origin, &build, report) : QUERN_OK;
}

/* Choose, plan and emit: what a build does before it needs an artifact. */
static int emit_only(struct build *build, struct quern_context *ctx,
                     const struct qn_build_request *request)
{
    struct qn_choice choice;
    QN_TRY(build_init(build, ctx, request));
    QN_TRY(qn_choose(ctx, request, &choice));
    QN_TRY(stage_plan(build, &choice));
    return stage_emit(build);
}

int quern_generate(struct quern_context *ctx, const struct quern_request *request, char **text)
{
    struct quern_target target;
    struct quern_profile profile;
    struct qn_bucket bucket;
    struct build build;
    struct qn_text out = { 0 };
    QN_TRY(qn_request_check(ctx, request));
    QN_TRY(qn_require(ctx, "text", text));
    QN_TRY(qn_target_of(ctx, request, &target, &profile));
    qn_bucket_make(request->spec, request->arrays, &bucket);
    const struct qn_build_request inner = { &bucket,         &target, &profile, request->variant,
                                            request->config, false,   false };
    int status = emit_only(&build, ctx, &inner);
    for (int u = 0; !status && u < build.unit_count; u++)
        qn_text_append(&out, build.units[u].source, build.units[u].source_bytes);
    if (!status && out.is_failed)
        status = qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    if (status)
        qn_text_fini(&out);
    else
        *text = out.data;
    build_fini(&build);
    return status;
}

int qn_unit_keys(struct quern_context *ctx, const struct qn_build_request *request, char ***keys,
                 int *count)
{
    struct build build;
    int status = emit_only(&build, ctx, request);
    char **taken = status ? NULL : calloc(QUERN_MAX_STEPS, sizeof(*taken));
    if (!status && !taken)
        status = qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    if (!status) {
        for (int u = 0; u < build.unit_count; u++) {
            taken[u] = build.units[u].key_text;
            build.units[u].key_text = NULL;
        }
        *keys = taken;
        *count = build.unit_count;
    }
    build_fini(&build);
    return status;
}

int qn_build_digest(struct quern_context *ctx, const struct qn_build_request *request,
                    char digest[QN_KEY_HEX])
{
    struct build build;
    int status = emit_only(&build, ctx, request);
    if (!status)
        memcpy(digest, build.kernel->digest, QN_KEY_HEX);
    build_fini(&build);
    return status;
}

void quern_text_free(char *text)
{
    free(text);
}
