/* Emission: a plan's steps become units of source, each
 *
 *     #define BM 64                      the step's defines, in the plan's order
 *     #define BN 128
 *     # 1 "gemm/gemm_cpu.c"              the template, unchanged, with each #include "..." replaced
 *     ...                                by the file it names, between line markers
 *     # 1 "common/types.h"
 *     ...
 *     # 9 "gemm/gemm_cpu.c"
 *
 * A file that was included outside of any #if is left out from then on. One that is included inside
 * an #if says nothing about later includes, so it is put in every time and its include guard does
 * what it does everywhere else. A header's own guard is no such #if.
 *
 * That one text is what the compiler receives, `quern gen` prints and the artifact key hashes. A
 * template is looked for in the family's own sources, then QUERN_TEMPLATES, then the embedded ones;
 * an include beside the includer first, then from the root of templates/. Nothing of the machine
 * gets in: names in line markers are relative to templates/.
 */
#include "jit/emit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/embedded.h"
#include "jit/plan.h"

#define MAX_DEPTH 16
#define MAX_FILES 64
#define PATH_BYTES 96

struct emitted_file {
    char path[PATH_BYTES];
    bool is_unconditional; /* it was included outside of any #if */
    bool is_open;          /* it is being flattened now: including it again is a cycle */
};

struct emitter {
    struct quern_context *ctx;
    const struct quern_family *family;
    struct qn_text *out;
    struct qn_text *key_files; /* "file.gemm/gemm_cpu.c=<hash>" lines of the key */
    struct emitted_file files[MAX_FILES];
    int file_count;
    int depth;
};

/* One file while it is flattened. */
struct reading {
    const char *path;
    int if_depth;        /* open #if, #ifdef, #ifndef */
    int guard_depth;     /* 1 if the first directive is an #ifndef: an include guard */
    bool is_conditional; /* the file itself was included inside an #if */
};

/* ---- Finding templates --------------------------------------------------------------------- */

/* Reads directory/path; QUERN_MISS if there is no such file. */
static int read_directory(struct emitter *emitter, const char *path, struct qn_text *text)
{
    char name[4096], chunk[16384];
    size_t bytes;
    snprintf(name, sizeof(name), "%s/%s", emitter->ctx->options.templates, path);
    FILE *file = fopen(name, "rb");
    if (!file)
        return errno == ENOENT ? QUERN_MISS
                               : qn_fail(emitter->ctx, QUERN_IO, "templates=%s: %s: %s",
                                         emitter->ctx->options.templates, path, strerror(errno));
    while ((bytes = fread(chunk, 1, sizeof(chunk), file)))
        qn_text_append(text, chunk, bytes);
    int is_failed = ferror(file);
    fclose(file);
    if (is_failed)
        return qn_fail(emitter->ctx, QUERN_IO, "templates=%s: %s cannot be read",
                       emitter->ctx->options.templates, path);
    return QUERN_OK;
}

static int find_template(struct emitter *emitter, const char *path, struct qn_text *text)
{
    for (const struct quern_source *s = emitter->family->sources; s && s->path; s++) {
        if (!strcmp(s->path, path)) {
            qn_text_append(text, s->text, strlen(s->text));
            return QUERN_OK;
        }
    }
    if (emitter->ctx->options.templates) {
        int status = read_directory(emitter, path, text);
        if (status != QUERN_MISS)
            return status;
    }
    for (int i = 0; i < qn_embedded_template_count; i++) {
        if (!strcmp(qn_embedded_templates[i].path, path)) {
            qn_text_append(text, qn_embedded_templates[i].text, qn_embedded_templates[i].bytes);
            return QUERN_OK;
        }
    }
    return QUERN_MISS;
}

/* ---- Flattening ---------------------------------------------------------------------------- */

/* The file's entry, made if it is new; NULL past MAX_FILES. */
static struct emitted_file *file_of(struct emitter *emitter, const char *path, bool *is_new)
{
    for (int i = 0; i < emitter->file_count; i++) {
        if (!strcmp(emitter->files[i].path, path)) {
            *is_new = false;
            return &emitter->files[i];
        }
    }
    *is_new = true;
    if (emitter->file_count == MAX_FILES || strlen(path) >= PATH_BYTES)
        return NULL;
    struct emitted_file *file = &emitter->files[emitter->file_count++];
    strcpy(file->path, path);
    return file;
}

/* The directive of a line, blanks skipped: a pointer to its name, or NULL. */
static const char *directive_of(const char *line, const char *end)
{
    while (line < end && (*line == ' ' || *line == '\t'))
        line++;
    if (line == end || *line++ != '#')
        return NULL;
    while (line < end && (*line == ' ' || *line == '\t'))
        line++;
    return line;
}

/* `include "name"`: copies the name. */
static bool parse_include(const char *directive, const char *end, char *name, size_t name_bytes)
{
    const char *p = directive;
    if (end - p < 8 || strncmp(p, "include", 7))
        return false;
    for (p += 7; p < end && (*p == ' ' || *p == '\t');)
        p++;
    if (p == end || *p++ != '"')
        return false;
    const char *quote = memchr(p, '"', (size_t)(end - p));
    if (!quote || (size_t)(quote - p) >= name_bytes)
        return false;
    memcpy(name, p, (size_t)(quote - p));
    name[quote - p] = '\0';
    return true;
}

static void track_conditionals(struct reading *reading, const char *directive, bool is_first)
{
    if (!strncmp(directive, "if", 2)) {
        reading->if_depth++;
        if (is_first && !strncmp(directive, "ifndef", 6))
            reading->guard_depth = 1;
    } else if (!strncmp(directive, "endif", 5)) {
        reading->if_depth--;
    }
}

static int flatten(struct emitter *emitter, const char *path, bool is_conditional);

/* Beside the includer first, then from the root of templates/. */
static int flatten_include(struct emitter *emitter, const struct reading *reading, const char *name)
{
    const char *slash = strrchr(reading->path, '/');
    bool is_conditional = reading->is_conditional || reading->if_depth > reading->guard_depth;
    if (slash && !strchr(name, '/')) {
        char beside[2 * PATH_BYTES];
        snprintf(beside, sizeof(beside), "%.*s/%s", (int)(slash - reading->path), reading->path,
                 name);
        int status = flatten(emitter, beside, is_conditional);
        if (status != QUERN_MISS)
            return status;
    }
    int status = flatten(emitter, name, is_conditional);
    if (status == QUERN_MISS)
        return qn_fail(emitter->ctx, QUERN_INVALID,
                       "template=%s: includes \"%s\", which is not among the templates",
                       reading->path, name);
    return status;
}

static int flatten_text(struct emitter *emitter, struct reading *reading,
                        const struct qn_text *text)
{
    int line_number = 1;
    bool is_first = true;
    qn_text_print(emitter->out, "# 1 \"%s\"\n", reading->path);
    for (const char *line = text->data; line && *line; line_number++) {
        const char *newline = strchr(line, '\n');
        const char *end = newline ? newline : line + strlen(line);
        const char *directive = directive_of(line, end);
        char name[PATH_BYTES];
        if (directive && parse_include(directive, end, name, sizeof(name))) {
            QN_TRY(flatten_include(emitter, reading, name));
            qn_text_print(emitter->out, "# %d \"%s\"\n", line_number + 1, reading->path);
        } else {
            qn_text_append(emitter->out, line, (size_t)(end - line));
            qn_text_append(emitter->out, "\n", 1);
        }
        if (directive) {
            track_conditionals(reading, directive, is_first);
            is_first = false;
        }
        line = newline ? newline + 1 : end;
    }
    return QUERN_OK;
}

/* Puts in the file unless it is there already; QUERN_MISS if there is no such template. */
static int flatten(struct emitter *emitter, const char *path, bool is_conditional)
{
    struct qn_text text = { 0 };
    char hex[QN_KEY_HEX];
    bool is_new;
    int status = find_template(emitter, path, &text);
    if (status)
        goto out;
    struct emitted_file *file = file_of(emitter, path, &is_new);
    if (!file || emitter->depth == MAX_DEPTH) {
        status = qn_fail(emitter->ctx, QUERN_INVALID,
                         "template=%s: more than %d files, nested deeper than %d, or a path of "
                         "more than %d characters",
                         path, MAX_FILES, MAX_DEPTH, PATH_BYTES - 1);
        goto out;
    }
    if (file->is_unconditional || file->is_open)
        goto out;
    if (is_new) {
        qn_key_hex(text.data ? text.data : "", text.bytes, hex);
        qn_text_print(emitter->key_files, "file.%s=%s\n", path, hex);
    }
    struct reading reading = { .path = path, .is_conditional = is_conditional };
    file->is_unconditional = !is_conditional;
    file->is_open = true;
    emitter->depth++;
    status = flatten_text(emitter, &reading, &text);
    emitter->depth--;
    file->is_open = false;
out:
    qn_text_fini(&text);
    return status;
}

/* ---- Units --------------------------------------------------------------------------------- */

static int emit_unit(struct quern_context *ctx, const struct quern_family *family,
                     const struct quern_step *step, struct qn_unit *unit, struct qn_text *files)
{
    struct qn_text out = { 0 };
    struct emitter *emitter = calloc(1, sizeof(*emitter));
    int status = QUERN_NO_MEMORY;
    if (!emitter)
        goto out;
    emitter->ctx = ctx;
    emitter->family = family;
    emitter->out = &out;
    emitter->key_files = files;
    for (int i = 0; i < step->define_count; i++)
        qn_text_print(&out, "#define %s %s\n", step->defines[i].name, step->defines[i].value);
    unit->body = out.bytes;
    status = flatten(emitter, step->source, false);
    if (status == QUERN_MISS)
        status = qn_fail(ctx, QUERN_INVALID, "template=%s: not among the templates", step->source);
    if (!status && (out.is_failed || files->is_failed))
        status = QUERN_NO_MEMORY;
out:
    if (status == QUERN_NO_MEMORY)
        qn_fail(ctx, status, "out of memory");
    if (status) {
        qn_text_fini(&out);
    } else {
        unit->source = out.data;
        unit->source_bytes = out.bytes;
    }
    free(emitter);
    return status;
}

int qn_emit(struct quern_context *ctx, const struct quern_family *family,
            const struct quern_plan *plan, const struct quern_target *target, const char *options,
            struct qn_unit units[QUERN_MAX_STEPS], int *unit_count, int unit_of[QUERN_MAX_STEPS])
{
    int count = 0, status = QUERN_OK;
    for (int i = 0; i < plan->step_count && !status; i++) {
        struct qn_text files = { 0 };
        unit_of[i] = -1;
        if (plan->steps[i].kind != QUERN_STEP_KERNEL)
            continue;
        for (int u = 0; u < count; u++) {
            if (qn_steps_share(&plan->steps[i], &plan->steps[units[u].first_step]))
                unit_of[i] = u;
        }
        if (unit_of[i] >= 0)
            continue;
        units[count] = (struct qn_unit){ .first_step = i };
        status = emit_unit(ctx, family, &plan->steps[i], &units[count], &files);
        if (!status) {
            unit_of[i] = count++;
            status = qn_artifact_key(ctx, &plan->steps[i], target, options, files.data,
                                     &units[count - 1]);
        }
        qn_text_fini(&files);
    }
    if (status)
        qn_units_fini(units, count);
    else
        *unit_count = count;
    return status;
}

void qn_units_fini(struct qn_unit *units, int unit_count)
{
    for (int i = 0; i < unit_count; i++) {
        free(units[i].source);
        free(units[i].key_text);
    }
}
