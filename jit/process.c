/* A subprocess that a library may start inside a stranger's program.
 *
 *     input --> memfd ----> 0 +-------+ 1 ----> pipe --> output
 *                             | child |
 *     SIGKILL at timeout ---> +-------+ 2 ----> pipe --> log
 *
 * 1. The input is put whole into an anonymous file: no writing while reading, so no deadlock and no
 *    SIGPIPE for the host.
 * 2. vfork, then exec. fork would copy the page tables of a host that may hold many GB; posix_spawn
 *    cannot ask for the death signal, without which a killed host leaves its compilers behind. The
 *    child shares our memory until exec and touches nothing but its stack and `errno_out`.
 * 3. Both pipes are read until they end, the child ends or time is up. A pipe alone is not waited
 *    for: a daemon that the child started may hold it open for ever.
 * 4. The child is reaped, unless the host did it first.
 *
 * Invariants: whatever happens the child is dead and reaped on return; every descriptor is
 * close-on-exec from birth, so that two threads doing this at once do not give each other's pipes
 * to their children; nothing is written to any file system; the host's signal dispositions, mask
 * and working directory are as before.
 *
 * The child is in a process group of its own, for the time limit to reach what it started, and gets
 * SIGKILL when the calling *thread* dies, which is when the host is killed, since that thread waits
 * here. What the child itself started does not get it: a wrapper script should exec its program. */
#define _GNU_SOURCE
#include "jit/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "jit/context.h"

enum {
    LOG_KEPT = 1 << 20,
    READ_BYTES = 64 << 10,
    FIRST_FREE_FD = 3,
    SLICE_MS = 50, /* how often a child that ended with its pipes held open is noticed */
    EXEC_FAILED = 127
};

/* One of the child's outputs as it is read. */
struct stream {
    int fd; /* -1: ended */
    char *data;
    size_t bytes, capacity, limit;
    int is_truncating; /* past the limit: drop, instead of failing */
};

struct child {
    const struct qn_process_request *request;
    pid_t pid, parent;
    int input, output, log; /* its ends */
    volatile int errno_out; /* written by the child while it shares our memory */
};

static double now_s(void)
{
    return qn_now_ms() * 1e-3;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* A host may have closed its standard streams; then new descriptors come out as 0 to 2, where the
 * child's dup2 calls would overwrite them. Moves *fd up; 0 or errno. */
static int move_up(int *fd)
{
    if (*fd >= FIRST_FREE_FD)
        return 0;
    int moved = fcntl(*fd, F_DUPFD_CLOEXEC, FIRST_FREE_FD);
    if (moved < 0)
        return errno;
    close(*fd);
    *fd = moved;
    return 0;
}

static int open_pipe(int *read_end, int *write_end)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC))
        return errno;
    *read_end = ends[0];
    *write_end = ends[1];
    int error = move_up(read_end);
    return error ? error : move_up(write_end);
}

/* Step 1. */
static int open_input(const void *data, size_t bytes, int *fd)
{
    const char *next = data;

    *fd = memfd_create("quern", MFD_CLOEXEC);
    if (*fd < 0)
        return errno;
    while (bytes) {
        ssize_t count = write(*fd, next, bytes);
        if (count < 0 && errno != EINTR)
            return errno;
        if (count > 0) {
            next += count;
            bytes -= (size_t)count;
        }
    }
    if (lseek(*fd, 0, SEEK_SET))
        return errno;
    return move_up(fd);
}

/* Step 2, the child's half. Only system calls: other threads of the host run on in this memory. */
static _Noreturn void child_main(struct child *child)
{
    const struct sigaction plain = { .sa_handler = SIG_DFL };
    const struct rlimit no_core = { 0, 0 };
    sigset_t none;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != child->parent) /* it died before the line above */
        _exit(EXEC_FAILED);
    setpgid(0, 0);
    setrlimit(RLIMIT_CORE, &no_core);
    /* exec resets handlers, not ignored signals; and no handler of the host may run here. */
    for (int number = 1; number < NSIG; number++)
        sigaction(number, &plain, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (dup2(child->input, 0) >= 0 && dup2(child->output, 1) >= 0 && dup2(child->log, 2) >= 0 &&
        !chdir("/")) {
#ifdef SYS_close_range
        syscall(SYS_close_range, FIRST_FREE_FD, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */);
#endif
        execve(child->request->path, child->request->argv, child->request->environment);
    }
    child->errno_out = errno;
    _exit(EXEC_FAILED);
}

/* Step 2. All signals are blocked around it: a handler of the host that ran in the child would work
 * on the host's memory. Returns 0 or errno. */
static int start(struct child *child)
{
    sigset_t all, before;

    child->parent = getpid();
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    child->pid = vfork();
    if (!child->pid)
        child_main(child);
    int error = child->pid < 0 ? errno : child->errno_out;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (child->pid > 0 && error)
        while (waitpid(child->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    return error;
}

/* Make room for a read and a final 0. */
static int stream_grow(struct stream *stream)
{
    size_t wanted = stream->bytes + READ_BYTES + 1;

    if (wanted <= stream->capacity)
        return 0;
    char *data = realloc(stream->data, 2 * wanted);
    if (!data)
        return ENOMEM;
    stream->data = data;
    stream->capacity = 2 * wanted;
    return 0;
}

/* Take what is there. 0, ENOMEM, or E2BIG past the limit. */
static int stream_read(struct stream *stream)
{
    int error = stream_grow(stream);
    if (error)
        return error;
    ssize_t count = read(stream->fd, stream->data + stream->bytes, READ_BYTES);
    if (count < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : errno;
    if (!count)
        close_fd(&stream->fd);
    stream->bytes += (size_t)count;
    if (stream->bytes <= stream->limit)
        return 0;
    stream->bytes = stream->limit;
    return stream->is_truncating ? 0 : E2BIG;
}

/* Reads whichever of the two has something within `wait_ms`. *is_idle: neither had. */
static int read_some(struct stream *streams, int wait_ms, int *is_idle)
{
    struct pollfd polled[2] = { { .fd = streams[0].fd, .events = POLLIN },
                                { .fd = streams[1].fd, .events = POLLIN } };
    int error = 0;

    *is_idle = poll(polled, 2, wait_ms) <= 0;
    for (int i = 0; i < 2 && !error && !*is_idle; i++)
        if (polled[i].revents)
            error = stream_read(&streams[i]);
    return error;
}

/* Non-zero once the child has ended; *result says how. `flags` as for waitpid. */
static int reap(const struct child *child, int flags, struct qn_process_result *result)
{
    int status;
    pid_t pid;

    do
        pid = waitpid(child->pid, &status, flags);
    while (pid < 0 && errno == EINTR);
    if (!pid)
        return 0;
    if (pid < 0) {
        result->end = QN_PROCESS_REAPED;
    } else if (WIFSIGNALED(status)) {
        result->end = QN_PROCESS_SIGNALLED;
        result->code = WTERMSIG(status);
    } else {
        result->end = QN_PROCESS_EXITED;
        result->code = WEXITSTATUS(status);
    }
    return 1;
}

static int is_open(const struct stream *streams)
{
    return streams[0].fd >= 0 || streams[1].fd >= 0;
}

/* Steps 3 and 4. 0 or errno; on an errno the child is dead as well. */
static int follow(const struct child *child, struct stream *streams,
                  struct qn_process_result *result)
{
    double limit_s = child->request->timeout_s, end_s = now_s() + limit_s;
    int is_idle, error, has_ended = 0;

    do {
        /* With both pipes at their end, the exit is a moment away: look often. */
        error = read_some(streams, is_open(streams) ? SLICE_MS : 1, &is_idle);
        if (!error && is_idle)
            has_ended = reap(child, WNOHANG, result);
    } while (!error && !has_ended && (limit_s <= 0 || now_s() < end_s));

    /* What it wrote between our last look and its end. */
    is_idle = 0;
    while (has_ended && !error && !is_idle && is_open(streams))
        error = read_some(streams, 0, &is_idle);
    if (!has_ended) {
        kill(-child->pid, SIGKILL);
        reap(child, 0, result);
        result->end = QN_PROCESS_TIMED_OUT;
    }
    if (error != E2BIG)
        return error;
    result->end = QN_PROCESS_TOO_LONG;
    return 0;
}

/* Ownership of a stream's text, terminated, goes to the result. */
static int stream_take(struct stream *stream, char **text, size_t *bytes)
{
    int error = stream->data ? 0 : stream_grow(stream);
    if (error)
        return error;
    stream->data[stream->bytes] = 0;
    *text = stream->data;
    *bytes = stream->bytes;
    stream->data = NULL;
    return 0;
}

int qn_process_run(const struct qn_process_request *request, struct qn_process_result *result)
{
    struct child child = { .request = request, .input = -1, .output = -1, .log = -1 };
    struct stream streams[2] = { { .fd = -1, .limit = request->output_limit },
                                 { .fd = -1, .limit = LOG_KEPT, .is_truncating = 1 } };
    struct qn_process_result found = { 0 };
    int error = open_input(request->input, request->input_bytes, &child.input);

    if (!error)
        error = open_pipe(&streams[0].fd, &child.output);
    if (!error)
        error = open_pipe(&streams[1].fd, &child.log);
    if (!error)
        error = start(&child);
    close_fd(&child.input);
    close_fd(&child.output);
    close_fd(&child.log);
    if (!error)
        error = follow(&child, streams, &found);
    if (!error)
        error = stream_take(&streams[0], &found.output, &found.output_bytes);
    if (!error)
        error = stream_take(&streams[1], &found.log, &found.log_bytes);
    for (int i = 0; i < 2; i++) {
        close_fd(&streams[i].fd);
        free(streams[i].data);
    }
    if (error)
        qn_process_result_fini(&found);
    else
        *result = found;
    return error;
}

void qn_process_result_fini(struct qn_process_result *result)
{
    free(result->output);
    free(result->log);
    result->output = result->log = NULL;
}
