/* Who holds a lease, and whether that process still lives. */
#ifndef QN_HOLDER_H
#define QN_HOLDER_H

#include <stdint.h>

struct qn_holder {
    int64_t pid;
    int64_t start_time;    /* clock ticks since boot; 0: /proc did not say */
    int64_t pid_namespace; /* inode; 0: /proc did not say */
    char boot_id[40];
    char host[65]; /* for people */
};

enum qn_life {
    QN_LIFE_ALIVE,  /* this very process runs on this machine */
    QN_LIFE_DEAD,   /* it does not, though its pid may be in use again */
    QN_LIFE_UNKNOWN /* another machine, another container, or no /proc: only a heartbeat can tell */
};

void qn_holder_init(struct qn_holder *self); /* of this process */
enum qn_life qn_holder_life(const struct qn_holder *holder, const struct qn_holder *self);

#endif
