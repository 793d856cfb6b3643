/* Writes <quern/FAMILY.h> to stdout: the typed view of one family, made from its .def.
 *
 * Compiled once for each family, with QUERN_DEF the name of its .def (also read when it runs, for
 * the comment that opens it) and FAMILY its name. What it writes, for a family `gemm`:
 *
 *     quern_family_gemm                                  the family's object in libquern
 *     enum { QUERN_GEMM_LAYOUT_NT, ... }                 the values of CHOICE parameters
 *     struct quern_gemm_spec, QUERN_GEMM_SPEC_INIT       struct quern_spec with named fields
 *     struct quern_gemm_arrays                           the arrays, in .def order
 *     quern_gemm{,_prepare,_launch,_workspace}()         quern.h's functions on these types
 *
 * The result is valid C11 and C++11; initialisers are positional because C++ before 20 has no
 * designated ones. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <quern/family_def.h>

#define PARAM_COUNT (int)(sizeof(quern_def_params) / sizeof(quern_def_params[0]))

static char upper_family[64];

/* Prints text in which '@' stands for the family's name and '$' for the same in upper case. */
static void say(const char *text)
{
    for (; *text; text++) {
        if (*text == '@')
            fputs(FAMILY, stdout);
        else if (*text == '$')
            fputs(upper_family, stdout);
        else
            putchar(*text);
    }
}

static void upper(const char *name, char *result, size_t bytes)
{
    size_t length = 0;
    for (; *name && length + 1 < bytes; name++)
        result[length++] = (char)toupper((unsigned char)*name);
    result[length] = '\0';
}

/* The comment that opens the .def, as the header's own. */
static void say_opening(void)
{
    char line[512];
    FILE *def = fopen(QUERN_DEF, "r");

    if (!def) {
        perror(QUERN_DEF);
        exit(1);
    }
    printf("/* Made by tools/gen_header.c from %s: edit that.\n *\n", QUERN_DEF);
    if (fgets(line, sizeof(line), def) && !strncmp(line, "/* ", 3)) {
        fputs(" * ", stdout);
        fputs(line + 3, stdout);
        while (!strstr(line, "*/") && fgets(line, sizeof(line), def))
            fputs(line, stdout);
    } else {
        fputs(" */\n", stdout);
    }
    fclose(def);
    say("#ifndef QUERN_$_H\n#define QUERN_$_H\n\n#include <quern.h>\n\n"
        "#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n"
        "extern QUERN_API const struct quern_family quern_family_@;\n\n");
}

/* Calls visit(index, word) for each word of a blank-separated list. */
static void each_word(const char *words,
                      void (*visit)(const char *owner, int index, const char *word),
                      const char *owner)
{
    char word[64];
    int index = 0, used;

    for (; sscanf(words, " %63s%n", word, &used) == 1; words += used)
        visit(owner, index++, word);
}

static void say_enumerator(const char *owner, int index, const char *word)
{
    char upper_owner[64], upper_word[64];

    upper(owner, upper_owner, sizeof(upper_owner));
    upper(word, upper_word, sizeof(upper_word));
    printf("%s QUERN_%s_%s_%s = %d", index ? "," : "", upper_family, upper_owner, upper_word,
           index);
}

static void say_choices(void)
{
    int is_any = 0;

    for (int i = 0; i < PARAM_COUNT; i++) {
        const struct quern_param *param = &quern_def_params[i];
        if (param->kind != QUERN_CHOICE)
            continue;
        printf("enum { /* %s */", param->name);
        each_word(param->domain, say_enumerator, param->name);
        fputs(" };\n", stdout);
        is_any = 1;
    }
    if (is_any)
        putchar('\n');
}

static void say_dtype_allowed(const char *owner, int index, const char *word)
{
    char upper_word[64];

    (void)owner;
    upper(word, upper_word, sizeof(upper_word));
    printf("%sQUERN_%s", index ? ", " : "", upper_word);
}

static void say_choice_allowed(const char *owner, int index, const char *word)
{
    char upper_owner[64], upper_word[64];

    upper(owner, upper_owner, sizeof(upper_owner));
    upper(word, upper_word, sizeof(upper_word));
    printf("%sQUERN_%s_%s_%s", index ? ", " : "", upper_family, upper_owner, upper_word);
}

/* "at least 0 (dynamic, required)": what may stand in a field. */
static void say_allowed(const struct quern_param *param)
{
    static const char *const class_name[] = { "static", "dynamic", "hint", "scalar" };

    switch (param->kind) {
    case QUERN_SIZE:
        printf("at least %lld", (long long)param->minimum);
        break;
    case QUERN_CHOICE:
        each_word(param->domain, say_choice_allowed, param->name);
        break;
    case QUERN_DTYPE:
        each_word(param->domain, say_dtype_allowed, param->name);
        break;
    case QUERN_FLAG:
        fputs("0 or 1", stdout);
        break;
    case QUERN_REAL:
        fputs("NaN: not given", stdout);
        break;
    }
    printf(" (%s%s)", class_name[param->param_class],
           param->default_value == QUERN_REQUIRED ? ", required" : "");
}

/* The value a parameter has in SPEC_INIT. */
static void say_default(const struct quern_param *param)
{
#define X(upper_name, lower_name, bytes) [QUERN_##upper_name] = "QUERN_" #upper_name,
    static const char *const dtypes[] = { QUERN_DTYPE_LIST(X) };
#undef X

    if (param->kind == QUERN_REAL)
        fputs("__builtin_nan(\"\")", stdout);
    else if (param->default_value == QUERN_REQUIRED)
        fputs("QUERN_REQUIRED", stdout);
    else if (param->kind == QUERN_DTYPE)
        fputs(dtypes[param->default_value], stdout);
    else
        printf("%lld", (long long)param->default_value);
}

static void say_spec(void)
{
    say("/* What is asked for: struct quern_spec with named fields, its values in the order of "
        "the\n"
        " * .def. Start from QUERN_$_SPEC_INIT, which leaves required sizes QUERN_REQUIRED. A "
        "call\n"
        " * compiles once for each bucket of the dynamic values and each set of static ones. */\n"
        "struct __attribute__((may_alias)) quern_@_spec {\n"
        "    const struct quern_family *family; /* &quern_family_@ */\n"
        "    union {\n"
        "        __extension__ struct {\n");
    for (int i = 0; i < PARAM_COUNT; i++) {
        const struct quern_param *param = &quern_def_params[i];
        printf("            /* %s: ", param->doc);
        say_allowed(param);
        printf(" */\n            %s %s;\n", param->kind == QUERN_REAL ? "double" : "int64_t",
               param->name);
    }
    if (PARAM_COUNT < QUERN_MAX_PARAMS)
        printf("            int64_t reserved[%d];\n", QUERN_MAX_PARAMS - PARAM_COUNT);
    say("        };\n"
        "        int64_t values[QUERN_MAX_PARAMS];\n"
        "    };\n"
        "};\n\n"
        "#define QUERN_$_SPEC_INIT \\\n    { &quern_family_@, { { \\\n");
    for (int i = 0; i < PARAM_COUNT; i++) {
        fputs("        ", stdout);
        say_default(&quern_def_params[i]);
        printf(", /* %s */ \\\n", quern_def_params[i].name);
    }
    puts(PARAM_COUNT < QUERN_MAX_PARAMS ? "        { 0 } } } }\n" : "        } } }\n");
}

static void say_arrays(void)
{
    say("/* The arrays, as struct quern_array in <quern.h> describes them: {pointer} is dense and\n"
        " * row-major, {0} absent; strides are in elements. Above each: role, dtype and shape, as\n"
        " * expressions of the spec's fields, then what it is. The caller owns them all. */\n"
        "struct quern_@_arrays {\n");
    for (int i = 0; i < ARRAY_COUNT; i++) {
        const struct quern_array_info *array = &quern_def_arrays[i];
        printf("    /* %s, %s [%s]: %s */\n    struct quern_array %s;\n", array->role, array->dtype,
               array->shape, array->doc, array->name);
    }
    fputs("};\n\n", stdout);
}

static void say_functions(void)
{
    say("/* Compute. The kernel of the spec's bucket is built on first use and remembered in the\n"
        " * process and in the cache. The CPU is done when this returns; elsewhere the work is\n"
        " * ordered by call->stream. call may be NULL: no stream, workspace from the context.\n"
        " * Errors: INVALID names the parameter or array; SEALED, COMPILE, LOAD, DEVICE, "
        "NO_MEMORY;\n"
        " * UNSUPPORTED; the text is quern_errmsg(ctx). Threads: any, as in <quern.h>. */\n"
        "static inline int quern_@(struct quern_context *ctx, const struct quern_@_spec *spec,\n"
        "    const struct quern_@_arrays *arrays, const struct quern_call *call)\n"
        "{\n"
        "    return quern_run(ctx, (const struct quern_spec *)(const void *)spec,\n"
        "                     (const struct quern_array *)(const void *)arrays, call);\n"
        "}\n\n"
        "/* Build the kernel of the spec's bucket without running it. arrays gives the alignment "
        "to\n"
        " * build for; NULL: dense and 16-byte aligned. *kernel is the context's. Errors and "
        "threads\n"
        " * as above. */\n"
        "static inline int quern_@_prepare(struct quern_context *ctx,\n"
        "    const struct quern_@_spec *spec, const struct quern_@_arrays *arrays,\n"
        "    struct quern_kernel **kernel)\n"
        "{\n"
        "    struct quern_request request;\n"
        "    __builtin_memset(&request, 0, sizeof(request));\n"
        "    request.size = sizeof(request);\n"
        "    request.spec = (const struct quern_spec *)(const void *)spec;\n"
        "    request.arrays = (const struct quern_array *)(const void *)arrays;\n"
        "    return quern_prepare(ctx, &request, kernel);\n"
        "}\n\n"
        "/* Run a prepared kernel on a spec of its bucket: no look-up, and no allocation when the\n"
        " * call brings the workspace. Otherwise as quern_@(). */\n"
        "static inline int quern_@_launch(struct quern_context *ctx, struct quern_kernel *kernel,\n"
        "    const struct quern_@_spec *spec, const struct quern_@_arrays *arrays,\n"
        "    const struct quern_call *call)\n"
        "{\n"
        "    return quern_launch(ctx, kernel, (const struct quern_spec *)(const void *)spec,\n"
        "                        (const struct quern_array *)(const void *)arrays, call);\n"
        "}\n\n"
        "/* Bytes of workspace that a call needs: an upper bound for every spec of the bucket.\n"
        " * Prepares the kernel; otherwise as quern_@_prepare(). */\n"
        "static inline int quern_@_workspace(struct quern_context *ctx,\n"
        "    const struct quern_@_spec *spec, const struct quern_@_arrays *arrays, size_t *bytes)\n"
        "{\n"
        "    struct quern_kernel *kernel;\n"
        "    int status = quern_@_prepare(ctx, spec, arrays, &kernel);\n"
        "    if (!status)\n"
        "        *bytes = quern_kernel_workspace(kernel);\n"
        "    return status;\n"
        "}\n\n"
        "#ifdef __cplusplus\n}\n#endif\n#endif\n");
}

int main(void)
{
    (void)quern_def_shape; /* the tables are what is needed here */
    upper(FAMILY, upper_family, sizeof(upper_family));
    say_opening();
    say_choices();
    say_spec();
    say_arrays();
    say_functions();
    return fclose(stdout) != 0;
}
