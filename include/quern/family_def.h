/* Expands a family's list into what its .c needs. Include once, there, after defining QUERN_DEF as
 * the list's name on the include path: built-in families write "copy/copy.def".
 *
 * The list has a line for each parameter and each array:
 *
 *     QUERN_PARAM(name, class, kind, domain, default, doc)
 *         class    STATIC, DYNAMIC, HINT or SCALAR
 *         kind     SIZE    domain: the least value              default: a number or QUERN_REQUIRED
 *                  DTYPE   domain: "f32 bf16 none"              default: QUERN_F32, ...
 *                  CHOICE  domain: "nt nn"                      default: an index into it
 *                  FLAG    domain: 0                            default: 0 or 1
 *                  REAL    domain: 0; class SCALAR              default: 0; NaN unless it is given
 *     QUERN_ARRAY(name, role, dtype, doc, dims...)
 *         role     IN, OUT, INOUT or ABSENT
 *
 * role, dtype and dims are C expressions of the parameters: `accumulate ? INOUT : OUT`.
 *
 * It gives, local to the file:
 *     struct values, values_of(spec)   named view of a spec's values: values_of(spec)->m
 *     ARRAY_<name>                     indices of the arrays
 *     QUERN_FAMILY_TABLES(family)      the initialisers that come from the list
 */
#ifndef QUERN_FAMILY_DEF_H
#define QUERN_FAMILY_DEF_H

#include <quern/family.h>

#define QUERN_TYPE_SIZE int64_t
#define QUERN_TYPE_DTYPE int64_t
#define QUERN_TYPE_CHOICE int64_t
#define QUERN_TYPE_FLAG int64_t
#define QUERN_TYPE_REAL double

/* A view of int64_t values, of which some are doubles: it may alias them. */
struct __attribute__((may_alias)) values {
#define QUERN_PARAM(name, param_class, kind, domain, default_value, doc) QUERN_TYPE_##kind name;
#define QUERN_ARRAY(...)
#include QUERN_DEF
#undef QUERN_ARRAY
#undef QUERN_PARAM
};

static inline __attribute__((unused)) const struct values *values_of(const struct quern_spec *spec)
{
    return (const struct values *)(const void *)spec->values;
}

enum {
#define QUERN_PARAM(...)
#define QUERN_ARRAY(name, ...) ARRAY_##name,
#include QUERN_DEF
#undef QUERN_ARRAY
#undef QUERN_PARAM
    ARRAY_COUNT
};

__attribute__((unused)) static const struct quern_param quern_def_params[] = {
#define QUERN_PARAM(name, class_, kind, domain, default_value, doc)                                \
    { #name,         QUERN_##class_,                                                               \
      QUERN_##kind,  _Generic((domain), char *: (domain), default: NULL),                          \
      _Generic((domain), int: (domain), default: 0), default_value, doc },
#define QUERN_ARRAY(...)
#include QUERN_DEF
#undef QUERN_ARRAY
#undef QUERN_PARAM
};

__attribute__((unused)) static const struct quern_array_info quern_def_arrays[] = {
#define QUERN_PARAM(...)
#define QUERN_ARRAY(name, role, dtype, doc, ...) { #name, #role, #dtype, #__VA_ARGS__, doc },
#include QUERN_DEF
#undef QUERN_ARRAY
#undef QUERN_PARAM
};

/* Each parameter becomes a local of its own name, so that the list's expressions can use it. */
__attribute__((unused)) static void quern_def_shape(const struct quern_spec *spec, int quern_index,
                                                    struct quern_shape *quern_shape)
{
    enum { ABSENT = QUERN_ABSENT, IN = QUERN_IN, OUT = QUERN_OUT, INOUT = QUERN_INOUT };
#define QUERN_PARAM(name, class_, kind, ...)                                                       \
    __attribute__((unused)) const QUERN_TYPE_##kind name = values_of(spec)->name;
#define QUERN_ARRAY(...)
#include QUERN_DEF
#undef QUERN_ARRAY
#undef QUERN_PARAM
    switch (quern_index) {
#define QUERN_PARAM(...)
#define QUERN_ARRAY(name, role_, dtype_, doc, ...)                                                 \
    case ARRAY_##name: {                                                                           \
        const int64_t dims[] = { __VA_ARGS__ };                                                    \
        _Static_assert(sizeof(dims) <= sizeof(quern_shape->dims), #name ": too many dimensions");  \
        quern_shape->role = (int)(role_);                                                          \
        quern_shape->dtype = (int)(dtype_);                                                        \
        quern_shape->rank = (int)(sizeof(dims) / sizeof(dims[0]));                                 \
        __builtin_memcpy(quern_shape->dims, dims, sizeof(dims));                                   \
        break;                                                                                     \
    }
#include QUERN_DEF
#undef QUERN_ARRAY
#undef QUERN_PARAM
    }
}

#define QUERN_FAMILY_TABLES(family)                                                                \
    .abi = QUERN_FAMILY_ABI, .name = #family, .params = quern_def_params,                          \
    .param_count = (int)(sizeof(quern_def_params) / sizeof(quern_def_params[0])),                  \
    .arrays = quern_def_arrays, .array_count = ARRAY_COUNT, .shape = quern_def_shape

#endif
