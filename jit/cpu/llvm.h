/* LLVM's in-memory linker, loaded on demand. jit/cpu/llvm.c says how. */
#ifndef QN_LLVM_H
#define QN_LLVM_H

#include "jit/backend.h"

struct qn_llvm;

/* Loads LLVM and makes a linker: 10 ms and some 50 MB. QUERN_LOAD says how to get one. */
int qn_llvm_open(struct qn_llvm **llvm, struct quern_message *why);
/* Every module must be unlinked before. NULL is allowed. */
void qn_llvm_close(struct qn_llvm *llvm);
/* The library that was loaded, as the loader found it. */
const char *qn_llvm_path(const struct qn_llvm *llvm);

/* Link an object that qn_elf_check() let through, into a namespace of its own. `function` is any
 * function that it defines: asking for it makes the linker work now and fail here. The bytes are
 * copied. Threads: any. */
int qn_llvm_link(struct qn_llvm *llvm, const void *object, size_t object_bytes,
                 const char *function, struct qn_module **module, struct quern_message *why);
/* Frees its code. None of it may be running. NULL is allowed. */
void qn_llvm_unlink(struct qn_llvm *llvm, struct qn_module *module);
/* The address of a symbol of the module. */
int qn_llvm_lookup(struct qn_llvm *llvm, struct qn_module *module, const char *name, void **address,
                   struct quern_message *why);

#endif
