/* The place of a store: its file, the folder it is in, and the files beside it. place.c looks at
 * them and moves them, and never reads what is in them. */
#ifndef QN_PLACE_H
#define QN_PLACE_H

#include <stddef.h>
#include <sys/types.h>

struct qn_place {
    char *path;       /* as the user gave it: for messages */
    char *real;       /* absolute, its folder without symbolic links; NULL: in memory */
    int is_read_only; /* the file, or its folder, may not be written */
    int is_folder_read_only;
    int is_base;    /* only ever read: a file of root's is as good as one's own */
    int is_network; /* on a network file system */
    dev_t device;   /* with inode: the file that qn_place_look() saw */
    ino_t inode;
};

enum qn_place_status {
    QN_PLACE_FOUND,      /* a file of ours, as far as can be told from outside */
    QN_PLACE_EMPTY,      /* nothing there, or a file of no bytes: may be created */
    QN_PLACE_UNWRITABLE, /* nothing there, and nothing can be made; `error` says why */
    QN_PLACE_REFUSED     /* `error` is set: a user must mend it */
};

/* Makes the missing folders, mode 0700. QN_PLACE_EMPTY when done, else UNWRITABLE or REFUSED. */
enum qn_place_status qn_place_init(struct qn_place *place, const char *path, char *error,
                                   size_t error_bytes);
/* The place of a base: nothing is made, and what is not there is QN_PLACE_REFUSED. */
enum qn_place_status qn_place_init_base(struct qn_place *place, const char *path, char *error,
                                        size_t error_bytes);
void qn_place_fini(struct qn_place *place);

/* Looks at the file without opening it: its kind, owner and mode, those of the files that SQLite
 * keeps beside it, and the owner and mode of its folder. */
enum qn_place_status qn_place_look(struct qn_place *place, char *error, size_t error_bytes);

/* Is the open file `fd` the one that qn_place_look() saw, and still private? Borrows fd. */
int qn_place_is_seen(const struct qn_place *place, int fd);
/* Is the open file `fd` a plain one that only the user may write? Borrows fd. */
int qn_place_is_private(int fd);

/* The lock file PATH.lock, held by one process at a time for as long as it lives, for creating and
 * setting aside. The descriptor to close, or -1 with errno (ETIMEDOUT after timeout_s). */
int qn_place_lock(const struct qn_place *place, double timeout_s);

/* Under the lock: renames the file that qn_place_look() saw, and those beside it, to
 * PATH.damaged-<*number>. 0, also when another process has already done so (*number is 0), or -1
 * with errno. */
int qn_place_set_aside(const struct qn_place *place, int *number);

/* Does PATH<suffix> exist and have bytes? */
int qn_place_has(const struct qn_place *place, const char *suffix);
/* PATH<suffix>, malloc'ed. */
char *qn_place_beside(const struct qn_place *place, const char *suffix);
/* Can errno `code` be blamed on a disk that is read-only, full or not ours to write? */
int qn_place_is_unwritable(int code);

#endif
