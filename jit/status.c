/* The texts behind the X-macro lists of quern.h: outcomes and data types. */
#include <quern/family.h>

#include <stdarg.h>
#include <stdio.h>

const char *quern_status_name(int status)
{
    switch (status) {
#define X(name, value, text)                                                                       \
    case value:                                                                                    \
        return #name;
        QUERN_STATUS_LIST(X)
#undef X
    }
    return "?";
}

const char *quern_status_text(int status)
{
    switch (status) {
#define X(name, value, text)                                                                       \
    case value:                                                                                    \
        return text;
        QUERN_STATUS_LIST(X)
#undef X
    }
    return "?";
}

const char *quern_version(void)
{
    return QUERN_VERSION;
}

const char *quern_dtype_name(int dtype)
{
    static const char *const names[] = {
#define X(upper, lower, bytes) #lower,
        QUERN_DTYPE_LIST(X)
#undef X
    };
    return dtype >= 0 && dtype < QUERN_DTYPE_COUNT ? names[dtype] : "?";
}

size_t quern_dtype_bytes(int dtype)
{
    static const uint8_t sizes[] = {
#define X(upper, lower, bytes) bytes,
        QUERN_DTYPE_LIST(X)
#undef X
    };
    return dtype >= 0 && dtype < QUERN_DTYPE_COUNT ? sizes[dtype] : 0;
}

int quern_refuse(struct quern_message *why, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why->text, sizeof(why->text), format, arguments);
    va_end(arguments);
    return QUERN_INVALID;
}
