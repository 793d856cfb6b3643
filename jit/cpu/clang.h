/* The C compiler, as a subprocess. jit/cpu/clang.c says how it is found, known and run. */
#ifndef QN_CLANG_H
#define QN_CLANG_H

#include <pthread.h>

#include "jit/backend.h"

enum { QN_CLANG_OLDEST = 14 }; /* the first major version that is accepted */

struct qn_clang {
    char *given;       /* absolute path or bare name that the user asked for; NULL: search */
    char *search_path; /* PATH as it was at init */
    char **environment;
    struct qn_backend_options options; /* log and facts */
    pthread_mutex_t lock;              /* the two below, and a --version run */
    char *fact_name, *identity;        /* of the compiler last asked for */
};

/* Reads the environment and the working directory, this once. Runs nothing. */
int qn_clang_init(struct qn_clang *clang, const struct qn_backend_options *options,
                  struct quern_message *why);
void qn_clang_fini(struct qn_clang *clang);

/* The compiler's absolute path, malloc'ed. QUERN_NO_COMPILER says how to get one. */
int qn_clang_find(const struct qn_clang *clang, char **path, struct quern_message *why);

/* "Debian clang version 19.1.7 (3+b1)": no path in it. Runs `clang --version` only if a file of
 * this path, size and time of change has not been asked before, here or, by the facts, ever. */
int qn_clang_identity(struct qn_clang *clang, char *identity, size_t bytes,
                      struct quern_message *why);

/* As qn_backend.compile, but looks at no more of the object than that it is one. */
int qn_clang_compile(struct qn_clang *clang, const struct qn_compile_request *request,
                     struct qn_compile_result *result, struct quern_message *why);

#endif
