/* Is a process that wrote its name down still there? A pid alone says nothing: it is used again,
 * means another process in another container, and survives no reboot. So four things are written
 * down
 *
 *     boot id          the machine, since it was switched on
 *     pid namespace    the container
 *     pid
 *     start time       tells a process from the next one with its pid
 *
 * and a process is only called alive or dead by one that has the same first two.
 */
#include "cache/holder.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROCESS_ALIVE 1
#define PROCESS_GONE 0
#define PROCESS_HIDDEN (-1)

/* "PID (name) S ppid ...": the name may hold spaces and brackets, so the fields are counted from
 * the last bracket. Field 3 is the state, 20 the number of threads, 22 the start time.
 *
 * A killed process whose parent has not asked for it stays as a zombie, pid, start time and all: it
 * is gone. One whose main thread has ended while others run looks like a zombie too, with more
 * threads than one: it is alive. */
static int read_process(const char *name, int64_t *start_time)
{
    char line[1024];
    FILE *file = fopen(name, "re");

    if (!file)
        return access("/proc/self/stat", R_OK) ? PROCESS_HIDDEN : PROCESS_GONE;
    size_t size = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[size] = 0;
    const char *fields = strrchr(line, ')');
    char state = 0;
    long threads = 0;
    unsigned long long start = 0;
    if (!fields || sscanf(fields + 1,
                          " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
                          "%ld %*s %llu",
                          &state, &threads, &start) != 3)
        return size ? PROCESS_HIDDEN : PROCESS_GONE; /* nothing to read: it went in between */
    *start_time = (int64_t)start;
    return strchr("ZXx", state) && threads <= 1 ? PROCESS_GONE : PROCESS_ALIVE;
}

static void read_boot_id(char *boot_id, int size)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

    *boot_id = 0;
    if (!file)
        return;
    if (!fgets(boot_id, size, file))
        *boot_id = 0;
    boot_id[strcspn(boot_id, "\n")] = 0;
    fclose(file);
}

void qn_holder_init(struct qn_holder *self)
{
    struct stat st;

    memset(self, 0, sizeof *self);
    self->pid = getpid();
    read_process("/proc/self/stat", &self->start_time);
    if (stat("/proc/self/ns/pid", &st) == 0)
        self->pid_namespace = (int64_t)st.st_ino;
    read_boot_id(self->boot_id, sizeof self->boot_id);
    gethostname(self->host, sizeof self->host - 1);
}

enum qn_life qn_holder_life(const struct qn_holder *holder, const struct qn_holder *self)
{
    char name[64];
    int64_t start_time = 0;

    if (!holder->start_time || !holder->pid_namespace || !*holder->boot_id ||
        holder->pid_namespace != self->pid_namespace || strcmp(holder->boot_id, self->boot_id))
        return QN_LIFE_UNKNOWN;
    snprintf(name, sizeof name, "/proc/%lld/stat", (long long)holder->pid);
    switch (read_process(name, &start_time)) {
    case PROCESS_ALIVE:
        return start_time == holder->start_time ? QN_LIFE_ALIVE : QN_LIFE_DEAD;
    case PROCESS_GONE:
        return QN_LIFE_DEAD;
    default:
        return QN_LIFE_UNKNOWN;
    }
}
