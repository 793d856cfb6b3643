/* Objects for the suites that feed the CPU backend good and bad ones. */
#ifndef CPU_OBJECT_H
#define CPU_OBJECT_H

#include <stddef.h>

#include <quern/family.h>

struct cpu_object {
    unsigned char *data; /* malloc'ed */
    size_t bytes;
};

/* What clang makes of the source, unchecked: also what the backend would refuse to hand out. Fails
 * the test if it does not compile. */
struct cpu_object cpu_object_make(const struct quern_target *target, const char *source);

/* A kernel with something of everything an object may have: code, tables of pointers, constants,
 * zeros, calls. */
extern const char cpu_object_varied_source[];

/* One to four random changes, most of them in the tables, where the structure is. *state as for
 * rand_r(). */
void cpu_object_damage(unsigned char *data, size_t bytes, unsigned *state);

/* A fresh random number. */
unsigned cpu_object_dice(void);

#endif
