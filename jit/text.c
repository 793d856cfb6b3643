#include "jit/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for `bytes` more and the terminator. */
static bool reserve(struct qn_text *text, size_t bytes)
{
    if (text->is_failed || text->bytes + bytes + 1 <= text->capacity)
        return !text->is_failed;
    size_t capacity = (text->bytes + bytes + 1) * 2;
    char *grown = realloc(text->data, capacity);
    text->is_failed = !grown;
    if (grown) {
        text->data = grown;
        text->capacity = capacity;
    }
    return grown != NULL;
}

void qn_text_append(struct qn_text *text, const void *data, size_t bytes)
{
    if (!reserve(text, bytes))
        return;
    memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
    text->data[text->bytes] = '\0';
}

static void append_formatted(struct qn_text *text, const char *format, va_list arguments)
{
    va_list again;
    va_copy(again, arguments);
    int bytes = vsnprintf(NULL, 0, format, arguments);
    if (bytes >= 0 && reserve(text, (size_t)bytes))
        text->bytes +=
            (size_t)vsnprintf(text->data + text->bytes, (size_t)bytes + 1, format, again);
    va_end(again);
}

void qn_text_print(struct qn_text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    append_formatted(text, format, arguments);
    va_end(arguments);
}

void qn_text_fini(struct qn_text *text)
{
    free(text->data);
    *text = (struct qn_text){ 0 };
}

void qn_list_add(char *list, size_t bytes, const char *name)
{
    static const char more[] = ", ...";
    size_t used = strlen(list);
    size_t needed = (used ? 2 : 0) + strlen(name);
    if (used + needed + sizeof(more) <= bytes)
        snprintf(list + used, bytes - used, "%s%s", used ? ", " : "", name);
    else if (used + sizeof(more) <= bytes && (used < 3 || strcmp(list + used - 3, "...")))
        strcpy(list + used, more + (used ? 0 : 2));
}
