/* Where the store's file lives: looks before anything is opened, makes folders, locks, sets aside.
 *
 *     ~/.cache/quern/              0700, made with its missing parents
 *         quern.db                 0600, the store
 *         quern.db-wal, -shm       SQLite's, there while a process has the store open
 *         quern.db.lock            flock'ed while the store is created or set aside; stays, empty
 *         quern.db.new             a store being created, renamed when whole (cache/create.c)
 *         quern.db.damaged-<n>     a store that SQLite found damaged
 *
 * What is in the file gets executed, so whoever can write it, or a file beside it that SQLite
 * replays into it, can run code as the user. Hence three checks:
 *
 *   1. each file must be a plain one, belong to the user (a base: or to root) and be writable by
 *      nobody else (a base: but his private group)
 *   2. the folder must be the user's or root's, and others may write it only with the sticky bit
 *      (/tmp): they can then add files, which 1 refuses, and cannot move the user's away
 *   3. what SQLite has opened is compared with what 1 saw, through SQLite's own descriptor
 *      (qn_place_is_seen): names can change their meaning between a look and an open
 *
 * Folders further up are not judged: in a container their owners are often not to be told apart.
 *
 * The file itself is never opened here. POSIX locks belong to a process and an inode, and closing
 * *any* descriptor of the inode drops them all: an open() and close() here would take away the
 * locks of the connections that this process already has on the file, and with them the file's
 * soundness. lstat() has no such effect; what is inside is read through SQLite's own handle
 * (cache/db.c).
 */
#include "cache/place.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#define DAMAGED_FILES 9 /* kept for inspection; the last is written over when all are taken */

int qn_place_is_unwritable(int code)
{
    return code == EACCES || code == EPERM || code == EROFS || code == ENOSPC || code == EDQUOT;
}

char *qn_place_beside(const struct qn_place *place, const char *suffix)
{
    char *name = NULL;

    return asprintf(&name, "%s%s", place->real, suffix) < 0 ? NULL : name;
}

int qn_place_has(const struct qn_place *place, const char *suffix)
{
    struct stat st;
    char *name = qn_place_beside(place, suffix);
    int is_there = name && lstat(name, &st) == 0 && st.st_size > 0;

    free(name);
    return is_there;
}

/* ---- The folder ---- */

/* mkdir -p of the folders in `path`, which is changed and put back; the part after the last slash
 * is the file's. */
static int make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        int code = mkdir(path, 0700) ? errno : 0;
        /* A folder that exists says EEXIST, or what its parent's mount says before that. */
        int is_there = !code || code == EEXIST || access(path, F_OK) == 0;
        *slash = '/';
        if (!is_there) {
            errno = code;
            return -1;
        }
    }
    return 0;
}

/* On these, shared memory is not shared between hosts, and WAL needs it. */
static int is_network_folder(const char *folder)
{
    static const unsigned network[] = {
        0x6969,     /* NFS */
        0x517b,     /* SMB */
        0xff534d42, /* CIFS */
        0xfe534d42, /* SMB2 */
        0x01021997, /* 9P */
        0x0bd00bd0, /* Lustre */
        0x47504653, /* GPFS */
        0x19830326, /* BeeGFS */
        0x00c36400, /* Ceph */
    };
    struct statfs fs;

    if (statfs(folder, &fs))
        return 0;
    for (size_t i = 0; i < sizeof network / sizeof *network; i++)
        if ((unsigned)fs.f_type == network[i])
            return 1;
    return 0;
}

/* realpath of the folder, then the name: later changes of directory do not matter, and what SQLite
 * opens (with NOFOLLOW, which minds every component) holds no symbolic link, but for the
 * last one perhaps. */
static char *resolve(struct qn_place *place)
{
    const char *slash = strrchr(place->path, '/');
    const char *name = slash ? slash + 1 : place->path;
    char *folder = slash ? strndup(place->path, (size_t)(slash - place->path) + 1) : strdup(".");
    char *real = folder ? realpath(folder, NULL) : NULL;
    char *joined = NULL;

    if (real) {
        place->is_network = is_network_folder(real);
        if (asprintf(&joined, "%s/%s", strcmp(real, "/") ? real : "", name) < 0)
            joined = NULL;
    }
    free(real);
    free(folder);
    return joined;
}

enum qn_place_status qn_place_init(struct qn_place *place, const char *path, char *error,
                                   size_t error_bytes)
{
    memset(place, 0, sizeof *place);
    place->path = strdup(path);
    if (!place->path) {
        snprintf(error, error_bytes, "cache=%s: out of memory", path);
        return QN_PLACE_REFUSED;
    }
    if (!*path)
        return QN_PLACE_EMPTY;
    if (path[strlen(path) - 1] == '/') {
        snprintf(error, error_bytes, "cache=%s: is a folder; allowed: the name of a file", path);
        return QN_PLACE_REFUSED;
    }
    if (make_folders(place->path) || !(place->real = resolve(place))) {
        int code = errno;
        snprintf(error, error_bytes, "cache=%s: its folder cannot be made or entered: %s", path,
                 strerror(code));
        return qn_place_is_unwritable(code) ? QN_PLACE_UNWRITABLE : QN_PLACE_REFUSED;
    }
    return QN_PLACE_EMPTY;
}

enum qn_place_status qn_place_init_base(struct qn_place *place, const char *path, char *error,
                                        size_t error_bytes)
{
    memset(place, 0, sizeof *place);
    place->is_base = 1;
    place->path = strdup(path);
    /* Where the name leads: what counts is who may write that file and its folder. */
    place->real = place->path ? realpath(path, NULL) : NULL;
    if (!place->real && errno == ENOENT && place->path)
        place->real = resolve(place);
    if (place->real)
        return QN_PLACE_EMPTY;
    snprintf(error, error_bytes, "cache=%s: its folder cannot be entered: %m", path);
    return QN_PLACE_REFUSED;
}

void qn_place_fini(struct qn_place *place)
{
    free(place->path);
    free(place->real);
}

/* ---- The file ---- */

/* Mode bits count beside access(): root may write anything, yet a file without a write bit is a
 * file that somebody wants left alone. */
static int may_write(const char *name, mode_t mode)
{
    return (mode & S_IWUSR) && faccessat(AT_FDCWD, name, W_OK, AT_EACCESS) == 0;
}

static char *folder_of(const struct qn_place *place)
{
    char *folder = strdup(place->real);

    if (folder) {
        char *slash = strrchr(folder, '/');
        slash[slash == folder] = 0; /* "/name" is in "/" */
    }
    return folder;
}

static int may_write_folder(const struct qn_place *place)
{
    struct stat st;
    char *folder = folder_of(place);
    int is_allowed = folder && stat(folder, &st) == 0 && may_write(folder, st.st_mode);

    free(folder);
    return is_allowed;
}

/* A group with the user's own number is his private one, which Debian makes along with him: only he
 * is in it. */
static int is_shared_group(const struct stat *st)
{
    return st->st_gid != geteuid();
}

/* May somebody else put files into the folder, or take the user's away? */
static int is_writable_by_others(const struct stat *st)
{
    int is_groups = (st->st_mode & S_IWGRP) && is_shared_group(st);

    return !(st->st_mode & S_ISVTX) && (is_groups || (st->st_mode & S_IWOTH));
}

static int is_folder_trusted(const struct qn_place *place, char *error, size_t error_bytes)
{
    struct stat st;
    char *folder = folder_of(place);
    int is_good = 0;

    if (!folder || stat(folder, &st))
        snprintf(error, error_bytes, "cache=%s: its folder cannot be looked at: %m", place->path);
    else if (st.st_uid != geteuid() && st.st_uid != 0)
        snprintf(error, error_bytes,
                 "cache=%s: its folder %s belongs to uid=%u; allowed: a folder of your own "
                 "(uid=%u) or root's, since what is in it gets executed",
                 place->path, folder, (unsigned)st.st_uid, (unsigned)geteuid());
    else if (is_writable_by_others(&st))
        snprintf(error, error_bytes,
                 "cache=%s: its folder has mode=%04o, others may write it; allowed: chmod go-w %s, "
                 "since what is in it gets executed",
                 place->path, (unsigned)st.st_mode & 07777, folder);
    else
        is_good = 1;
    free(folder);
    return is_good;
}

/* A base is often part of an image that root made. */
static int is_owner_trusted(const struct qn_place *place, const struct stat *st)
{
    return st->st_uid == geteuid() || (place->is_base && st->st_uid == 0);
}

/* Of a base the user's private group may be a writer, as installers make files where that is the
 * rule (umask 002). */
static int is_private_file(const struct qn_place *place, const struct stat *st)
{
    int is_groups = (st->st_mode & S_IWGRP) && (!place->is_base || is_shared_group(st));

    return S_ISREG(st->st_mode) && !is_groups && !(st->st_mode & S_IWOTH);
}

/* Is `name` a plain file that only the user may write? 1, else 0 with the line. */
static int is_trusted(const struct qn_place *place, const char *name, const struct stat *st,
                      char *error, size_t error_bytes)
{
    if (S_ISDIR(st->st_mode))
        snprintf(error, error_bytes, "cache=%s: %s is a folder; allowed: the name of a file",
                 place->path, name);
    else if (S_ISLNK(st->st_mode))
        snprintf(error, error_bytes, "cache=%s: %s is a symbolic link; allowed: the file itself",
                 place->path, name);
    else if (!S_ISREG(st->st_mode))
        snprintf(error, error_bytes, "cache=%s: %s is not a plain file", place->path, name);
    else if (!is_owner_trusted(place, st))
        snprintf(error, error_bytes,
                 "cache=%s: %s belongs to uid=%u; allowed: a file of your own (uid=%u)%s, since "
                 "what is in it gets executed",
                 place->path, name, (unsigned)st->st_uid, (unsigned)geteuid(),
                 place->is_base ? " or root's" : "");
    else if (!is_private_file(place, st))
        snprintf(
            error, error_bytes,
            "cache=%s: %s has mode=%04o, others may write it; allowed: chmod %s, since what is "
            "in it gets executed",
            place->path, name, (unsigned)st->st_mode & 07777, place->is_base ? "go-w" : "600");
    else
        return 1;
    return 0;
}

/* The files that SQLite would take pages from. */
static int are_companions_trusted(const struct qn_place *place, char *error, size_t error_bytes)
{
    static const char *const suffixes[] = { "-wal", "-shm", "-journal" };
    int is_good = 1;

    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes && is_good; i++) {
        struct stat st;
        char *name = qn_place_beside(place, suffixes[i]);
        if (name && lstat(name, &st) == 0)
            is_good = is_trusted(place, name, &st, error, error_bytes);
        free(name);
    }
    return is_good;
}

static enum qn_place_status nothing_there(const struct qn_place *place, char *error,
                                          size_t error_bytes)
{
    if (place->is_base) {
        snprintf(error, error_bytes, "cache=%s: is not there, or has no bytes", place->path);
        return QN_PLACE_REFUSED;
    }
    if (may_write_folder(place))
        return QN_PLACE_EMPTY;
    snprintf(error, error_bytes, "cache=%s: its folder is read-only and the file does not exist",
             place->path);
    return QN_PLACE_UNWRITABLE;
}

enum qn_place_status qn_place_look(struct qn_place *place, char *error, size_t error_bytes)
{
    struct stat st;

    if (!is_folder_trusted(place, error, error_bytes))
        return QN_PLACE_REFUSED;
    int code = lstat(place->real, &st) ? errno : 0;
    if (code && code != ENOENT) {
        snprintf(error, error_bytes, "cache=%s: cannot be looked at: %s", place->path,
                 strerror(code));
        return QN_PLACE_REFUSED;
    }
    if ((!code && !is_trusted(place, place->real, &st, error, error_bytes)) ||
        !are_companions_trusted(place, error, error_bytes))
        return QN_PLACE_REFUSED;
    if (code)
        return nothing_there(place, error, error_bytes);
    if (faccessat(AT_FDCWD, place->real, R_OK, AT_EACCESS)) {
        snprintf(error, error_bytes, "cache=%s: cannot be read: %s", place->path, strerror(errno));
        return QN_PLACE_REFUSED;
    }
    if (st.st_size == 0)
        return nothing_there(place, error, error_bytes);
    place->device = st.st_dev;
    place->inode = st.st_ino;
    place->is_folder_read_only = !may_write_folder(place);
    place->is_read_only =
        place->is_base || place->is_folder_read_only || !may_write(place->real, st.st_mode);
    if (place->is_base && (qn_place_has(place, "-wal") || qn_place_has(place, "-journal"))) {
        snprintf(error, error_bytes,
                 "cache=%s: is being written, or was not closed: rows are in a -wal or -journal "
                 "beside it; allowed: a closed file (quern cache stats --cache closes one)",
                 place->path);
        return QN_PLACE_REFUSED;
    }
    return QN_PLACE_FOUND;
}

/* ---- What SQLite has opened ---- */

int qn_place_is_private(int fd)
{
    static const struct qn_place own = { .is_base = 0 };
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_uid == geteuid() && is_private_file(&own, &st);
}

/* The owner is asked for again: an inode's number is free for another file once it is deleted. */
int qn_place_is_seen(const struct qn_place *place, int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_dev == place->device && st.st_ino == place->inode &&
           is_owner_trusted(place, &st) && is_private_file(place, &st);
}

/* ---- The lock file ---- */

/* flock and not a file's existence: the kernel lets go of it when its holder dies. Polled, so that
 * a holder that was stopped delays a caller by timeout_s and not for ever. */
int qn_place_lock(const struct qn_place *place, double timeout_s)
{
    const struct timespec pause = { .tv_nsec = 2 * 1000 * 1000 };
    char *name = qn_place_beside(place, ".lock");
    int fd = name ? open(name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600) : -1;
    int rc = -1;

    for (double waited_s = 0; fd >= 0; waited_s += 0.002) {
        rc = flock(fd, LOCK_EX | LOCK_NB);
        if (!rc || (errno != EWOULDBLOCK && errno != EINTR))
            break;
        if (waited_s >= timeout_s) {
            errno = ETIMEDOUT;
            break;
        }
        nanosleep(&pause, NULL);
    }
    int code = errno;
    if (rc && fd >= 0) {
        close(fd);
        fd = -1;
    }
    free(name);
    errno = code;
    return fd;
}

/* ---- Setting aside ---- */

static int move_beside(const struct qn_place *place, const char *suffix, int n)
{
    char *from = qn_place_beside(place, suffix);
    char *to = NULL;
    int rc = -1;

    if (from && asprintf(&to, "%s.damaged-%d%s", place->real, n, suffix) >= 0)
        rc = rename(from, to);
    free(to);
    free(from);
    return rc;
}

static int free_number(const struct qn_place *place)
{
    int n = 1;

    for (; n < DAMAGED_FILES; n++) {
        char suffix[32];
        snprintf(suffix, sizeof suffix, ".damaged-%d", n);
        if (!qn_place_has(place, suffix))
            break;
    }
    return n;
}

/* Connections that are still open on the moved file go on with it: SQLite asks whether its file has
 * moved before it deletes a -wal by name, so the new file's is safe. */
int qn_place_set_aside(const struct qn_place *place, int *number)
{
    struct stat st;

    *number = 0;
    if (lstat(place->real, &st) || st.st_ino != place->inode || st.st_dev != place->device)
        return 0;
    int n = free_number(place);
    if (move_beside(place, "", n))
        return -1;
    move_beside(place, "-wal", n);
    move_beside(place, "-journal", n);
    move_beside(place, "-shm", n);
    *number = n;
    return 0;
}
