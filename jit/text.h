/* A growing text. A failed append marks it and later ones do nothing, so that a writer checks once,
 * at the end. */
#ifndef QN_TEXT_H
#define QN_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct qn_text {
    char *data; /* terminated; NULL while empty */
    size_t bytes, capacity;
    bool is_failed; /* memory ran out */
};

void qn_text_append(struct qn_text *text, const void *data, size_t bytes);
void qn_text_print(struct qn_text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void qn_text_fini(struct qn_text *text);

/* Adds `name` to a list of names, "" at first: "copy, gemm". Ends in "..." when it is full. */
void qn_list_add(char *list, size_t bytes, const char *name);

#endif
