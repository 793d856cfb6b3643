/* The verbs. Each takes the whole command line and returns the exit code of the process. */
#ifndef TOOLS_CMD_H
#define TOOLS_CMD_H

#include "args.h"

int cmd_doctor(const struct args *args);
int cmd_families(const struct args *args);
int cmd_gen(const struct args *args);
int cmd_build(const struct args *args);
int cmd_run(const struct args *args);
int cmd_tune(const struct args *args);
int cmd_prebuild(const struct args *args);
int cmd_sweep(const struct args *args);
int cmd_cache(const struct args *args);
int cmd_report(const struct args *args);

#endif
