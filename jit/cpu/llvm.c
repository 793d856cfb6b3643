/* Linking objects into this process with LLVM's ORC, through its C interface, dlopen'ed.
 *
 *     struct qn_llvm     one a device: the library's entry points and one LLJIT
 *       qn_module          one JITDylib (a namespace) and the tracker of what was linked into it
 *         imports            "memcpy", "memset": absolute symbols, the same in each
 *       idle               modules that were unlinked; their JITDylib is used again
 *
 * 1. open: the first library of a list that has every entry point; its x86 or AArch64 target; an
 *    LLJIT.
 * 2. link: a JITDylib (an idle one, else a new one), the object under a fresh tracker, and one
 *    look-up, which makes the linker do its work.
 * 3. look-up: an address, from then on a table look-up.
 * 4. unlink: the tracker frees code and data.
 *
 * Invariants: a module resolves nothing outside itself but memcpy and memset (JITDylibs are "bare":
 * none searches the process); errors that LLVM would print are kept instead; everything after open
 * happens under one lock, so that a look-up's answer is there when it returns. A link takes 0.2 ms:
 * there is nothing to win by doing two at once.
 *
 * LLVM has no way in C to remove a JITDylib, hence the idle list. The library stays mapped when it
 * is closed (RTLD_NODELETE): it registers exit handlers and thread-local data.
 *
 * Types and prototypes are declared here: the C interface is stable, and its headers are not there
 * where only the library is installed. Sizes and order follow llvm-c/Orc.h of LLVM 19. */
#define _GNU_SOURCE
#include "jit/cpu/llvm.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/cpu/cpu.h"

/* ---- LLVM's C interface -------------------------------------------------------------------- */

typedef struct llvm_error *error_ref;
typedef struct llvm_buffer *buffer_ref;
typedef struct llvm_name *name_ref;
typedef struct llvm_jit *jit_ref;
typedef struct llvm_session *session_ref;
typedef struct llvm_dylib *dylib_ref;
typedef struct llvm_tracker *tracker_ref;
typedef struct llvm_unit *unit_ref;

enum { SYMBOL_EXPORTED = 1, SYMBOL_CALLABLE = 4 };
struct symbol_pair { /* LLVMOrcCSymbolMapPair */
    name_ref name;
    uint64_t address;
    uint8_t generic_flags, target_flags;
};
struct search_element { /* LLVMOrcCJITDylibSearchOrderElement */
    dylib_ref dylib;
    int flags;
};
struct lookup_element { /* LLVMOrcCLookupSetElement */
    name_ref name;
    int flags;
};
typedef void error_reporter(void *user, error_ref error);
typedef void lookup_handler(error_ref error, struct symbol_pair *pairs, size_t count, void *user);

#ifdef __x86_64__
#define LLVM_TARGET "X86"
#elif defined(__aarch64__)
#define LLVM_TARGET "AArch64"
#else
#error "quern's CPU backend knows x86-64 and AArch64"
#endif

/* result, field, symbol, parameters */
#define LLVM_ENTRY_POINTS(X)                                                                       \
    X(void, initialize_info, "LLVMInitialize" LLVM_TARGET "TargetInfo", (void))                    \
    X(void, initialize_target, "LLVMInitialize" LLVM_TARGET "Target", (void))                      \
    X(void, initialize_mc, "LLVMInitialize" LLVM_TARGET "TargetMC", (void))                        \
    X(buffer_ref, buffer_copy, "LLVMCreateMemoryBufferWithMemoryRangeCopy",                        \
      (const char *data, size_t bytes, const char *name))                                          \
    X(char *, error_text, "LLVMGetErrorMessage", (error_ref error))                                \
    X(void, error_text_free, "LLVMDisposeErrorMessage", (char *text))                              \
    X(error_ref, jit_create, "LLVMOrcCreateLLJIT", (jit_ref * jit, void *builder))                 \
    X(error_ref, jit_destroy, "LLVMOrcDisposeLLJIT", (jit_ref jit))                                \
    X(session_ref, jit_session, "LLVMOrcLLJITGetExecutionSession", (jit_ref jit))                  \
    X(error_ref, jit_add_object, "LLVMOrcLLJITAddObjectFileWithRT",                                \
      (jit_ref jit, tracker_ref tracker, buffer_ref object))                                       \
    X(name_ref, jit_name, "LLVMOrcLLJITMangleAndIntern", (jit_ref jit, const char *name))          \
    X(void, session_set_reporter, "LLVMOrcExecutionSessionSetErrorReporter",                       \
      (session_ref session, error_reporter * reporter, void *user))                                \
    X(dylib_ref, session_create_dylib, "LLVMOrcExecutionSessionCreateBareJITDylib",                \
      (session_ref session, const char *name))                                                     \
    X(void, session_lookup, "LLVMOrcExecutionSessionLookup",                                       \
      (session_ref session, int kind, struct search_element *order, size_t order_count,            \
       struct lookup_element *names, size_t name_count, lookup_handler *handler, void *user))      \
    X(unit_ref, absolute_symbols, "LLVMOrcAbsoluteSymbols",                                        \
      (struct symbol_pair * pairs, size_t count))                                                  \
    X(error_ref, dylib_define, "LLVMOrcJITDylibDefine", (dylib_ref dylib, unit_ref unit))          \
    X(void, unit_destroy, "LLVMOrcDisposeMaterializationUnit", (unit_ref unit))                    \
    X(tracker_ref, tracker_create, "LLVMOrcJITDylibCreateResourceTracker", (dylib_ref dylib))      \
    X(error_ref, tracker_remove, "LLVMOrcResourceTrackerRemove", (tracker_ref tracker))            \
    X(void, tracker_release, "LLVMOrcReleaseResourceTracker", (tracker_ref tracker))

struct entry_points {
#define X(result, field, symbol, parameters) result(*field) parameters;
    LLVM_ENTRY_POINTS(X)
#undef X
};

static const struct entry_name {
    const char *symbol;
    size_t offset;
} entry_names[] = {
#define X(result, field, symbol, parameters) { symbol, offsetof(struct entry_points, field) },
    LLVM_ENTRY_POINTS(X)
#undef X
};

struct qn_module {
    dylib_ref dylib;
    tracker_ref tracker; /* NULL while idle */
    struct qn_module *next;
};

struct qn_llvm {
    void *library;
    char *path;
    struct entry_points call;
    jit_ref jit;
    session_ref session;
    pthread_mutex_t lock; /* everything below, and every call after open */
    struct qn_module *idle;
    unsigned dylib_count;
    char report[256]; /* the first error that LLVM reported rather than returned */
};

/* ---- Errors -------------------------------------------------------------------------------- */

/* Consumes an error and writes its first line. */
static void error_take(const struct qn_llvm *llvm, error_ref error, char *line, size_t bytes)
{
    char *text = llvm->call.error_text(error);
    snprintf(line, bytes, "%.*s", (int)strcspn(text, "\n"), text);
    llvm->call.error_text_free(text);
}

/* LLVM returns "failed to materialize symbols" and reports the reason on the side. */
static void keep_report(void *user, error_ref error)
{
    struct qn_llvm *llvm = user;
    char line[sizeof llvm->report];

    error_take(llvm, error, line, sizeof line);
    if (!llvm->report[0])
        memcpy(llvm->report, line, sizeof line);
}

static int fail(struct qn_llvm *llvm, const char *what, error_ref error, struct quern_message *why)
{
    char line[sizeof llvm->report];

    error_take(llvm, error, line, sizeof line);
    return QN_CPU_FAIL(LOAD, why, "LLVM: %s: %s", what, llvm->report[0] ? llvm->report : line);
}

/* ---- 1. Open and close --------------------------------------------------------------------- */

/* Resolves every entry point; NULL, or the first that is missing. */
static const char *resolve(struct qn_llvm *llvm)
{
    for (size_t i = 0; i < sizeof entry_names / sizeof entry_names[0]; i++) {
        void *address = dlsym(llvm->library, entry_names[i].symbol);
        if (!address)
            return entry_names[i].symbol;
        memcpy((char *)&llvm->call + entry_names[i].offset, &address, sizeof address);
    }
    return NULL;
}

static int library_open(struct qn_llvm *llvm, struct quern_message *why)
{
    static const char *const names[] = { "libLLVM.so.19.1", "libLLVM-19.so.1",
                                         "libLLVM-19.so",   "/usr/lib/llvm-19/lib/libLLVM.so.1",
                                         "libLLVM.so.20.1", "libLLVM.so.21.1" };
    const char *missing = NULL;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        llvm->library = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
        if (!llvm->library)
            continue;
        missing = resolve(llvm);
        if (!missing)
            return 0;
        dlclose(llvm->library);
        llvm->library = NULL;
    }
    if (missing)
        return QN_CPU_FAIL(DEVICE, why, "llvm=libLLVM: has no %s; LLVM 19 or newer is needed",
                           missing);
    return QN_CPU_FAIL(DEVICE, why,
                       "llvm=libLLVM.so.19.1: not found; install it (apt-get install libllvm19)");
}

static int jit_open(struct qn_llvm *llvm, struct quern_message *why)
{
    llvm->call.initialize_info();
    llvm->call.initialize_target();
    llvm->call.initialize_mc();
    error_ref error = llvm->call.jit_create(&llvm->jit, NULL);
    if (error) {
        llvm->jit = NULL;
        fail(llvm, "no linker for this machine", error, why);
        return QUERN_DEVICE;
    }
    llvm->session = llvm->call.jit_session(llvm->jit);
    llvm->call.session_set_reporter(llvm->session, keep_report, llvm);
    return 0;
}

int qn_llvm_open(struct qn_llvm **llvm, struct quern_message *why)
{
    struct qn_llvm *made = calloc(1, sizeof *made);
    struct link_map *map;

    if (!made)
        return QN_CPU_FAIL(NO_MEMORY, why, "LLVM: out of memory");
    pthread_mutex_init(&made->lock, NULL);
    int status = library_open(made, why);
    if (!status)
        status = jit_open(made, why);
    if (!status && !dlinfo(made->library, RTLD_DI_LINKMAP, &map))
        made->path = strdup(map->l_name);
    if (status)
        qn_llvm_close(made);
    else
        *llvm = made;
    return status;
}

void qn_llvm_close(struct qn_llvm *llvm)
{
    char ignored[8];

    if (!llvm)
        return;
    error_ref error = llvm->jit ? llvm->call.jit_destroy(llvm->jit) : NULL;
    if (error)
        error_take(llvm, error, ignored, sizeof ignored);
    while (llvm->idle) {
        struct qn_module *next = llvm->idle->next;
        free(llvm->idle);
        llvm->idle = next;
    }
    if (llvm->library)
        dlclose(llvm->library);
    pthread_mutex_destroy(&llvm->lock);
    free(llvm->path);
    free(llvm);
}

const char *qn_llvm_path(const struct qn_llvm *llvm)
{
    return llvm->path ? llvm->path : "libLLVM";
}

/* ---- 3. Look-up ---------------------------------------------------------------------------- */

struct answer {
    error_ref error;
    uint64_t address;
};

static void keep_answer(error_ref error, struct symbol_pair *pairs, size_t count, void *user)
{
    struct answer *answer = user;

    answer->error = error;
    if (!error && count)
        answer->address = pairs[0].address;
}

/* The lock is held: with one look-up at a time, LLVM does the work in this thread and calls
 * keep_answer() before it returns. */
static int lookup(struct qn_llvm *llvm, dylib_ref dylib, const char *name, void **address,
                  struct quern_message *why)
{
    struct search_element order = { dylib, 0 };
    struct lookup_element names[2] = { { llvm->call.jit_name(llvm->jit, name), 0 }, { NULL, 0 } };
    struct answer answer = { NULL, 0 };

    llvm->report[0] = 0;
    llvm->call.session_lookup(llvm->session, 0, &order, 1, names, 1, keep_answer, &answer);
    if (answer.error)
        return fail(llvm, name, answer.error, why);
    if (!answer.address)
        return QN_CPU_FAIL(LOAD, why, "LLVM: %s: has no address", name);
    *address = (void *)(uintptr_t)answer.address;
    return 0;
}

int qn_llvm_lookup(struct qn_llvm *llvm, struct qn_module *module, const char *name, void **address,
                   struct quern_message *why)
{
    pthread_mutex_lock(&llvm->lock);
    int status = lookup(llvm, module->dylib, name, address, why);
    pthread_mutex_unlock(&llvm->lock);
    return status;
}

/* ---- 2, 4. Link and unlink ----------------------------------------------------------------- */

static int define_imports(struct qn_llvm *llvm, dylib_ref dylib, struct quern_message *why)
{
    const uint8_t flags = SYMBOL_EXPORTED | SYMBOL_CALLABLE;
    struct symbol_pair pairs[] = {
        { llvm->call.jit_name(llvm->jit, "memcpy"), (uintptr_t)memcpy, flags, 0 },
        { llvm->call.jit_name(llvm->jit, "memset"), (uintptr_t)memset, flags, 0 },
    };
    unit_ref unit = llvm->call.absolute_symbols(pairs, 2);
    error_ref error = llvm->call.dylib_define(dylib, unit);

    if (!error)
        return 0;
    llvm->call.unit_destroy(unit);
    return fail(llvm, "memcpy, memset", error, why);
}

static int module_make(struct qn_llvm *llvm, struct qn_module **module, struct quern_message *why)
{
    struct qn_module *made = llvm->idle;
    char name[32];

    if (made) {
        llvm->idle = made->next;
        *module = made;
        return 0;
    }
    made = calloc(1, sizeof *made);
    if (!made)
        return QN_CPU_FAIL(NO_MEMORY, why, "LLVM: out of memory");
    snprintf(name, sizeof name, "quern.%u", llvm->dylib_count++);
    made->dylib = llvm->call.session_create_dylib(llvm->session, name);
    int status = define_imports(llvm, made->dylib, why);
    if (status)
        free(made);
    else
        *module = made;
    return status;
}

/* The lock is held. A JITDylib whose contents cannot be removed is never used again. */
static void module_drop(struct qn_llvm *llvm, struct qn_module *module)
{
    char ignored[8];
    error_ref error = llvm->call.tracker_remove(module->tracker);

    llvm->call.tracker_release(module->tracker);
    module->tracker = NULL;
    if (error) {
        error_take(llvm, error, ignored, sizeof ignored);
        free(module);
        return;
    }
    module->next = llvm->idle;
    llvm->idle = module;
}

/* The lock is held. */
static int link_object(struct qn_llvm *llvm, struct qn_module *module, const void *object,
                       size_t object_bytes, const char *function, struct quern_message *why)
{
    buffer_ref buffer = llvm->call.buffer_copy(object, object_bytes, "kernel");
    void *address;

    module->tracker = llvm->call.tracker_create(module->dylib);
    llvm->report[0] = 0;
    error_ref error = llvm->call.jit_add_object(llvm->jit, module->tracker, buffer);
    if (error)
        return fail(llvm, "object", error, why);
    return lookup(llvm, module->dylib, function, &address, why);
}

int qn_llvm_link(struct qn_llvm *llvm, const void *object, size_t object_bytes,
                 const char *function, struct qn_module **module, struct quern_message *why)
{
    struct qn_module *made;

    pthread_mutex_lock(&llvm->lock);
    int status = module_make(llvm, &made, why);
    if (!status) {
        status = link_object(llvm, made, object, object_bytes, function, why);
        if (status)
            module_drop(llvm, made);
        else
            *module = made;
    }
    pthread_mutex_unlock(&llvm->lock);
    return status;
}

void qn_llvm_unlink(struct qn_llvm *llvm, struct qn_module *module)
{
    if (!module)
        return;
    pthread_mutex_lock(&llvm->lock);
    module_drop(llvm, module);
    pthread_mutex_unlock(&llvm->lock);
}
