/* What the modules of jit/cpu/ share beside clang.h and llvm.h. */
#ifndef QN_CPU_H
#define QN_CPU_H

#include "jit/backend.h"

/* Write the line into `why` and give the status that says what kind of failure it is. */
#define QN_CPU_FAIL(status, why, ...) (quern_refuse(why, __VA_ARGS__), (int)QUERN_##status)

/* ---- cpu_target.c -------------------------------------------------------------------------- */

/* What this processor and its kernel execute. Asks the kernel for the AMX tile registers, which
 * holds for the process from then on. */
void qn_cpu_target_detect(struct quern_target *target);

/* Name, caches; `threads` as cores. Equal on every run on the same machine with equal `threads`. */
void qn_cpu_profile_detect(int threads, struct quern_profile *profile);

/* 0 if code for `target` runs where `host` is what runs; else QUERN_INVALID and what is missing. */
int qn_cpu_target_accepts(const struct quern_target *host, const struct quern_target *target,
                          struct quern_message *why);

/* The canonical compile options for `target`. */
void qn_cpu_target_options(const struct quern_target *target, char *text, size_t bytes);

/* ---- elf_check.c --------------------------------------------------------------------------- */

/* QUERN_LOAD unless the blob is a relocatable object for `target` that a linker may be given. On
 * success *function is the name, within the blob, of a function that it defines. */
int qn_elf_check(const void *blob, size_t blob_bytes, const struct quern_target *target,
                 const char **function, struct quern_message *why);

/* ---- grid.c -------------------------------------------------------------------------------- */

/* A kernel's entry: one block of a grid. */
typedef void qn_cpu_entry(const void *args, uint32_t x, uint32_t y, uint32_t z);

/* What runs a grid when nobody says otherwise: OMP_NUM_THREADS, else the processors we may use. */
int qn_grid_default_threads(void);

/* Every block of the step, on `threads` threads when order is QN_GRID_PARALLEL. Returns when all
 * have ended. QUERN_INVALID: 2^63 blocks and more. */
int qn_grid_run(qn_cpu_entry *entry, const struct quern_step_launch *step, int threads,
                enum qn_grid_order order, struct quern_message *why);

#endif
