/* A target's text and back: "cpu:x86-64-v4+bf16+vnni+amx", "cpu:aarch64", "sm_80", "sm_90a". */
#ifndef QN_TARGET_H
#define QN_TARGET_H

#include <quern/family.h>

/* Room for any formatted target. */
#define QN_TARGET_TEXT_BYTES 64

/* Features may come in any order, each once. Returns 0, or QUERN_INVALID with the line in `why`;
 * *target is written only on success. */
int qn_target_parse(const char *text, struct quern_target *target, struct quern_message *why);

/* Canonical text, cut to `bytes`, always terminated: equal targets have equal text. */
void qn_target_format(const struct quern_target *target, char *text, size_t bytes);

#endif
