/* What the build puts into the library from templates/: the device sources' text and the families.
 * Both are made from what lies in the folders (tools/embed.c, the Makefile); nothing lists them. */
#ifndef QN_EMBEDDED_H
#define QN_EMBEDDED_H

#include <stddef.h>

struct quern_family;

struct qn_embedded_file {
    const char *path; /* below templates/: "gemm/gemm_cpu.c" */
    const char *text; /* NUL-terminated */
    size_t bytes;     /* without the NUL */
};

/* Sorted by path (strcmp). */
extern const struct qn_embedded_file qn_embedded_templates[];
extern const int qn_embedded_template_count;

/* NULL-terminated, sorted by name. */
extern const struct quern_family *const qn_builtin_families[];

#endif
