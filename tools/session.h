/* One run of the quern command: its context, and what every verb asks of it. */
#ifndef TOOLS_SESSION_H
#define TOOLS_SESSION_H

#include "args.h"

#include <quern.h>
#include <quern/tune.h>

struct progress;

struct session {
    const struct args *args;
    struct quern_context *ctx;
    struct progress *progress; /* a bar that log lines must not run into; NULL: none */
};

/* Options of the context as the command line gives them; the session is the log's user. */
void session_options(struct session *session, struct quern_options *options);
/* Load what --plugin names. The library's status. */
int session_load_plugins(struct session *session);
/* Make the context and load the plugins. An exit code, after complaining; close it in any case. */
int session_open(struct session *session, const struct args *args);
/* Before session_open() of what only reads: a file named by --cache must be there, since one that
 * is not would be made. An exit code, after complaining. */
int session_require_cache(const struct args *args);
void session_close(struct session *session);

/* Complain with the context's error text. EXIT_USAGE for what the caller asked wrongly, else
 * EXIT_FAILED. */
int session_fail(struct session *session, int status);

/* The family that `name` means; complains and returns NULL if there is none. */
const struct quern_family *session_family(struct session *session, const char *name);
/* FAMILY k=v ... from words[first] on, validated. An exit code. */
int session_spec(struct session *session, int first, struct quern_spec *spec);
/* Canonical text of a spec. */
void session_spec_text(const struct quern_spec *spec, char text[1024]);
/* A request for the spec with --variant and --config. */
void session_request(const struct session *session, const struct quern_spec *spec,
                     struct quern_request *request);
/* Refuse words after the last one that the verb takes. */
int session_no_more_words(const struct session *session, int first);

#endif
