/* The work of a sweep: every device of the host tunes rows of one list. */
#ifndef TOOLS_SWEEP_RUN_H
#define TOOLS_SWEEP_RUN_H

#include "sweep_list.h"

#include <quern/family.h>

enum { SWEEP_MOST_DEVICES = 64 };

struct sweep_device {
    char name[32];
    struct quern_profile profile;
    int kind; /* its number among those of the host that differ; struct sweep_row's `profile` */
};

struct sweep_run {
    struct sweep_device devices[SWEEP_MOST_DEVICES];
    int device_count;
    int is_interrupted; /* by SIGINT or SIGTERM: what is SWEEP_LEFT was not begun */
    double seconds;
};

/* Tune what the list holds, on the devices that are here; an exit code if that cannot begin. What
 * comes of each row stands in it. Rows that no budget was left for stay SWEEP_LEFT. */
int sweep_run(struct session *session, struct sweep_list *list, struct sweep_run *run);
/* The same on the devices that `run` names; each gets a context of its own. */
int sweep_run_on(const struct args *args, struct sweep_list *list, struct sweep_run *run);

#endif
