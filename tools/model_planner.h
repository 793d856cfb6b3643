/* What the parts of a plan are made with: model_plan.c has the whole and the rest of a layer,
 * model_plan_attention.c what attends, model_plan_linear.c linear attention. */
#ifndef TOOLS_MODEL_PLANNER_H
#define TOOLS_MODEL_PLANNER_H

#include "model_plan.h"

struct planner {
    const struct model *model;
    const struct plan_options *options;
    struct plan *plan;
    const char *dtype, *kv_dtype;
    int64_t tp;
};

/* Whose calls they are. An extra call is one that serving may make and that no sweep tunes. */
struct place {
    const char *where;
    int64_t layers, times; /* that have it, and calls in each: times 0 stands for 1 */
    int is_extra;
};

/* Sizes that buckets have bounds at: 1, 2, 4 ... and the most itself. */
enum { SIZES_MOST = 40, PAIRS_MOST = 512 };
struct sizes {
    int64_t list[SIZES_MOST];
    int count;
};

/* Numbers of sequences and of tokens in all of them: each sequence has one at least. */
struct pairs {
    struct pair {
        int64_t b, t;
        int is_extra; /* several sequences, or few tokens */
    } list[PAIRS_MOST];
    int count;
};

struct product {
    const char *where;
    int64_t layers, times, batch, n, k; /* times, batch: 0 stands for 1 */
    int is_quantised;                   /* as the checkpoint says; else 16-bit */
    int is_per_sequence;
    int64_t most;              /* rows, if more than a step has: those above are extra */
    const char *ab, *d, *bias; /* dtypes; NULL: the planner's, and no bias */
};

/* Add `family` with the parameters that `format` makes, unless it is there or has no layers. */
void planner_add(struct planner *planner, const struct place *place, const char *family,
                 const char *format, ...) __attribute__((format(printf, 4, 5)));
void planner_add_product(struct planner *planner, struct product product);
/* The same for every number of tokens of a step: `family` is "moe tokens", the family and the
 * parameter that comes before the others. */
void planner_add_steps(struct planner *planner, const struct place *place, const char *family,
                       const char *format, ...) __attribute__((format(printf, 4, 5)));
/* Normalised rows of `width`, which a step has `times` of in each layer. */
void planner_add_norm(struct planner *planner, const char *where, int64_t layers, int64_t times,
                      int64_t width);

/* What parameters have behind their sizes, a piece at a time. */
struct params {
    char text[256];
    size_t used;
};
void params_append(struct params *params, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define PLACE(...) (&(struct place){ __VA_ARGS__ })
#define PRODUCT(...) planner_add_product(planner, (struct product){ __VA_ARGS__ })

struct sizes planner_sizes(int64_t most);
struct pairs planner_pairs(const struct planner *planner); /* of a prefill */
/* Tokens of a decode step: with heads that predict ahead each sequence has several. */
int64_t planner_decode_tokens(const struct planner *planner);
/* Tokens of any step, of decode or of a prefill. */
struct sizes planner_steps(const struct planner *planner);
/* Whether the product or layer is of block-scaled or otherwise packed weights. */
int planner_is_quantised(const struct planner *planner, int is_expert);

void plan_grouped_query(struct planner *planner, int64_t layers);
void plan_latent(struct planner *planner, int64_t layers);
void plan_kda(struct planner *planner);
void plan_gdn(struct planner *planner);

#endif
