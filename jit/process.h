/* Run a program: bytes in, bytes out, a time limit. jit/process.c says how. */
#ifndef QN_PROCESS_H
#define QN_PROCESS_H

#include <stddef.h>

struct qn_process_request {
    const char *path;         /* absolute: the child works in "/" */
    char *const *argv;        /* NULL-terminated */
    char *const *environment; /* NULL-terminated */
    const void *input;        /* its standard input */
    size_t input_bytes;
    size_t output_limit; /* more than this on its standard output, and it is killed */
    double timeout_s;    /* it and its group are killed after this; 0: never */
};

enum qn_process_end {
    QN_PROCESS_EXITED,    /* code: exit status */
    QN_PROCESS_SIGNALLED, /* code: signal */
    QN_PROCESS_TIMED_OUT,
    QN_PROCESS_TOO_LONG, /* output_limit */
    QN_PROCESS_REAPED    /* ended, but the host took the status: SIGCHLD ignored, or wait(-1) */
};

/* Both texts are malloc'ed, never NULL after success, and followed by a 0 that does not count. */
struct qn_process_result {
    enum qn_process_end end;
    int code;
    char *output; /* standard output */
    size_t output_bytes;
    char *log; /* standard error: its first MiB */
    size_t log_bytes;
};

/* 0, or the errno that kept it from running (ENOENT, EACCES, ENOMEM, ...): then *result is
 * untouched. Any number of threads may call it; the caller must not be cancelled inside. */
int qn_process_run(const struct qn_process_request *request, struct qn_process_result *result);
void qn_process_result_fini(struct qn_process_result *result);

#endif
