#include "jit/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void qn_text_append(struct qn_text *text, const void *data, size_t bytes)
{
    if (text->is_failed)
        return;
    if (text->bytes + bytes + 1 > text->capacity) {
        size_t capacity = (text->bytes + bytes + 1) * 2;
        char *grown = realloc(text->data, capacity);
        if (!grown) {
            text->is_failed = true;
            return;
        }
        text->data = grown;
        text->capacity = capacity;
    }
    memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
    text->data[text->bytes] = '\0';
}

void qn_text_print(struct qn_text *text, const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int bytes = vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    if (bytes < 0 || bytes >= (int)sizeof(line))
        text->is_failed = true;
    else
        qn_text_append(text, line, (size_t)bytes);
}

void qn_text_fini(struct qn_text *text)
{
    free(text->data);
    *text = (struct qn_text){ 0 };
}
