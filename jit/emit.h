/* What emission and keys share. */
#ifndef QN_EMIT_H
#define QN_EMIT_H

#include "jit/build.h"
#include "jit/text.h"

/* Sets unit->key_text (malloc'ed) for a unit whose source is there; files are its "file.X=hash"
 * lines. */
int qn_artifact_key(struct quern_context *ctx, const struct quern_step *step,
                    const struct quern_target *target, const char *options, const char *files,
                    struct qn_unit *unit);

#endif
