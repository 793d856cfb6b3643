/* The shipped device profiles. A profile says what choices depend on beyond the target; its name is
 * part of every tuning key, so a name is never given a second meaning. CPU rows are generic
 * classes: a real machine's profile is read from the machine. */
#include "jit/profile.h"

#include "jit/text.h"

#include <string.h>

#define KIB INT64_C(1024)
#define MIB (KIB * KIB)

static const struct quern_profile profiles[] = {
    /* name               cores l1        l2       l3        GB/s */
    { "cpu-server-16", 16, 48 * KIB, 2 * MIB, 64 * MIB, 150 },
    { "cpu-server-64", 64, 48 * KIB, 2 * MIB, 256 * MIB, 300 },
    { "cpu-desktop-8", 8, 32 * KIB, 1 * MIB, 32 * MIB, 60 },
};

int qn_profile_find(const char *name, struct quern_profile *profile, struct quern_message *why)
{
    char known[512] = "";
    for (size_t i = 0; i < sizeof(profiles) / sizeof(profiles[0]); i++) {
        if (!strcmp(profiles[i].name, name)) {
            *profile = profiles[i];
            return QUERN_OK;
        }
        qn_list_add(known, sizeof(known), profiles[i].name);
    }
    return quern_refuse(why, "device-profile=%s: must be one of %s", name, known);
}
