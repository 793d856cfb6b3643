/* One run of the quern command: the context from the options, the spec from the words.
 *
 * The library says what is wrong and what is allowed; this file adds the word that was probably
 * meant and turns outcomes into exit codes. The log goes to stderr, a line a message.
 */
#include "session.h"

#include "nearest.h"
#include "progress.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static void say(void *user, int level, const char *line)
{
    const struct session *session = user;
    size_t length = strlen(line);

    (void)level;
    while (length && line[length - 1] == '\n') /* a compiler's log ends as it likes */
        length--;
    if (session->progress)
        progress_clear(session->progress);
    fprintf(stderr, "quern: %.*s\n", (int)length, line);
}

void session_options(struct session *session, struct quern_options *options)
{
    const struct args *args = session->args;

    *options = (struct quern_options)QUERN_OPTIONS_INIT;
    options->cache = args->text[OPTION_cache];
    options->device = args->text[OPTION_device];
    options->profile = args->text[OPTION_device_profile];
    options->dump = args->text[OPTION_dump];
    if (args->verbosity == 1)
        options->log_level = QUERN_LOG_INFO;
    if (args->verbosity > 1 || options->dump)
        options->log_level = QUERN_LOG_DEBUG;
    options->log = args_has(args, OPTION_quiet) ? NULL : say;
    options->user = session;
}

int session_load_plugins(struct session *session)
{
    int status = QUERN_OK;
    for (int i = 0; !status && i < session->args->plugin_count; i++)
        status = quern_plugin_load(session->ctx, session->args->plugins[i]);
    return status;
}

int session_open(struct session *session, const struct args *args)
{
    struct quern_options options;

    *session = (struct session){ .args = args };
    session_options(session, &options);
    int status = quern_context_create(&options, &session->ctx);
    if (!status)
        status = session_load_plugins(session);
    return status ? session_fail(session, status) : EXIT_DONE;
}

int session_require_cache(const struct args *args)
{
    const char *path = args->text[OPTION_cache];
    struct stat there;

    if (!path || !*path || !stat(path, &there))
        return EXIT_DONE;
    return complain(EXIT_FAILED, "cache=%s: %s", path, strerror(errno));
}

void session_close(struct session *session)
{
    quern_context_destroy(session->ctx);
    session->ctx = NULL;
}

static enum exit_code exit_code_of(int status)
{
    return status == QUERN_INVALID ? EXIT_USAGE : EXIT_FAILED;
}

int session_fail(struct session *session, int status)
{
    const char *text = quern_errmsg(session->ctx);
    return complain(exit_code_of(status), "%s", *text ? text : quern_status_text(status));
}

/* As session_fail(), with the word that was probably meant. */
static int fail_near(struct session *session, int status, const struct nearest *nearest)
{
    if (!nearest->best)
        return session_fail(session, status);
    return complain(exit_code_of(status), "%s; did you mean %s?", quern_errmsg(session->ctx),
                    nearest->best);
}

static int init_spec(struct session *session, const char *name, struct quern_spec *spec)
{
    struct nearest nearest;
    int status = quern_spec_init(session->ctx, name, spec);
    if (!status)
        return EXIT_DONE;
    nearest_init(&nearest, name);
    for (int i = 0; i < quern_family_count(session->ctx); i++) {
        struct quern_family_description family;
        quern_family_describe(quern_family_at(session->ctx, i), &family);
        nearest_offer(&nearest, family.name);
    }
    return fail_near(session, status, &nearest);
}

const struct quern_family *session_family(struct session *session, const char *name)
{
    struct quern_spec spec;
    return init_spec(session, name, &spec) ? NULL : spec.family;
}

static int set_param(struct session *session, struct quern_spec *spec, const char *word,
                     uint32_t *given)
{
    char name[64];
    const char *value;
    struct nearest nearest;
    struct quern_family_description family;

    quern_family_describe(spec->family, &family);
    if (args_split(word, name, sizeof(name), &value))
        return complain(EXIT_USAGE,
                        "word=%s: must be PARAMETER=VALUE; quern families %s lists them", word,
                        family.name);
    nearest_init(&nearest, name);
    for (int i = 0; i < family.param_count; i++) {
        if (strcmp(family.params[i].name, name)) {
            nearest_offer(&nearest, family.params[i].name);
            continue;
        }
        if (*given >> i & 1)
            return complain(EXIT_USAGE, "%s: %s is given twice, must be given once", word, name);
        *given |= 1u << i;
        int status = quern_spec_set(session->ctx, spec, name, value);
        return status ? session_fail(session, status) : EXIT_DONE;
    }
    return fail_near(session, quern_spec_set(session->ctx, spec, name, value), &nearest);
}

int session_spec(struct session *session, int first, struct quern_spec *spec)
{
    const struct args *args = session->args;
    uint32_t given = 0;

    if (first >= args->word_count)
        return complain(EXIT_USAGE,
                        "family: must be given, as in quern %s%s gemm m=512 n=512 k=512",
                        args->words[0], first > 1 ? " explain" : "");
    int code = init_spec(session, args->words[first], spec);
    for (int i = first + 1; !code && i < args->word_count; i++)
        code = set_param(session, spec, args->words[i], &given);
    if (code)
        return code;
    int status = quern_spec_validate(session->ctx, spec);
    return status ? session_fail(session, status) : EXIT_DONE;
}

void session_spec_text(const struct quern_spec *spec, char text[1024])
{
    quern_spec_text(spec, text, 1024);
}

void session_request(const struct session *session, const struct quern_spec *spec,
                     struct quern_request *request)
{
    *request = (struct quern_request)QUERN_REQUEST_INIT;
    request->spec = spec;
    request->variant = session->args->text[OPTION_variant];
    request->config = session->args->text[OPTION_config];
}

int session_no_more_words(const struct session *session, int first)
{
    const struct args *args = session->args;
    if (first >= args->word_count)
        return EXIT_DONE;
    return complain(EXIT_USAGE, "word=%s: one too many; quern %s --help", args->words[first],
                    args->words[0]);
}
