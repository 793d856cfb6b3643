/* JSON on stdout: one object on one line, fields in the order of docs/CLI.md, numbers finite. */
#ifndef TOOLS_JSON_OUT_H
#define TOOLS_JSON_OUT_H

#include <jansson.h>
#include <quern.h>

/* Print the object and release it. NULL (memory ran out while it was made) is a failure. An exit
 * code. */
int json_out_print(json_t *object);

json_t *json_out_real(double value);                       /* null for NaN and Inf */
json_t *json_out_text(const char *text);                   /* NULL gives null; always valid UTF-8 */
json_t *json_out_config(const char *config);               /* "bm=64,bn=128" as an object */
json_t *json_out_steps(const struct quern_report *report); /* [{step, from, compile_ms, ...}] */

/* The words that stand for enum quern_config_from and enum quern_artifact_from, also for people. */
const char *json_out_config_from(int config_from);
const char *json_out_artifact_from(int artifact_from);

#endif
