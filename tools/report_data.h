/* What a cache file holds, read for a report: one model that the page, the text and the JSON print.
 * Every string is valid UTF-8 without control characters other than line ends. */
#ifndef TOOLS_REPORT_DATA_H
#define TOOLS_REPORT_DATA_H

#include "roof.h"

#include <stdint.h>
#include <stdio.h>

#define REPORT_COLOURS 8

/* The artifacts of one family for one target. Times are Unix seconds. */
struct report_group {
    char *family, *target;
    int64_t count, bytes, hits, created, newest, last_use;
    double compile_ms;
};

struct report_compiler {
    char *name;
    int64_t count, created, newest;
};

struct report_trial {
    char *variant, *config, *outcome;
    double time_us, spread_us;
    int64_t samples;
    int is_ok, is_heuristic;
};

/* One search of a bucket: the newest that has a winner, or one after it that has none. */
struct report_search {
    char *key, *text, *family, *bucket, *profile;
    char *brief; /* the bucket without what its family's defaults say as well */
    char *variant, *config, *toolkit, *provenance; /* "" without a winner */
    char *heuristic_variant, *heuristic_config;    /* "": not known */
    int64_t generation, samples, created;
    double time_us, spread_us; /* the winner's */
    double speedup;            /* over the heuristic's config; NaN: not known */
    int is_disturbed;          /* of which the times are such that it is doubtful */
    struct roof_call call;     /* all 0: the family is not known here */
    struct report_trial *trials;
    int trial_count, failed;
    int is_won;
    int colour; /* of the family in pictures, below REPORT_COLOURS */
};

struct report_miss {
    char *spec, *family;
    int64_t count, first_seen, last_seen;
};

/* A table as it stands in the file: column_count names, then row_count times as many cells. */
struct report_table {
    char **names, **cells;
    int column_count, row_count;
};

struct report_data {
    char *path;
    struct quern_profile roof;   /* of a device profile's file; its name is "" without one */
    int64_t schema, bytes, made; /* made: when this was read */
    int64_t compiles, hits, misses_counted, damaged;
    struct report_group *groups;
    struct report_compiler *compilers;
    struct report_search *searches; /* those with a winner first */
    struct report_miss *misses;
    int group_count, compiler_count, search_count, miss_count;
    int has_manifest;
    /* Of the manifest, without which the counts are of nothing. Models: calls and kernels by model,
     * rank, target and kind; calls: the same by family and use. */
    struct report_table manifest, models, calls;
};

/* Read the file at `path`, which is only read. An exit code, after complaining; _fini() in any
 * case. The context knows the families that tell what a call costs. */
int report_data_init(struct report_data *data, struct quern_context *ctx, const char *path);
void report_data_fini(struct report_data *data);

/* Totals and derived figures; NaN: not known. */
int64_t report_artifacts(const struct report_data *data);
int report_winners(const struct report_data *data);
int report_failures(const struct report_data *data);
double report_speedup(const struct report_data *data); /* geometric mean */
double report_tflops(const struct report_search *search);
double report_gbps(const struct report_search *search);
double report_intensity(const struct report_search *search); /* flops a byte */

/* The least time that the roof of the search's device allows, over its time; NaN: not known. */
double report_share(const struct report_data *data, const struct report_search *search);

/* The printers. */
void report_text(const struct report_data *data);
int report_json(const struct report_data *data); /* an exit code */
void report_html(const struct report_data *data, FILE *page);

/* The pictures of the page. */
void report_escape(FILE *page, const char *text);
void report_roofline(const struct report_data *data, const char *profile, FILE *page);
void report_strip(const struct report_search *search, FILE *page);
#define REPORT_STRIP_MOST 8 /* times the fastest; what is slower stands at the edge */

#endif
