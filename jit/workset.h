/* Private memory to run kernels on: guarded copies of a call's regions, reset and restored at will,
 * so that whatever a kernel does the caller's arrays come back bit for bit. */
#ifndef QN_WORKSET_H
#define QN_WORKSET_H

#include "jit/region.h"

struct qn_workset_options {
    size_t memory_bytes;  /* device memory it may take; 0: a quarter of what is free */
    int64_t rotate_bytes; /* copies until they make up this much: inputs are then not in cache */
    bool is_flushable; /* a GPU: where copies do not make it up, writing as much elsewhere does */
    uint64_t seed;     /* of the guards' pattern */
};

struct qn_workset {
    const struct qn_regions *map;
    bool is_private[QUERN_MAX_ARRAYS]; /* else the region is used in place */
    int64_t slot[QUERN_MAX_ARRAYS];    /* of a region's first byte within a copy */
    int64_t slot_end[QUERN_MAX_ARRAYS];
    int64_t slot_begin[QUERN_MAX_ARRAYS];
    int64_t copy_bytes;
    int copies; /* at least 1; copy 0 has guards and is where kernels are checked */
    int next;   /* copy that the next timed launch uses */
    char *slab;
    size_t slab_bytes;
    char *flush; /* rotate_bytes that are written before a timed launch; NULL: copies do */
    size_t flush_bytes;
    char *saved[QUERN_MAX_ARRAYS]; /* device copy of a written pool's segments */
    char *workspace;               /* between its guards */
    size_t workspace_bytes;        /* as last asked for */
    size_t workspace_allocated;
    unsigned char guard[2 * QN_GUARD_BYTES];
};

/* The memory of map->bound is what copies are made from: nothing but a workset may write it until
 * _fini, which puts back what a pool's kernels changed in place. */
int qn_workset_init(struct qn_workset *set, const struct qn_regions *map,
                    const struct qn_workset_options *options, struct quern_message *why);
int qn_workset_fini(struct qn_workset *set, struct quern_message *why);
int64_t qn_workset_bytes(const struct qn_workset *set); /* device memory held */

/* Where the regions of copy `copy` lie. */
void qn_workset_place(const struct qn_workset *set, int copy, struct qn_place *place);
/* Scratch of `bytes` bytes at set->workspace, NULL if 0. */
int qn_workset_workspace(struct qn_workset *set, size_t bytes, struct quern_message *why);

/* All of every copy, guards too, as it was at first. */
int qn_workset_reset(struct qn_workset *set, struct quern_message *why);
/* Restore-value: what a call reads and writes. Workspace apart. */
int qn_workset_restore(struct qn_workset *set, int copy, struct quern_message *why);
/* How many launches, on copies in turn, one restoring of each can serve: 1 if a pool is used in
 * place, since all copies share it. */
int qn_workset_batch(const struct qn_workset *set);
/* Drive what earlier launches and restoring left out of the device's cache, where copies in turn do
 * not. Does nothing on a CPU. */
int qn_workset_flush(struct qn_workset *set, struct quern_message *why);
/* Whether restoring does anything. */
bool qn_workset_restores(const struct qn_workset *set);
/* Fill the workspace with NaN: no kernel may count on what scratch holds. */
int qn_workset_scratch(struct qn_workset *set, struct quern_message *why);

/* QUERN_CHECK_FAILED if a guard of copy 0 or of the workspace was written. */
int qn_workset_guards(const struct qn_workset *set, struct quern_message *why);
/* Put back inputs that are used in place, if a kernel wrote them. */
int qn_workset_mend(struct qn_workset *set, const struct qn_image *before,
                    struct quern_message *why);

#endif
