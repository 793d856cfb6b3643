/* NVRTC 12.9 or newer, dlopen'ed when something has to be compiled. It runs in this process: a
 * time-out is not honoured, and a crash of the compiler is one of the process. */
#ifndef QN_NVRTC_H
#define QN_NVRTC_H

#include "jit/backend.h"

struct qn_nvrtc;

/* Loads nothing. driver_version as cuDriverGetVersion() gives it (13000); 0: there is no driver. */
int qn_nvrtc_open(const struct qn_backend_options *options, int driver_version,
                  struct qn_nvrtc **nvrtc, struct quern_message *why);
void qn_nvrtc_close(struct qn_nvrtc *nvrtc); /* NULL is allowed */

/* "nvrtc 13.0.88", remembered by the file's path, size and mtime: loads the library only when it is
 * not known. QUERN_NO_COMPILER says where it was looked for and how to get it. */
int qn_nvrtc_identity(struct qn_nvrtc *nvrtc, char *identity, size_t bytes,
                      struct quern_message *why);
/* As struct qn_backend has it. QUERN_UNSUPPORTED: NVRTC does not know the target. Threads compile
 * at the same time. */
int qn_nvrtc_compile(struct qn_nvrtc *nvrtc, const struct qn_compile_request *request,
                     struct qn_compile_result *result, struct quern_message *why);
/* The canonical compile options for `target`. */
void qn_nvrtc_options(const struct quern_target *target, char *text, size_t bytes);
/* The file that would be loaded (malloc'ed), for doctor. */
int qn_nvrtc_find(struct qn_nvrtc *nvrtc, char **path, struct quern_message *why);

/* ---- ptxas_report.c ---- */
/* From the log of ptxas -v: *report as in struct qn_compile_result (malloc'ed), with " stack=BYTES"
 * behind a line whose entry has a stack frame. QUERN_COMPILE when
 * the log holds a warning that makes the code useless: C7508 (setmaxnreg ignored) and C7510 to
 * C7518 (wgmma serialized); `why` is that line. */
int qn_ptxas_report(const char *log, char **report, struct quern_message *why);

#endif
